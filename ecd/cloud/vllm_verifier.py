"""The target on vLLM: its engine core, driven from one thread, with hints put in before each step.

Owns which sessions run in a step, and whose KV cache gives way when there is no room. Nothing of vLLM is
patched: its scheduler is subclassed here, its worker in `vllm_worker`. Tensor parallelism, paging, prefix
caching and quantised weights are vLLM's own business.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.abstract import Executor
from vllm.v1.request import Request

from ecd.cloud.verifier import Capacity, Judged, StepResult, Work
from ecd.engine.torch_sampling import Rows
from ecd.errors import EcdError, EngineError, EngineLost, ModelError
from ecd.logprobs import LOWEST, TokenLogprobs
from ecd.sampling import Verdict

log = logging.getLogger(__name__)

# A step that never comes.
_NEVER = 1 << 60
# Prompts are read in pieces of at most so many tokens when others run too, so that they do not hold them up.
_PROMPT_CHUNK_TOKENS = 512


class TurnScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, in which only the sessions whose turn it is run.

    The others are parked: they keep their KV cache until somebody needs the room. Then the one that has been
    parked longest gives its up, and computes it again at its next turn, but for what the prefix cache still
    has. `rows` of the last step are what the worker was told of each session in it.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # vLLM would pad what it resumes to a full set of drafts, which takes time and verifies nothing.
        self.dynamic_sd_lookup = [self.num_spec_tokens] * (self.max_num_running_reqs + 1)
        self._turn: Mapping[str, Work] = {}
        self._unseated: dict[str, Request] = {}
        self.rows: dict[str, Rows] = {}
        self.batch_tokens = 0
        self.batch_sessions = 0
        self.evictions = 0
        self.preemptions = 0

    def begin(self, turn: Mapping[str, Work]) -> None:
        """Whose turn the next step is, by request id, and the hints to verify in it."""
        self._turn = turn
        for request in self.running:
            work = turn.get(request.request_id)
            request.spec_token_ids = []
            if work is None:
                # When there is no room, vLLM takes it from the running request of the largest priority.
                request.next_decode_eligible_step = _NEVER
                request.priority += 1
                continue
            request.next_decode_eligible_step = request.priority = 0
            if request.num_computed_tokens == request.num_tokens - 1:
                room = min(self.num_spec_tokens, self.max_model_len - request.num_tokens - 1)
                request.spec_token_ids = [hint.token for hint in work.hints[: max(0, room)]]
        self._seat()

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """vLLM's choice among those whose turn it is; parked ones give way to those that find no room."""
        output = super().schedule(throttle_prefills)
        # What vLLM has just taken the room from stands in its queue.
        self._seat()
        while self._short_of_room(output) and self._evict() and not output.total_num_scheduled_tokens:
            finished, preempted = output.finished_req_ids, output.preempted_req_ids
            self._seat()
            output = super().schedule(throttle_prefills)
            output.finished_req_ids |= finished
            output.preempted_req_ids |= preempted
        self.batch_tokens = output.total_num_scheduled_tokens
        self.batch_sessions = len(output.num_scheduled_tokens)
        self.rows = {
            request: self._rows_of(self._turn[request], output.scheduled_spec_decode_tokens.get(request, ()))
            for request in output.num_scheduled_tokens
            if not self.requests[request].is_prefill_chunk
        }
        # A plain attribute goes to the workers with the rest.
        output.ecd_rows = self.rows
        return output

    @staticmethod
    def _rows_of(work: Work, verified: Sequence[int]) -> Rows:
        return Rows(
            sampling=work.sampling,
            position=len(work.tokens),
            hints=tuple(work.hints[: len(verified)]),
            prompt_len=work.prompt_len,
            tokens=np.asarray(work.tokens) if work.sampling.penalised else (),
            logprobs=work.logprobs,
        )

    def _seat(self) -> None:
        """Keeps those that lost their KV cache out of vLLM's queue until their turn: it would run them."""
        leaving = [request for request in self.waiting if request.request_id not in self._turn]
        self.waiting.remove_requests(leaving)
        self._unseated |= {request.request_id: request for request in leaving}
        for request_id in self._unseated.keys() & self._turn.keys():
            request = self._unseated.pop(request_id)
            request.priority = 0
            self.waiting.add_request(request)

    def _short_of_room(self, output: SchedulerOutput) -> bool:
        """Whether the next in vLLM's queue does not fit beside what is cached for others.

        It does not where it alone could have run and did not, however few blocks it seems to need: models
        with several kinds of attention need more.
        """
        if not self.waiting:
            return False
        if not output.total_num_scheduled_tokens:
            return True
        blocks = -(-self.waiting.peek_request().num_tokens // self.block_size)
        return bool(blocks > self.kv_cache_manager.block_pool.get_num_free_blocks())

    def _evict(self) -> bool:
        """Takes the KV cache of the session that has been parked longest; False when none is parked."""
        parked = [request for request in self.running if request.request_id not in self._turn]
        if not parked:
            return False
        longest = max(parked, key=lambda request: request.priority)
        self.running.remove(longest)
        self._preempt_request(longest, time.monotonic())
        return True

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        if request.request_id in self._turn:
            self.preemptions += 1
        else:
            self.evictions += 1

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._unseated.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Drafts come with the turn, and from nobody else."""


@dataclass(slots=True)
class _Engine:
    """vLLM running, the request of each session in it, and a number for the next."""

    core: EngineCore
    requests: dict[int, Request]
    made: int = 0


class VllmVerifier:
    """`Verifier` on vLLM.

    `model`: a folder or a name on the hub. `max_verify`: most hints verified of one session. `engine_args`:
    of vLLM's EngineArgs, over the defaults that are set here. A step that fails ends the engine; the next one
    starts it again. Raises ModelError when it cannot start the first time.
    """

    def __init__(
        self,
        model: str,
        *,
        sessions: int,
        context_tokens: int,
        max_verify: int,
        engine_args: Mapping[str, Any],
    ):
        hints = max(1, max_verify)
        defaults = {
            "max_model_len": context_tokens,
            "max_num_seqs": sessions,
            "max_num_batched_tokens": max(2048, sessions * (hints + 1) + _PROMPT_CHUNK_TOKENS),
            "long_prefill_token_threshold": _PROMPT_CHUNK_TOKENS,
            # A worker in a process of its own can fail, and be started again, without the daemon.
            "distributed_executor_backend": "mp",
        }
        fixed = {
            "model": model,
            "async_scheduling": False,
            "scheduling_policy": "priority",
            "scheduler_cls": "ecd.cloud.vllm_verifier.TurnScheduler",
            "worker_cls": "ecd.cloud.vllm_worker.VerifyingWorker",
            "speculative_config": {
                "method": "custom_class",
                "model": "ecd.cloud.vllm_worker.NoDrafts",
                "num_speculative_tokens": hints,
            },
        }
        self._arguments = defaults | dict(engine_args) | fixed
        self._cached_tokens = self._evictions = self._preemptions = 0
        try:
            self._engine: _Engine | None = self._start()
        except Exception as e:
            raise _why_no_start(model, e) from e
        scheduler = self._engine.core.scheduler
        self.capacity = Capacity(min(sessions, scheduler.max_num_running_reqs), scheduler.max_model_len - 1)

    def _start(self) -> _Engine:
        # A fork of a daemon that serves would hold its sockets open, and the locks of its threads for ever.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        config = EngineArgs(**self._arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
        return _Engine(EngineCore(config, Executor.get_class(config), log_stats=False), {})

    def step(self, work: Sequence[Work]) -> StepResult:
        """One step of vLLM for these sessions. Raises EngineLost when it failed as a whole.

        After that the next one only starts vLLM again: what a step takes should not come of starting it.
        """
        try:
            engine = self._engine
            if engine is None:
                self._engine = self._start()
                return StepResult(one_pass=False)
            turn = {self._request_of(engine, item).request_id: item for item in work}
            scheduler: TurnScheduler = engine.core.scheduler
            scheduler.begin(turn)
            outputs, _ = engine.core.step_fn()
        except Exception as e:
            self._give_up()
            raise EngineLost(f"vLLM failed and is being started again: {e or type(e).__name__}") from e
        judged: dict[int, Judged] = {}
        failed: dict[int, EcdError] = {}
        for output in (output for group in outputs.values() for output in group.outputs):
            item, cached = turn[output.request_id], 0
            if output.prefill_stats is not None:
                cached = output.prefill_stats.num_cached_tokens
                self._cached_tokens += cached
            # Behind a text that is as long as may be the last token comes all the same: it was read ahead.
            if not output.new_token_ids:
                failed[item.key] = EngineError(f"vLLM ended the session: {output.finish_reason}")
                continue
            tokens, verified = tuple(output.new_token_ids), len(scheduler.rows[output.request_id].hints)
            try:
                logprobs = _logprobs(output, item.logprobs)
            except EngineError as e:
                failed[item.key] = e
                continue
            judged[item.key] = Judged(Verdict(tokens, len(tokens) - 1), verified, logprobs, cached)
        return StepResult(judged, failed, scheduler.batch_tokens, scheduler.batch_sessions)

    def forget(self, key: int) -> None:
        """Ends the session's request; what it cached stays for others, as long as there is room."""
        if self._engine is not None and (request := self._engine.requests.pop(key, None)) is not None:
            self._engine.core.abort_requests([request.request_id])

    def prepare(self, stop: Callable[[], bool]) -> bool:
        """vLLM's prefix cache takes an answer's blocks as they are."""
        return False

    def close(self) -> None:
        """Ends vLLM and its workers."""
        if self._engine is not None:
            self._engine.core.shutdown()
            self._engine = None

    def stats(self) -> dict[str, int | float]:
        """Share of the KV cache in use, prompt tokens found in it, and who gave way in it; since start."""
        engine = self._engine
        scheduler = engine.core.scheduler if engine is not None else None
        return {
            "kv_use": scheduler.get_kv_cache_usage() if scheduler else 0.0,
            "kv_blocks": scheduler.kv_cache_manager.block_pool.num_gpu_blocks if scheduler else 0,
            "cached_tokens": self._cached_tokens,
            "evictions": self._evictions + (scheduler.evictions if scheduler else 0),
            "preemptions": self._preemptions + (scheduler.preemptions if scheduler else 0),
        }

    def _request_of(self, engine: _Engine, item: Work) -> Request:
        """The session's request, a new one when it is not known or its text has grown elsewhere."""
        request = engine.requests.get(item.key)
        if request is not None and request.num_tokens == len(item.tokens) and _ends_alike(request, item):
            return request
        if request is not None:
            engine.core.abort_requests([request.request_id])
        engine.made += 1
        request = Request(
            request_id=f"{item.key}-{engine.made}",
            prompt_token_ids=list(item.tokens),
            # The worker's own rules choose tokens, and the session decides when its text ends.
            sampling_params=SamplingParams(
                temperature=0.0,
                max_tokens=engine.core.scheduler.max_model_len,
                ignore_eos=True,
                detokenize=False,
                logprobs=item.logprobs,
                skip_reading_prefix_cache=item.fresh or None,
            ),
            pooling_params=None,
            arrival_time=time.time(),
            block_hasher=engine.core.request_block_hasher,
            # Blocks are found again by those alone who have the same.
            cache_salt=item.tenant or None,
        )
        engine.core.add_request(request)
        engine.requests[item.key] = request
        return request

    def _give_up(self) -> None:
        """Ends what is left of an engine that failed."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        self._evictions += engine.core.scheduler.evictions
        self._preemptions += engine.core.scheduler.preemptions
        try:
            engine.core.shutdown()
        except Exception:
            log.exception("vLLM did not shut down cleanly")


def _ends_alike(request: Request, item: Work) -> bool:
    """Whether vLLM goes on from the session's own last token; their texts are of one length.

    A verdict in the edge's turn is nobody's to commit. All of it but the last token was in the text already.
    """
    return bool(request.all_token_ids[-1] == item.tokens[-1])


def _logprobs(output: EngineCoreOutput, most: int | None) -> tuple[TokenLogprobs, ...] | None:
    """As told by the worker: the token itself, then the most likely ones. Raises EngineError without them."""
    if most is None:
        return None
    told = output.new_logprobs
    if told is None or np.isnan(told.logprobs).any():
        raise EngineError("vLLM told no log-probabilities: the target's logits make no distribution")
    return tuple(
        TokenLogprobs(own, tuple(zip(ids[1 : most + 1].tolist(), top[:most], strict=True)))
        for ids, (own, *top) in zip(
            told.logprob_token_ids, np.maximum(told.logprobs, LOWEST).tolist(), strict=True
        )
    )


# What vLLM says when it cannot start, and what to do about it.
_ADVICE = (
    (
        ("out of memory", "outofmemory"),
        "the model does not fit the device: take more devices (tensor_parallel_size in engine_args) or "
        "a quantised model, or lower gpu_memory_utilization if others use the device",
    ),
    (
        ("derived max_model_len",),
        "lower context_tokens: the model was made for fewer",
    ),
    (
        ("kv cache", "cache blocks", "max seq len"),
        "no room for the KV cache: lower context_tokens or sessions, or raise gpu_memory_utilization in "
        "engine_args (on a CPU: VLLM_CPU_KVCACHE_SPACE)",
    ),
    (
        ("gpu_memory_utilization", "gpu memory utilization", "free memory", "available memory"),
        "lower gpu_memory_utilization in engine_args, or end what else uses the memory",
    ),
    (
        ("not supported", "architectures"),
        "vLLM does not support this model; see its list of supported models",
    ),
    (
        ("worker", "see stack trace", "engine core initialization failed"),
        "its own messages above say why; if memory ran out, lower gpu_memory_utilization, context_tokens or "
        "sessions",
    ),
)


def _why_no_start(model: str, error: Exception) -> ModelError:
    said = " ".join(str(error).split()) or type(error).__name__
    searched = f"{type(error).__name__} {said}".lower()
    advice = next((what for words, what in _ADVICE if any(word in searched for word in words)), None)
    return ModelError(f"vLLM cannot start with {model}: {said[:500]}" + (f"; {advice}" if advice else ""))
