"""How long clients wait for tokens: for an answer's first one, and from one to the next.

Pure: times are passed in. Owns the buckets that they are counted in.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
INTER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0)


@dataclass(slots=True)
class Histogram:
    """Times in seconds by `bounds`, ascending: `counts[i]` are up to `bounds[i]`, the last one all beyond."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    sum_s: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float, times: int = 1) -> None:
        """Counts a time, so many times."""
        self.counts[bisect_left(self.bounds, seconds)] += times
        self.sum_s += seconds * times


@dataclass(slots=True)
class Latencies:
    """Of all answers since the start, by token.

    Tokens that come together have the wait before the first of them and 0 for the others, so that the mean of
    `inter_token` is the time that a token takes.
    """

    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_S))
    inter_token: Histogram = field(default_factory=lambda: Histogram(INTER_TOKEN_S))

    def came(self, tokens: int, waited_s: float, *, first: bool) -> None:
        """So many tokens of an answer came together, its first ones or `waited_s` after those before."""
        (self.first_token if first else self.inter_token).add(waited_s)
        self.inter_token.add(0.0, tokens - 1)
