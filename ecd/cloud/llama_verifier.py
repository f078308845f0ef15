"""The target on llama.cpp: sequences, prompt chunks, verification batches and roll-back.

Owns which KV cells hold which session's tokens. Runs in the engine thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ecd.cloud.verifier import Capacity, Judged, StepResult, Work
from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.engine.packing import Demand, Portion, chunk_end, pack
from ecd.errors import EcdError
from ecd.sampling import Verdict, choose, judge, verify


@dataclass(slots=True)
class _Sequence:
    """A session's place in the KV cache: `cached` of its tokens are in it."""

    number: int
    cached: int = 0


class LlamaVerifier:
    """`Verifier` on a llama.cpp context.

    `stable` evaluates every sequence by itself, prompts in fixed chunks and all else one token at a time:
    slow, and bit for bit what the target computes alone.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        sessions: int,
        context_tokens: int,
        batch_tokens: int,
        prefill_chunk_tokens: int,
        threads: int,
        stable: bool,
    ):
        self.capacity = Capacity(sessions, min(context_tokens, model.context_train))
        self._context = LlamaContext(
            model, n_ctx=context_tokens, n_seq=sessions, n_batch=batch_tokens, threads=threads
        )
        self._batch_tokens = batch_tokens
        self._chunk_tokens = prefill_chunk_tokens
        self._stable = stable
        self._sequences: dict[int, _Sequence] = {}
        self._free = list(range(sessions - 1, -1, -1))

    def step(self, work: Sequence[Work]) -> StepResult:
        """One batch for all, or in the stable setting the same one sequence after another."""
        for item in work:
            if item.key not in self._sequences:
                self._sequences[item.key] = _Sequence(self._free.pop())
        return self._step_stable(work) if self._stable else self._step_batched(work)

    def forget(self, key: int) -> None:
        """Frees the session's sequence."""
        sequence = self._sequences.pop(key, None)
        if sequence is not None:
            self._context.truncate(sequence.number, 0)
            self._free.append(sequence.number)

    def close(self) -> None:
        """Frees the KV cache."""
        self._context.close()

    def _step_batched(self, work: Sequence[Work]) -> StepResult:
        demands = [
            Demand(len(item.tokens) - self._sequences[item.key].cached, len(item.hints)) for item in work
        ]
        portions = pack(demands, batch_tokens=self._batch_tokens, chunk_tokens=self._chunk_tokens)
        taking = [(item, portion) for item, portion in zip(work, portions, strict=True) if portion.pending]
        segments = [self._segment(item, portion) for item, portion in taking]
        judged: dict[int, Judged] = {}
        failed: dict[int, EcdError] = {}
        all_rows = self._context.decode(segments)
        for (item, portion), segment, rows in zip(taking, segments, all_rows, strict=True):
            sequence = self._sequences[item.key]
            sequence.cached += portion.pending
            if not segment.rows:
                continue
            hints = item.hints[: portion.hints]
            try:
                verdict = verify(rows, hints, item.sampling, item.tokens, item.prompt_len)
            except EcdError as e:
                failed[item.key] = e
                continue
            judged[item.key] = Judged(verdict, len(hints))
            sequence.cached += verdict.accepted
            if verdict.accepted < len(hints):
                self._context.truncate(sequence.number, sequence.cached)
        return StepResult(judged, failed, sum(len(s.tokens) for s in segments), len(segments))

    def _segment(self, item: Work, portion: Portion) -> Segment:
        sequence = self._sequences[item.key]
        end = sequence.cached + portion.pending
        tokens = [*item.tokens[sequence.cached : end], *(hint.token for hint in item.hints[: portion.hints])]
        rows = portion.hints + 1 if end == len(item.tokens) else 0
        return Segment(sequence.number, sequence.cached, tokens, rows)

    def _step_stable(self, work: Sequence[Work]) -> StepResult:
        judged: dict[int, Judged] = {}
        total = 0
        for item in work:
            sequence = self._sequences[item.key]
            end = len(item.tokens)
            if sequence.cached < item.prompt_len:
                end = chunk_end(sequence.cached, item.prompt_len, self._chunk_tokens)
            elif sequence.cached < len(item.tokens) - 1:
                end = sequence.cached + 1
            last = end == len(item.tokens)
            tokens = item.tokens[sequence.cached : end]
            (rows,) = self._context.decode([Segment(sequence.number, sequence.cached, tokens, int(last))])
            total += end - sequence.cached
            sequence.cached = end
            if not last:
                continue
            committed, accepted = list(item.tokens), 0
            while accepted < len(item.hints):
                hint = item.hints[accepted]
                token, ok = judge(rows[0], hint, item.sampling, committed, item.prompt_len)
                committed.append(token)
                if not ok:
                    break
                rows = self._context.decode([Segment(sequence.number, sequence.cached, [token], 1)])[0]
                sequence.cached += 1
                accepted += 1
                total += 1
            else:
                committed.append(choose(rows[0], item.sampling, len(committed), committed, item.prompt_len))
            verdict = Verdict(tuple(committed[len(item.tokens) :]), accepted)
            judged[item.key] = Judged(verdict, min(len(item.hints), accepted + 1))
        return StepResult(judged, {}, total, len(work))
