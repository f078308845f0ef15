"""vLLM's worker with ecd's sampling rules in place of its own.

Owns how rows of logits are matched to sessions, and how verdicts go back as vLLM expects them. Runs in each
of vLLM's worker processes, which all come to the same verdicts, as these depend on nothing but their input.
With `vllm_verifier` the only module that imports vLLM; made for and tested with vLLM 0.32 (V1 model runner).
"""

from typing import Any

import numpy as np
import torch
from vllm.platforms import current_platform
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from ecd.engine.torch_sampling import Rows, token_logprobs, verify_rows

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker

# What vLLM takes for 'no token here'.
_NO_TOKEN = -1


class NoDrafts:
    """vLLM's proposer of drafts (`custom_class`), which proposes none: they come from the draft board."""

    def __init__(self, vllm_config: Any):
        pass

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """There is none."""

    def propose(self, sampled_token_ids: Any, *args: Any, **kwargs: Any) -> list[list[int]]:
        """No drafts for any request."""
        return [[] for _ in sampled_token_ids]


class VerifyingWorker(PlatformWorker):  # type: ignore[misc]
    """Takes the step's `Rows` by request id from the scheduler's output, where `TurnScheduler` put them."""

    _rows: dict[str, Rows]

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Loads the model, then puts the sampling rules in."""
        loaded = super().load_model(*args, **kwargs)
        self._rows = {}
        self.model_runner._sample = self._sample
        return loaded

    def execute_model(self, scheduler_output: Any) -> Any:
        """One forward; `_sample` is called in the course of it, or by `sample_tokens` right after it."""
        self._rows = getattr(scheduler_output, "ecd_rows", {})
        return super().execute_model(scheduler_output)

    def _sample(self, logits: torch.Tensor, spec_decode_metadata: Any) -> SamplerOutput:
        """In place of vLLM's sampler. logits: [sum of drafts + 1 of all requests, vocabulary]."""
        ids = self.model_runner.input_batch.req_ids
        drafts = [0] * len(ids) if spec_decode_metadata is None else spec_decode_metadata.num_draft_tokens
        places: list[int] = []
        sessions: list[Rows] = []
        taken: list[int] = []
        first = 0
        for place, (request, count) in enumerate(zip(ids, drafts, strict=True)):
            rows = self._rows.get(request)
            if rows is not None:  # else a chunk of a prompt, whose token nobody wants
                places.append(place)
                sessions.append(rows)
                taken.extend(range(first, first + rows.count))
            first += count + 1
        if len(taken) < first:
            logits = logits[torch.tensor(taken, dtype=torch.long, device=logits.device)]
        verdicts = verify_rows(logits, sessions)
        width = max(drafts) + 1
        sampled = np.full((len(ids), width), _NO_TOKEN, dtype=np.int32)
        sampled[:, 0] = 0
        for place, verdict in zip(places, verdicts, strict=True):
            sampled[place, : len(verdict.tokens)] = verdict.tokens
        logprobs = None
        if any(rows.logprobs is not None for rows in sessions):
            logprobs = self._logprobs(logits, places, sessions, sampled)
        return SamplerOutput(torch.from_numpy(sampled).to(logits.device), logprobs)

    def _logprobs(
        self, logits: torch.Tensor, places: list[int], sessions: list[Rows], sampled: np.ndarray
    ) -> LogprobsTensors:
        """Laid out as vLLM wants them: one row for each place of `sampled`, most of them empty."""
        most = max(rows.logprobs for rows in sessions if rows.logprobs is not None)
        rows_of: list[int] = []
        cells: list[int] = []
        first = 0
        for place, rows in zip(places, sessions, strict=True):
            if rows.logprobs is not None:
                count = int((sampled[place] != _NO_TOKEN).sum())
                rows_of.extend(range(first, first + count))
                cells.extend(place * sampled.shape[1] + offset for offset in range(count))
            first += rows.count
        chosen = torch.from_numpy(sampled.reshape(-1)[cells].astype(np.int64)).to(logits.device)
        found = token_logprobs(logits[torch.tensor(rows_of, device=logits.device)], chosen, most)
        out = LogprobsTensors(
            torch.zeros((sampled.size, most + 1), dtype=torch.int32),
            torch.zeros((sampled.size, most + 1), dtype=torch.float32),
            torch.zeros(sampled.size, dtype=torch.int32),
        )
        at = torch.tensor(cells)
        for whole, part in zip(out[:3], found, strict=True):
            whole[at] = part.to(device=whole.device, dtype=whole.dtype)
        return out
