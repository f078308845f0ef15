"""The target on llama.cpp: sequences, prompt chunks, verification batches and roll-back.

Owns which KV cells hold which session's tokens. Runs in the engine thread.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ecd.cloud.verifier import Capacity, Judged, StepResult, Work
from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.engine.packing import PROMPT_CHUNK_TOKENS, SEGMENT_TOKENS, next_piece
from ecd.errors import EcdError, EngineError
from ecd.logprobs import verdict_logprobs
from ecd.sampling import Verdict, choose, judge, verify

log = logging.getLogger(__name__)


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
        max_verify: int,
        threads: int,
        stable: bool,
    ):
        # Hints take cells too, before it is known which of them stay.
        self.capacity = Capacity(sessions, min(context_tokens, model.context_train) - max_verify)
        n_batch = sessions * max(SEGMENT_TOKENS, max_verify + 1) + PROMPT_CHUNK_TOKENS
        self._context = LlamaContext(
            model, n_ctx=context_tokens, n_seq=sessions, n_batch=n_batch, threads=threads
        )
        self._cells = sessions * context_tokens
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

    def stats(self) -> dict[str, int | float]:
        """KV cells in use, and all there are."""
        # A copy, since the engine thread may add to it or take away.
        sequences = list(self._sequences.values())
        return {"kv_tokens": sum(sequence.cached for sequence in sequences), "kv_capacity": self._cells}

    def close(self) -> None:
        """Frees the KV cache."""
        self._context.close()

    def _step_batched(self, work: Sequence[Work]) -> StepResult:
        taking, segments, reading = [], [], 0
        for item in work:
            segment = self._segment(item)
            if segment.start < item.prompt_len:
                # Prompts together get one chunk's worth a step, first come first served: that is all they
                # delay others.
                if reading and reading + len(segment.tokens) > PROMPT_CHUNK_TOKENS:
                    continue
                reading += len(segment.tokens)
            taking.append(item)
            segments.append(segment)
        judged: dict[int, Judged] = {}
        failed: dict[int, EcdError] = {}
        for item, segment, rows in zip(taking, segments, self._context.decode(segments), strict=True):
            sequence = self._sequences[item.key]
            hints = item.hints[: max(0, segment.rows - 1)]
            sequence.cached = segment.start + len(segment.tokens) - len(hints)
            if not segment.rows:
                continue
            try:
                verdict = verify(rows, hints, item.sampling, item.tokens, item.prompt_len)
                logprobs = verdict_logprobs(rows, verdict.tokens, item.logprobs)
            except Exception as e:
                log.exception("judging session %d failed", item.key)
                failed[item.key] = EngineError(f"the target's logits could not be judged: {e}")
                continue
            judged[item.key] = Judged(verdict, len(hints), logprobs)
            sequence.cached += verdict.accepted
        return StepResult(judged, failed, sum(len(s.tokens) for s in segments), len(segments))

    def _segment(self, item: Work) -> Segment:
        """The session's next piece; hints follow where it is the one token that was committed last."""
        sequence = self._sequences[item.key]
        start, end = next_piece(_cached(sequence, item), item.prompt_len, len(item.tokens))
        hints = item.hints if end - start == 1 else ()
        tokens = [*item.tokens[start:end], *(hint.token for hint in hints)]
        return Segment(sequence.number, start, tokens, len(hints) + 1 if end == len(item.tokens) else 0)

    def _step_stable(self, work: Sequence[Work]) -> StepResult:
        judged: dict[int, Judged] = {}
        total = 0
        for item in work:
            sequence = self._sequences[item.key]
            start, end = next_piece(_cached(sequence, item), item.prompt_len, len(item.tokens))
            if start >= item.prompt_len:
                end = start + 1
            last = end == len(item.tokens)
            segment = Segment(sequence.number, start, item.tokens[start:end], int(last))
            (rows,) = self._context.decode([segment])
            total += end - start
            sequence.cached = end
            if not last:
                continue
            committed, accepted = list(item.tokens), 0
            # Copies, for the next call overwrites what this one returned.
            judging = [rows[0].copy()]
            while accepted < len(item.hints):
                hint = item.hints[accepted]
                token, ok = judge(judging[-1], hint, item.sampling, committed, item.prompt_len)
                committed.append(token)
                if not ok:
                    break
                (rows,) = self._context.decode([Segment(sequence.number, sequence.cached, [token], 1)])
                judging.append(rows[0].copy())
                sequence.cached += 1
                accepted += 1
                total += 1
            else:
                committed.append(
                    choose(judging[-1], item.sampling, len(committed), committed, item.prompt_len)
                )
            verdict = Verdict(tuple(committed[len(item.tokens) :]), accepted)
            logprobs = verdict_logprobs(judging, verdict.tokens, item.logprobs)
            judged[item.key] = Judged(verdict, min(len(item.hints), accepted + 1), logprobs)
        return StepResult(judged, {}, total, len(work), one_pass=False)


def _cached(sequence: _Sequence, item: Work) -> int:
    """Tokens that need not be evaluated: never the last one, whose logits were not kept.

    All are in the cache when the verdict behind them was not the session's to commit.
    """
    return min(sequence.cached, len(item.tokens) - 1)
