"""Two drafters as one: copied runs where they are worth more than the draft model's next guess.

Owns the choice between the two, per task. It knows neither engines nor how acceptance is counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ecd.decayed_rate import DecayedRate
from ecd.edge.acceptance import PRIOR_GUESSES, Acceptance
from ecd.edge.drafter import Drafter, DraftTask, Prefill
from ecd.edge.lookup_drafter import LookupDrafter
from ecd.edge.meter import Meter
from ecd.sampling import Guess

# What a draft model's guesses are taken to be worth before the first of them is settled.
UNKNOWN_MEAN = 0.7
# A copy may be so much less likely to come true than the model's guess, however slow the model is.
MOST_MARGIN = 0.08
# Of a slot's own record of copies: over how many it fades, and how many may wait.
MEMORY, MOST_PENDING = 16.0, 64


@dataclass(slots=True)
class _Copies:
    """What became of the copies that one slot's text offered, taken or not.

    A copy is kept with the number of committed tokens then and the guesses between them and it: only if those
    came true did it have its chance.
    """

    record: DecayedRate = field(default_factory=lambda: DecayedRate(MEMORY))
    pending: list[tuple[int, Sequence[int], int]] = field(default_factory=list)

    def settle(self, task: DraftTask) -> None:
        """The task tells more committed tokens."""
        waiting = []
        for copy in self.pending:
            start, between, token = copy
            position = start + len(between)
            if position >= task.committed:
                waiting.append(copy)
            elif list(task.context[start:position]) == between:
                self.record.add(task.context[position] == token)
        self.pending = waiting

    def offer(self, task: DraftTask, token: int) -> None:
        """`token` would be copied behind the task's context."""
        self.pending.append((task.committed, list(task.context[task.committed :]), token))
        del self.pending[:-MOST_PENDING]

    def rate(self, edge: float) -> float:
        """The chance of a copy here, where it is `edge` for all answers of the edge."""
        return self.record.estimate(edge, PRIOR_GUESSES)


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
        self._copies: dict[int, _Copies] = {}
        for slot in range(model.slots):
            self._forget_copies(slot)

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        """A copied run, or else the model's guesses, all of them from one call."""
        runs = self._lookup.draft(tasks)
        for task, run in zip(tasks, runs, strict=True):
            if task.branch == 0:
                self._copies[task.slot].settle(task)
                if run:
                    self._copies[task.slot].offer(task, run[0].token)
        unworthy = [i for i, task in enumerate(tasks) if not self._worth(task, runs[i])]
        for index in unworthy:
            runs[index] = ()
        asked = [index for index in unworthy if tasks[index].model]
        if asked:
            for index, guesses in zip(asked, self._model.draft([tasks[i] for i in asked]), strict=True):
                runs[index] = guesses
        return runs

    def _worth(self, task: DraftTask, run: tuple[Guess, ...]) -> bool:
        """Whether copying gains more than asking the model.

        A right guess saves one target step; a wrong one makes those behind it worthless and new ones arrive a
        round trip later. So a copied guess with chance r gains r * step - (1 - r) * rtt, and the model's,
        with chance m, costs a draft on top: copying gains more when r >= m - draft / (step + rtt).
        At most MOST_MARGIN is given: the draft runs beside the step and seldom costs all of its time.
        """
        if not run:
            return False
        mean, conditions = self._acceptance.mean("model"), self._meter.conditions
        margin = conditions.draft_s / (conditions.step_s + conditions.rtt_s) if conditions else 0.0
        least = (UNKNOWN_MEAN if mean is None else mean) - min(margin, MOST_MARGIN)
        edge = self._acceptance.rate("lookup", run[0].confidence)
        return self._copies[task.slot].rate(edge) >= least

    def release(self, slot: int) -> None:
        """Forgets what the slot held."""
        self._model.release(slot)
        self._lookup.release(slot)
        self._forget_copies(slot)

    def prefill(self, slot: int) -> Prefill:
        """The model's: copying reads nothing."""
        return self._model.prefill(slot)

    def stats(self) -> dict[str, int]:
        """The model's."""
        return self._model.stats()

    def _forget_copies(self, slot: int) -> None:
        copies = self._copies[slot] = _Copies()
        self._acceptance.copies[slot] = copies.record

    def close(self) -> None:
        """Frees the engine."""
        self._model.close()
        self._lookup.close()
