"""How long a run of guesses stays right: acceptance by place behind the last fork.

Pure counting, and the curve that follows from it. It does not know what is decided by it.
"""

import functools
import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any, Protocol

from ecd.decayed_rate import DecayedRate

# Places behind a fork (from 0) at which a new group begins whose acceptance is counted together.
GROUPS = (0, 1, 2, 4)
# The same for readers, who count from 1.
GROUP_NAMES = ("1", "2", "3-4", "5+")
# What a session's own counts are weighed against: so many guesses' worth of what the whole edge has seen.
PRIOR_WEIGHT = 4.0
SESSION_MEMORY = 64.0
EDGE_MEMORY = 512.0
FIRST_RATE = 0.7
# Places that a curve tells, and its grain.
HORIZON = 64
LEAST_FAILURE, RATE_STEP = 0.004, math.log(1.25)


class Prior(Protocol):
    """What a session leans on while it has few counts of its own: `Survival` of the whole edge."""

    @property
    def rate(self) -> float: ...

    def settle(self, place: int, right: bool) -> None: ...


@dataclass(slots=True)
class Survival:
    """How often guesses are right by their place behind a fork; all groups of places share one memory."""

    memory: float
    total: DecayedRate = field(init=False)
    groups: tuple[DecayedRate, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.total = DecayedRate(self.memory)
        self.groups = tuple(DecayedRate(self.memory) for _ in GROUPS)

    def settle(self, place: int, right: bool) -> None:
        """The guess at `place` (from 0) behind the last fork came true or did not."""
        self.total.add(right)
        here = self.groups[bisect_right(GROUPS, place) - 1]
        for group in self.groups:
            if group is here:
                group.add(right)
            else:
                group.fade()

    @property
    def rate(self) -> float:
        """Share of guesses that were right, all places together."""
        return self.total.estimate(FIRST_RATE, PRIOR_WEIGHT)

    def rates(self, prior: "Prior | None") -> list[float]:
        """Acceptance by group of places; few counts lean on the session's mean, and that on `prior`."""
        mean = self.total.estimate(FIRST_RATE if prior is None else prior.rate, PRIOR_WEIGHT)
        return [group.estimate(mean, PRIOR_WEIGHT) for group in self.groups]

    def curve(self, prior: "Prior | None") -> tuple[float, ...]:
        """curve[j]: the chance that the first j guesses are all right; [0] is 1.

        In steps coarse enough that decisions can be remembered.
        """
        return _curve(tuple(_level(rate) for rate in self.rates(prior)))

    def told(self, prior: "Prior | None") -> dict[str, dict[str, Any]]:
        """As `stats` shows it, by group: the rate that decisions go by, and the guesses settled in it."""
        return {
            name: {"rate": rate, "settled": group.trials}
            for name, rate, group in zip(GROUP_NAMES, self.rates(prior), self.groups, strict=True)
        }


def _level(rate: float) -> int:
    """The chance of failing in steps of a quarter: 0.99 and 0.97 are as far apart as 0.5 and 0.1."""
    return round(math.log(max(1 - rate, LEAST_FAILURE)) / RATE_STEP)


@functools.lru_cache(maxsize=4096)
def _curve(levels: tuple[int, ...]) -> tuple[float, ...]:
    curve, chance = [1.0], 1.0
    while chance > 1e-3 and len(curve) <= HORIZON:
        level = levels[bisect_right(GROUPS, len(curve) - 1) - 1]
        chance *= 1 - min(1.0, math.exp(level * RATE_STEP))
        curve.append(chance)
    return tuple(curve)
