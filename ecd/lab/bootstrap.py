"""Ratios of two rates measured in pairs, and how sure they are.

Owns the arithmetic: pure, numpy, seeded. Knows nothing of what was measured.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # per cent


@dataclass(frozen=True, slots=True)
class Amounts:
    """Work done and time taken, `[prompt, repeat]`; a NaN in either is a run that is not there."""

    work: NDArray[np.float64]
    time: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """The bootstrap distribution's median and 95 % interval, and how many pairs went in."""

    median: float
    lo: float
    hi: float
    pairs: int


def ratio_interval(ours: Amounts, theirs: Amounts, seed: int) -> Interval | None:
    """All our work over all our time, over the same of theirs; only pairs that both have count.

    With repeats the prompts are taken as given and repeats are resampled within each; with one repeat the
    prompts are resampled. None without a pair, or where either took no time.
    """
    parts = np.stack([ours.work, ours.time, theirs.work, theirs.time])
    there = ~np.isnan(parts).any(axis=0)
    parts = np.where(there, parts, 0.0)
    if not (parts.sum(axis=(1, 2)) > 0).all():
        return None
    rng = np.random.default_rng(seed)
    if there.shape[1] < 2:
        parts, there = parts.transpose(0, 2, 1), there.T
    # Each row keeps its number of valid entries: they are moved to the front and drawn from.
    order = np.argsort(~there, axis=1, kind="stable")
    parts = np.take_along_axis(parts, order[None], axis=2)
    counts = there.sum(axis=1)
    drawn = (rng.random((RESAMPLES, *there.shape)) * counts[:, None]).astype(np.intp)
    kept = np.arange(there.shape[1]) < counts[:, None]
    rows = np.arange(there.shape[0])[:, None]
    sums = [np.where(kept, part[rows, drawn], 0.0).sum(axis=(1, 2)) for part in parts]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (sums[0] / sums[1]) / (sums[2] / sums[3])
    ratios = ratios[np.isfinite(ratios)]
    lo, hi = np.percentile(ratios, INTERVAL)
    return Interval(float(np.median(ratios)), float(lo), float(hi), int(there.sum()))
