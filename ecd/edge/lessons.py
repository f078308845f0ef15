"""What one answer teaches of guesses: how many were made, which were right, how many were copies.

Pure. Owns what is to be learned until there is time for it: tokens are shown first. What follows from it is
decided by those who are told, acceptance and the pacing controller.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ecd.decayed_rate import DecayedRate
from ecd.edge.acceptance import Rates
from ecd.edge.lines import Settled
from ecd.edge.pacing import Conditions, Pacer
from ecd.edge.tally import Tally
from ecd.sampling import Guess

# Guesses over which the share of copied ones is told, and how many of the model's it begins with.
COPIED_MEMORY, COPIED_WEIGHT = 16.0, 4.0


@dataclass(slots=True)
class Lessons:
    """`teaches`: what is learned is for those who decide by it, from what they do; not so at a fixed pace."""

    acceptance: Rates
    pacer: Pacer
    tally: Tally
    teaches: bool
    _settled: list[tuple[Guess, int, bool]] = field(default_factory=list)
    _copied: DecayedRate = field(default_factory=lambda: DecayedRate(COPIED_MEMORY))

    @property
    def copied_share(self) -> float:
        """Of the newest guesses, those that were copied text."""
        return self._copied.estimate(0.0, COPIED_WEIGHT)

    def applied(self, conditions: Conditions | None) -> Conditions | None:
        """What was measured, for this answer: copied guesses take no time."""
        if conditions is None:
            return None
        return replace(conditions, draft_s=(1 - self.copied_share) * conditions.draft_s)

    def drafted(self, guesses: Sequence[Guess]) -> None:
        """These were made, whatever becomes of them."""
        for guess in guesses:
            self.tally.drafted += 1
            self.acceptance.drafted(guess.drafter)
            self._copied.add(guess.drafter != "model")

    def settled(self, settled: Settled) -> None:
        """A committed token has shown whether a guess was right; `learn` is to follow."""
        if settled.guess is not None:
            self._settled.append((settled.guess, settled.place, settled.right))

    def learn(self, *, model: bool) -> None:
        """Learns what was settled. `model`: whether the draft model is used now."""
        for guess, place, right in self._settled:
            self._learn(guess, place, right=right, model=model)
        self._settled.clear()

    def late(self, guess: Guess, *, right: bool, model: bool) -> None:
        """A guess came too late to be sent, and is still a lesson: the text before it was right."""
        self._learn(guess, 0, right=right, model=model)

    def audited(self, confidence: float, *, agreed: bool) -> None:
        """The cloud has compared a token of the edge."""
        if self.teaches:
            self.acceptance.settle("model", confidence, agreed)

    def _learn(self, guess: Guess, place: int, *, right: bool, model: bool) -> None:
        self.tally.settled += 1
        self.tally.right += right
        if self.teaches:
            self.acceptance.settle(guess.drafter, guess.confidence, right)
            if model:
                self.pacer.settle(place, right)
