"""How far confidence can be trusted: reliability, a fitted temperature, and what is kept at which risk.

Pure numpy. A token is a confidence in [0, 1] and whether the draft's guess was the target's choice; knows no
models, strategies or plots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecd.sampling import Logits

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

BINS = 10
# Temperatures among which one is chosen, 5 % apart from 0.2 to 5.
TEMPERATURES: Floats = np.exp(np.linspace(np.log(0.2), np.log(5.0), 67))
_LOWEST = np.float32(-1e4)


@dataclass(frozen=True, slots=True)
class Bin:
    """Tokens of a confidence from `low` to `high`: how many, their mean confidence, the share that agrees."""

    low: float
    high: float
    tokens: int
    confidence: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Kept:
    """What a threshold keeps: `coverage`, the share of all tokens, and how many of them agree."""

    threshold: float
    coverage: float
    agreement: float


def reliability(confidence: Floats, agreed: Bools) -> tuple[Bin, ...]:
    """The bins of equal width that have tokens (DeGroot and Fienberg 1983; Guo et al. 2017, section 2)."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return tuple(
        Bin(
            b / BINS,
            (b + 1) / BINS,
            int((place == b).sum()),
            float(confidence[place == b].mean()),
            float(agreed[place == b].mean()),
        )
        for b in range(BINS)
        if (place == b).any()
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: sum of tokens/all * |agreement - confidence| (Naeini et al. 2015)."""
    total = sum(each.tokens for each in bins)
    return sum(each.tokens / total * abs(each.agreement - each.confidence) for each in bins)


def risk_coverage(confidence: Floats, agreed: Bools) -> tuple[Kept, ...]:
    """What each threshold keeps, highest first; equal confidences go together (El-Yaniv, Wiener 2010)."""
    order = np.argsort(-confidence, kind="stable")
    sure, right = confidence[order], np.cumsum(agreed[order])
    last = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))
    return tuple(
        Kept(float(sure[at]), float((at + 1) / len(sure)), float(right[at] / (at + 1))) for at in last
    )


def area_of_risk(curve: Sequence[Kept]) -> float:
    """Area under risk (1 - agreement) over coverage, as a step function: 0 is best."""
    coverages = np.diff([0.0, *(point.coverage for point in curve)])
    return float(sum(width * (1 - point.agreement) for width, point in zip(coverages, curve, strict=True)))


def threshold_for(curve: Sequence[Kept], agreement: float) -> Kept | None:
    """The threshold that keeps most while so many of the kept agree; None where none does."""
    good = [point for point in curve if point.agreement >= agreement]
    return good[-1] if good else None


def thinned(curve: Sequence[Kept], points: int = 101) -> tuple[Kept, ...]:
    """At most so many points of a curve, its ends among them."""
    if len(curve) <= points:
        return tuple(curve)
    return tuple(curve[round(at)] for at in np.linspace(0, len(curve) - 1, points))


def tempered(logits: Logits, token: int) -> tuple[Floats, Floats]:
    """At each of TEMPERATURES: -ln of the token's probability, and the largest probability of all."""
    below = np.maximum(logits - logits.max(), _LOWEST)
    totals = np.array([np.exp(below / np.float32(t)).sum(dtype=np.float64) for t in TEMPERATURES])
    return np.log(totals) - float(below[token]) / TEMPERATURES, 1 / totals


def fitted(losses: Floats) -> int:
    """Which of TEMPERATURES makes the target's tokens most likely (Guo et al. 2017, section 4.2).

    losses: float64[tokens, temperatures], from `tempered`.
    """
    return int(losses.mean(axis=0).argmin())
