"""How often something came true, with old cases counting less and less.

Pure counting. It does not know what is counted, nor what is decided by it.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class DecayedRate:
    """Share of successes among trials; one counts 1/e when about `memory` others have followed it."""

    memory: float
    trials: float = 0.0
    successes: float = 0.0

    def add(self, success: bool) -> None:
        """One more trial."""
        self.fade()
        self.trials += 1
        self.successes += success

    def fade(self) -> None:
        """A trial elsewhere that shares this memory: what is known here becomes older."""
        self.keep(1 - 1 / self.memory)

    def keep(self, share: float) -> None:
        """What is known here counts so much of what it did."""
        self.trials *= share
        self.successes *= share

    def estimate(self, prior: float, weight: float) -> float:
        """(successes + weight * prior) / (trials + weight): the mean of a Beta posterior."""
        return (self.successes + weight * prior) / (self.trials + weight)

    @property
    def mean(self) -> float | None:
        """successes / trials; None before the first."""
        return self.successes / self.trials if self.trials else None
