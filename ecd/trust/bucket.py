"""The token bucket: so much per second, and a second's worth at once.

Pure; time is passed in, in seconds on any monotonic clock.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class TokenBucket:
    """Fills at `rate` per second up to `rate`; what was taken beyond is a debt that has to be waited for.

    (J. Turner 1986, 'New directions in communications'; that variant in which what has happened already is
    charged for afterwards.) The debt is at most one second's worth, so that nobody waits for ever.
    """

    rate: float
    level: float
    at: float

    @classmethod
    def full(cls, rate: float, now: float) -> "TokenBucket":
        """One from which nothing was taken yet."""
        return cls(rate, rate, now)

    def take(self, amount: float, now: float) -> None:
        """Takes what was used, whether it is there or not."""
        self._fill(now)
        self.level = max(-self.rate, self.level - amount)

    def wait_s(self, now: float) -> float:
        """How long until the debt is paid; 0 without one."""
        self._fill(now)
        return max(0.0, -self.level / self.rate)

    def _fill(self, now: float) -> None:
        self.level = min(self.rate, self.level + max(0.0, now - self.at) * self.rate)
        self.at = now
