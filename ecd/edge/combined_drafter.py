"""Two drafters as one: copied runs where they are worth more than the draft model's next guess.

Owns the choice between the two, per task. It knows neither engines nor how acceptance is counted.
"""

from collections.abc import Sequence

from ecd.edge.acceptance import Acceptance
from ecd.edge.drafter import Drafter, DraftTask
from ecd.edge.lookup_drafter import LookupDrafter
from ecd.edge.meter import Meter
from ecd.sampling import Guess

# What a draft model's guesses are taken to be worth before the first of them is settled.
UNKNOWN_MEAN = 0.7


class CombinedDrafter:
    """`Drafter` that asks `lookup` first and the draft model for what lookup cannot do as well."""

    def __init__(self, model: Drafter, lookup: LookupDrafter, acceptance: Acceptance, meter: Meter):
        self.slots = model.slots
        self.branches = model.branches
        self.slot_tokens = model.slot_tokens
        self._model = model
        self._lookup = lookup
        self._acceptance = acceptance
        self._meter = meter

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        """A copied run, or else the model's guesses, all of them from one call."""
        runs = self._lookup.draft(tasks)
        asked = [i for i, task in enumerate(tasks) if task.model and not self._worth(runs[i])]
        if asked:
            for index, guesses in zip(asked, self._model.draft([tasks[i] for i in asked]), strict=True):
                runs[index] = guesses
        return runs

    def _worth(self, run: tuple[Guess, ...]) -> bool:
        """Whether copying gains more than asking the model.

        A right guess saves one target step; a wrong one makes those behind it worthless and new ones arrive a
        round trip later. So a copied guess with chance r gains r * step - (1 - r) * rtt, and the model's,
        with chance m, costs a draft on top: copying gains more when r >= m - draft / (step + rtt).
        """
        if not run:
            return False
        mean, conditions = self._acceptance.mean("model"), self._meter.conditions
        margin = conditions.draft_s / (conditions.step_s + conditions.rtt_s) if conditions else 0.0
        least = (UNKNOWN_MEAN if mean is None else mean) - margin
        return self._acceptance.rate("lookup", run[0].confidence) >= least

    def release(self, slot: int) -> None:
        """Forgets what the slot held."""
        self._model.release(slot)
        self._lookup.release(slot)

    def close(self) -> None:
        """Frees the engine."""
        self._model.close()
        self._lookup.close()
