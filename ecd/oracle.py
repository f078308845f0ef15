"""The oracle: the target alone, in one process, by the same rules; and the check of a run against it.

Deliberately the plainest loop there is: one token at a time, no hints, no batches of several sequences.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.engine.packing import PROMPT_CHUNK_TOKENS, next_piece
from ecd.errors import BadRequest, ContextOverflow
from ecd.logprobs import TokenLogprobs, check_top, token_logprobs
from ecd.sampling import Rule, Sampling, agreement_gap, choose, loosened
from ecd.text import TextStream, check_stop

# Two logits this close may swap when the same tokens are evaluated in batches of another shape, see
# docs/LOG.md.
TOLERANCE = 0.25
SMALLEST_GAP = 1e-9


@dataclass(frozen=True, slots=True)
class OracleAnswer:
    """What the target alone says; `logprobs` one for each token, where asked for."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogprobs, ...] | None = None


def generate(
    model: LlamaModel,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    max_tokens: int,
    stop: tuple[str, ...],
    threads: int,
    on_text: Callable[[str], None] = lambda text: None,
    logprobs: int | None = None,
) -> OracleAnswer:
    """Generates an answer with the target alone. `on_text` gets pieces as they come.

    logprobs: how many of the most likely tokens to tell with each token, None for no logprobs at all.
    """
    sampling.check_vocabulary(model.n_vocab)
    check_stop(stop)
    check_top(logprobs)
    told: list[TokenLogprobs] = []
    tokens, text, finish = list(prompt), TextStream(stop), ""
    for row in _rows(model, tokens, len(prompt), len(prompt) + max_tokens, threads):
        token = choose(row, sampling, len(tokens), tokens, len(prompt))
        tokens.append(token)
        if logprobs is not None:
            told.append(token_logprobs(row, token, logprobs))
        full = len(tokens) - len(prompt) == max_tokens
        on_text(text.feed(model.piece(token), last=full or token in model.eog))
        if token in model.eog or text.stopped:
            finish = "stop"
        elif full:
            finish = "length"
        if finish:
            break
    answer = tuple(tokens[len(prompt) :])
    return OracleAnswer(text.text, answer, finish, None if logprobs is None else tuple(told))


def _rows(
    model: LlamaModel, tokens: list[int], prompt_len: int, length: int, threads: int
) -> Iterator[NDArray[np.float32]]:
    """The target's logits behind the prompt, then behind each token that the caller has added meanwhile.

    The prompt goes in fixed chunks, all else one token at a time. At most `length` tokens.
    """
    if length > model.context_train:
        raise ContextOverflow(f"{length} tokens do not fit the model's context of {model.context_train}")
    context = LlamaContext(model, n_ctx=length, n_seq=1, n_batch=PROMPT_CHUNK_TOKENS, threads=threads)
    try:
        cached = 0
        while cached < length - 1:
            start, end = next_piece(cached, prompt_len, max(prompt_len, cached + 1))
            wanted = int(end >= prompt_len)
            (rows,) = context.decode([Segment(0, start, tokens[start:end], wanted)])
            cached = end
            if wanted:
                yield rows[0]
    finally:
        context.close()


@dataclass(frozen=True, slots=True)
class TokenCheck:
    """One committed token against the target on the same text. `gap` in logits, 0: the exact choice."""

    position: int
    token: int
    gap: float
    loosened: bool


@dataclass(frozen=True, slots=True)
class Report:
    """All tokens of a run. `near_ties`: not the exact choice but within the tolerance; `wrong`: beyond it."""

    checks: tuple[TokenCheck, ...]
    tolerance: float

    @property
    def near_ties(self) -> int:
        return sum(0 < c.gap <= self.tolerance for c in self.checks)

    @property
    def wrong(self) -> int:
        return sum(not c.gap <= self.tolerance for c in self.checks)

    @property
    def largest_gap(self) -> float:
        return max((c.gap for c in self.checks), default=0.0)

    def to_map(self) -> dict[str, Any]:
        """As `ecd check --json` prints it; an infinite gap is null."""
        return {
            "verdict": "ok" if not self.wrong else "wrong",
            "tolerance": self.tolerance,
            "tokens": len(self.checks),
            "exact": len(self.checks) - self.near_ties - self.wrong,
            "near_ties": self.near_ties,
            "wrong": self.wrong,
            "largest_gap": self.largest_gap if math.isfinite(self.largest_gap) else None,
            "checks": [
                {
                    "position": c.position,
                    "token": c.token,
                    "is_choice": c.gap == 0,
                    "gap": c.gap if math.isfinite(c.gap) else None,
                    "truncation_tie": c.loosened,
                }
                for c in self.checks
            ],
        }


def check(model: LlamaModel, run: dict[str, Any], *, tolerance: float, threads: int) -> Report:
    """Teacher-forces a run's answer and measures how far each token is from the target's choice.

    `run` is the JSON of `ecdctl run --json` or `ecd oracle --json`. Raises BadRequest for one that cannot be
    checked.
    """
    try:
        prompt, answer = [int(t) for t in run["prompt_token_ids"]], [int(t) for t in run["token_ids"]]
        sampling = Sampling.from_map(run["sampling"])
    except (KeyError, TypeError, ValueError) as e:
        raise BadRequest(f"this is not the JSON of a run: {type(e).__name__} {e}") from None
    if sampling.rule is Rule.REJECTION:
        raise BadRequest(
            "a run in mode rejection cannot be checked token by token: it is exact in distribution only"
        )
    if not prompt or not all(0 <= t < model.n_vocab for t in prompt + answer):
        raise BadRequest(
            "the run's token ids are not of this model's vocabulary; check it with the model that made it"
        )
    tokens = prompt + answer
    checks = []
    for position, row in enumerate(_rows(model, tokens, len(prompt), len(tokens), threads), len(prompt)):
        gap, loose = _gap(row, sampling, position, tokens, len(prompt), tolerance)
        checks.append(TokenCheck(position, tokens[position], gap, loose))
    return Report(tuple(checks), tolerance)


def _gap(
    row: NDArray[np.float32],
    sampling: Sampling,
    position: int,
    tokens: list[int],
    prompt_len: int,
    tolerance: float,
) -> tuple[float, bool]:
    """The smallest gap over all truncations that float noise allows, and whether not the given one's."""
    token, before = tokens[position], tokens[:position]
    gap = agreement_gap(row, sampling, position, token, before, prompt_len)
    if gap <= tolerance:
        return gap, False
    others = [
        agreement_gap(row, other, position, token, before, prompt_len)
        for other in loosened(sampling, tolerance)[1:]
    ]
    # A choice under another truncation is still a tie that went the other way, never an exact hit.
    best = max(min(others, default=math.inf), SMALLEST_GAP)
    return (best, True) if best < gap else (gap, False)
