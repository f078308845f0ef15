"""Rates, and ratios of two rates measured in pairs, and how sure they are.

Owns the arithmetic: pure, numpy, seeded. Knows nothing of what was measured.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # per cent


class Resampled(StrEnum):
    """What an interval is about: other repeats of the same prompts, or other prompts."""

    REPEATS = "repeats"
    PROMPTS = "prompts"
    OF_CLASSES = "prompts of each class"


_WORDS = {
    Resampled.REPEATS: "repeats within each prompt; the set of prompts is taken as given",
    Resampled.PROMPTS: "prompts, where one was measured only once",
    Resampled.OF_CLASSES: "prompts within each class, where one was measured only once",
}


def describe(resampled: Collection[Resampled]) -> str:
    """What intervals are about, for a report that has them."""
    words = "; or of ".join(words for what, words in _WORDS.items() if what in resampled)
    return f"95 %, bootstrap, {RESAMPLES:,} resamples of {words}" if words else "none"


@dataclass(frozen=True, slots=True)
class Amounts:
    """Work done and time taken, `[prompt, repeat]`; a NaN in either is a run that is not there.

    `classes`: a number for the class of each prompt, where the set has a given number of each.
    """

    work: NDArray[np.float64]
    time: NDArray[np.float64]
    classes: NDArray[np.intp] | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    """The bootstrap distribution's median and 95 % interval, and how many pairs went in.

    A single pair has an interval without width: nothing is known of what another one would have given.
    """

    median: float
    lo: float
    hi: float
    pairs: int
    resampled: Resampled


def ratio_interval(ours: Amounts, theirs: Amounts, seed: int) -> Interval | None:
    """All our work over all our time, over the same of theirs; only pairs that both have count.

    Where every prompt has at least two pairs, the prompts are taken as given and repeats are resampled within
    each; else the prompts are resampled, each with all its pairs: within each class, if each has at least
    two, or else how much classes differ would count as doubt. Of the n units of a stratum n - 1 are
    drawn, with replacement, and weighted n / (n - 1) (McCarthy and Snowden 1985; Rao and Wu 1988, Journal of
    the American Statistical Association 83:231-241): so the variance of a resampled sum is the unbiased
    estimate of the sum's. Drawing all n makes it (n - 1) / n of that: with two repeats, half.

    None without a pair, or where either took no time.
    """
    sampled = _resampled_sums((ours.work, ours.time, theirs.work, theirs.time), ours.classes, seed)
    if sampled is None or not (sampled.totals > 0).all():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (sampled.sums[0] / sampled.sums[1]) / (sampled.sums[2] / sampled.sums[3])
    return _interval(ratios, sampled)


def rate_interval(amounts: Amounts, seed: int) -> Interval | None:
    """All work over all time, resampled as in `ratio_interval`; None where there is none of the latter."""
    sampled = _resampled_sums((amounts.work, amounts.time), amounts.classes, seed)
    if sampled is None or sampled.totals[1] <= 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = sampled.sums[0] / sampled.sums[1]
    return _interval(rates, sampled)


@dataclass(frozen=True, slots=True)
class _Sampled:
    """Resampled sums of each part, `[part, resample]`, and the totals that they vary around."""

    sums: list[NDArray[np.float64]]
    totals: NDArray[np.float64]
    pairs: int
    resampled: Resampled


def _resampled_sums(
    amounts: Sequence[NDArray[np.float64]], classes: NDArray[np.intp] | None, seed: int
) -> _Sampled | None:
    parts = np.stack(amounts)
    there = np.asarray(~np.isnan(parts).any(axis=0))
    if not there.any():
        return None
    parts = np.where(there, parts, 0.0)
    totals = parts.sum(axis=(1, 2))
    pairs = there.sum(axis=1)
    resampled = Resampled.REPEATS if (pairs[pairs > 0] > 1).all() else Resampled.PROMPTS
    if resampled is Resampled.PROMPTS:
        parts, there = parts.sum(axis=2)[:, None], (pairs > 0)[None]
        if classes is not None:
            numbers, sizes = np.unique(classes[pairs > 0], return_counts=True)
            if len(numbers) > 1 and sizes.min() > 1:
                resampled = Resampled.OF_CLASSES
                there = there & (classes == numbers[:, None])
                parts = np.where(there, parts, 0.0)
    # Each stratum's units are moved to the front and drawn from.
    order = np.argsort(~there, axis=1, kind="stable")
    parts = np.take_along_axis(parts, order[None], axis=2)
    counts = there.sum(axis=1)[:, None]
    draws = np.maximum(counts - 1, 1)
    picks = (np.random.default_rng(seed).random((RESAMPLES, *there.shape)) * counts).astype(np.intp)
    weights = np.where(np.arange(there.shape[1]) < draws, counts / draws, 0.0)
    rows = np.arange(there.shape[0])[:, None]
    sums = [(weights * part[rows, picks]).sum(axis=(1, 2)) for part in parts]
    return _Sampled(sums, totals, int(pairs.sum()), resampled)


def _interval(values: NDArray[np.float64], sampled: _Sampled) -> Interval | None:
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    lo, hi = np.percentile(values, INTERVAL)
    return Interval(float(np.median(values)), float(lo), float(hi), sampled.pairs, sampled.resampled)
