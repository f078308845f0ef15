"""Log-probabilities: how likely a committed token was, and which tokens were the most likely ones there.

Pure numpy, used by the cloud and by the oracle. They are of the target's raw distribution, softmax(logits) at
temperature 1 before bias, penalties and truncation, whatever the request's sampling settings make of it.
Knows nothing of hints, rules or the wire.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ecd.errors import BadRequest, EngineError
from ecd.sampling import Logits, largest

# Most likely tokens that may be asked for, as in OpenAI's `top_logprobs`.
MAX_TOP = 20
# Stands for the logarithm of 0: neither JSON nor the wire has an infinity.
LOWEST = float(np.finfo(np.float32).min)


class TokenLogprobs(NamedTuple):
    """Natural logarithms of probabilities, rounded to float32 as the wire carries them.

    `logprob`: the committed token's. `top`: ids and values of the most likely tokens, the likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]

    def to_map(self) -> dict[str, Any]:
        """As results carry it."""
        return {"logprob": self.logprob, "top": [list(pair) for pair in self.top]}


def check_top(count: int | None) -> None:
    """Raises BadRequest for a number of most likely tokens that is not None (no logprobs) or 0 to MAX_TOP."""
    if count is not None and not 0 <= count <= MAX_TOP:
        raise BadRequest(f"logprobs must be in 0..{MAX_TOP}, not {count}")


def as_asked(told: Sequence[TokenLogprobs] | None, tokens: int, count: int | None) -> bool:
    """Whether this is what a peer tells of so many tokens when asked for `count` (None: not at all)."""
    if told is None or count is None:
        return told is None and count is None
    return len(told) == tokens and all(len(each.top) <= count for each in told)


def token_logprobs(logits: Logits, token: int, count: int) -> TokenLogprobs:
    """Those of `token` and of the `count` most likely tokens; of equal logits the smaller id comes first.

    logits: float32[vocabulary]. Raises EngineError when they make no distribution.
    """
    peak = float(logits.max())
    if not math.isfinite(peak):
        raise EngineError(f"the target's largest logit is {peak}, which gives no probabilities")
    x = logits.astype(np.float64) - peak
    x -= math.log(np.exp(x).sum())
    ids = largest(logits, count).tolist() if count else []
    own, *top = np.maximum(x[[token, *ids]], LOWEST).astype(np.float32).tolist()
    return TokenLogprobs(own, tuple(zip(ids, top, strict=True)))


def verdict_logprobs(
    rows: Iterable[Logits], tokens: Sequence[int], count: int | None
) -> tuple[TokenLogprobs, ...] | None:
    """One for each token of a verdict, from the rows it was reached by; None where none were asked for.

    There may be more rows than tokens: those behind a rejected hint.
    """
    if count is None:
        return None
    return tuple(token_logprobs(row, token, count) for token, row in zip(tokens, rows, strict=False))
