"""A generation whose events are noted, and one that is told them again.

Owns what a generation shares with others, acceptance and survival, as it hears of them: noted with each
event, and said again in a replay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ecd.edge.acceptance import Acceptance, Rates
from ecd.edge.generation import Generation
from ecd.edge.pacing import Pacer
from ecd.edge.request import Request
from ecd.edge.survival import EDGE_MEMORY, Prior, Survival
from ecd.journal import Difference, Hearing, Journal, Retelling, arguments, replay


@dataclass(frozen=True, slots=True)
class OverheardRates:
    """Rates of guesses, with a listener."""

    rates: Rates
    journal: Hearing

    def rate(self, drafter: str, confidence: float) -> float:
        """As `Acceptance.rate`."""
        return self.journal.hear(self.rates.rate(drafter, confidence))

    def copy_rate(self, slot: int | None, confidence: float, before: int) -> float:
        """As `Acceptance.copy_rate`."""
        return self.journal.hear(self.rates.copy_rate(slot, confidence, before))

    def drafted(self, drafter: str, guesses: int = 1) -> None:
        """As `Acceptance.drafted`."""
        self.rates.drafted(drafter, guesses)

    def settle(self, drafter: str, confidence: float, right: bool) -> None:
        """As `Acceptance.settle`."""
        self.rates.settle(drafter, confidence, right)


@dataclass(frozen=True, slots=True)
class OverheardPrior:
    """What the whole edge has seen, with a listener."""

    prior: Prior
    journal: Hearing

    @property
    def rate(self) -> float:
        """As `Survival.rate`."""
        return self.journal.hear(self.prior.rate)

    def settle(self, place: int, right: bool) -> None:
        """As `Survival.settle`."""
        self.prior.settle(place, right)


def begun(journal: Journal, request: Request, slot: int | None, rates: Rates, prior: Prior) -> Generation:
    """A generation that notes its events."""
    told = {"request": request, "slot": slot}
    journal.begin(told, len(request.prompt))
    return _generation(journal, request, slot, rates, prior)


def _generation(
    journal: Hearing, request: Request, slot: int | None, rates: Rates, prior: Prior
) -> Generation:
    pacer = Pacer(request.objective, OverheardPrior(prior, journal))
    generation = Generation(request, OverheardRates(rates, journal), pacer, slot=slot)
    generation.journal = journal
    return generation


def retrace(entries: Sequence[Mapping[str, Any]]) -> Difference | None:
    """Where a generation, told these events again, first answers otherwise. Raises BadRequest."""

    retelling = Retelling()

    def begin(request: Request, slot: int | None) -> Generation:
        return _generation(retelling, request, slot, Acceptance(), Survival(EDGE_MEMORY))

    return replay(begin(**arguments(begin, entries[0]["args"])), retelling, entries[1:])
