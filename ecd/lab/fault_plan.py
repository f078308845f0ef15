"""What goes wrong during a soak, and when: drawn before it starts.

Pure. Knows neither links nor processes.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

# Daemons are killed in this share of the time only; what lives on then shows whether memory grows.
KILLING = 2 / 3
# Some of these are longer than the silence after which a peer counts as dead.
LONGEST_S = 4.0


class Kind(StrEnum):
    """What can go wrong."""

    CUT = "cut"  # every connection is reset
    STALL = "stall"  # nothing arrives for a while
    HALF_OPEN = "half-open"  # all is lost for a while, and no connection is closed
    CORRUPT = "corrupt"  # the next bytes each way are others
    FULL_DISK = "full disk"  # nothing of the KV caches can be kept for a while
    EXPIRED = "expired token"  # the cloud takes no edge for a while
    KILL_CLOUD = "kill -9 cloud"
    KILL_EDGE = "kill -9 edge"


KILLS = (Kind.KILL_CLOUD, Kind.KILL_EDGE)


@dataclass(frozen=True, slots=True)
class Fault:
    """`for_s`: how long what passes lasts. `which`: of the edges, modulo their number."""

    at_s: float
    kind: Kind
    for_s: float
    which: int


def draw_faults(kinds: Sequence[Kind], seed: int, seconds: float, every_s: float) -> Iterator[Fault]:
    """Faults in the order of their times, `every_s` apart on average; all kinds alike, kills early only."""
    rng = random.Random(seed)
    at_s = rng.expovariate(1 / every_s)
    while at_s < seconds:
        possible = [kind for kind in kinds if at_s < KILLING * seconds or kind not in KILLS]
        yield Fault(at_s, rng.choice(possible), rng.uniform(0.1, LONGEST_S), rng.randrange(1 << 16))
        at_s += rng.expovariate(1 / every_s)
