"""The target on llama.cpp: sequences, prompt chunks, verification batches and roll-back.

Owns what each session computes in a step. Runs in the engine thread.
"""

import logging
from collections.abc import Callable, Sequence

from ecd.cloud.llama_places import Place, Places
from ecd.cloud.verifier import Capacity, Judged, StepResult, Work
from ecd.config import KvCache
from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.engine.packing import PROMPT_CHUNK_TOKENS, SEGMENT_TOKENS, next_piece
from ecd.errors import EcdError, EngineError
from ecd.logprobs import verdict_logprobs
from ecd.sampling import Verdict, choose, judge, verify

log = logging.getLogger(__name__)


class LlamaVerifier:
    """`Verifier` on a llama.cpp context.

    `stable` evaluates every sequence by itself, prompts in fixed chunks and all else one token at a time:
    slow, and bit for bit what the target computes alone. `kv_cache`: None to keep nothing of sessions that
    are over.
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
        kv_cache: KvCache | None = None,
    ):
        # Hints take cells too, before it is known which of them stay.
        self.capacity = Capacity(sessions, min(context_tokens, model.context_train) - max_verify)
        n_batch = sessions * max(SEGMENT_TOKENS, max_verify + 1) + PROMPT_CHUNK_TOKENS
        self._context = LlamaContext(
            model, n_ctx=context_tokens, n_seq=sessions, n_batch=n_batch, threads=threads
        )
        self._cells = sessions * context_tokens
        self._stable = stable
        self._places = Places(self._context, sessions, kv_cache)

    def step(self, work: Sequence[Work]) -> StepResult:
        """One batch for all, or in the stable setting the same one sequence after another."""
        for item in work:
            self._places.begin(item)
        try:
            return self._step_stable(work) if self._stable else self._step_batched(work)
        except Exception:
            for item in work:
                # What a failed batch leaves in the cells is not known.
                self._places[item.key].cached = 0
            raise

    def forget(self, key: int) -> None:
        """Frees the session's sequence."""
        self._places.end(key)

    def prepare(self, stop: Callable[[], bool]) -> bool:
        """Reads a chunk of an answer that is over as part of a prompt, which it will be in the next turn."""
        return self._places.prepare(stop)

    def stats(self) -> dict[str, int | float]:
        """KV cells that sessions use, all there are, and what was found of texts that are over."""
        return {"kv_capacity": self._cells, **self._places.stats()}

    def close(self) -> None:
        """Frees the KV cache; what survives a restart is written before."""
        self._places.close()
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
            sequence = self._places[item.key]
            hints = item.hints[: max(0, segment.rows - 1)]
            self._places.read(item.key, segment.start + len(segment.tokens) - len(hints))
            if not segment.rows:
                continue
            try:
                verdict = verify(rows, hints, item.sampling, item.tokens, item.prompt_len)
                logprobs = verdict_logprobs(rows, verdict.tokens, item.logprobs)
            except Exception as e:
                log.exception("judging session %d failed", item.key)
                failed[item.key] = EngineError(f"the target's logits could not be judged: {e}")
                continue
            judged[item.key] = Judged(verdict, len(hints), logprobs, sequence.reused)
            sequence.cached += verdict.accepted
        return StepResult(judged, failed, sum(len(s.tokens) for s in segments), len(segments))

    def _segment(self, item: Work) -> Segment:
        """The session's next piece; hints follow where it is the one token that was committed last."""
        sequence = self._places[item.key]
        start, end = next_piece(_cached(sequence, item), item.prompt_len, len(item.tokens))
        hints = item.hints if end - start == 1 else ()
        tokens = [*item.tokens[start:end], *(hint.token for hint in hints)]
        return Segment(sequence.number, start, tokens, len(hints) + 1 if end == len(item.tokens) else 0)

    def _step_stable(self, work: Sequence[Work]) -> StepResult:
        judged: dict[int, Judged] = {}
        total = 0
        for item in work:
            sequence = self._places[item.key]
            start, end = next_piece(_cached(sequence, item), item.prompt_len, len(item.tokens))
            if start >= item.prompt_len:
                end = start + 1
            last = end == len(item.tokens)
            segment = Segment(sequence.number, start, item.tokens[start:end], int(last))
            (rows,) = self._context.decode([segment])
            total += end - start
            self._places.read(item.key, end)
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
            judged[item.key] = Judged(verdict, min(len(item.hints), accepted + 1), logprobs, sequence.reused)
        return StepResult(judged, {}, total, len(work), one_pass=False)


def _cached(sequence: Place, item: Work) -> int:
    """Tokens that need not be evaluated: never the last one, whose logits were not kept.

    All are in the cache when the verdict behind them was not the session's to commit.
    """
    return min(sequence.cached, len(item.tokens) - 1)
