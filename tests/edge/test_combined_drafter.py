"""Which of two drafters guesses."""

from collections.abc import Sequence

import pytest

from ecd.edge.acceptance import Acceptance
from ecd.edge.combined_drafter import CombinedDrafter
from ecd.edge.drafter import DraftTask, Prefill
from ecd.edge.lookup_drafter import LookupDrafter, confidence
from ecd.edge.meter import Meter
from ecd.sampling import Guess, Sampling

COPIED = [1, 2, 3, 4, 5, 6, 1, 2, 3]
NEW = [1, 2, 3, 4, 5, 6, 7]
MODEL_SAYS = Guess(99, 0.9)


class FakeModel:
    slots, branches, slot_tokens = 2, 3, 100

    def __init__(self) -> None:
        self.calls: list[list[DraftTask]] = []
        self.released: list[int] = []
        self.closed = False

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        self.calls.append(list(tasks))
        return [(MODEL_SAYS,) for _ in tasks]

    def release(self, slot: int) -> None:
        self.released.append(slot)

    def prefill(self, slot: int) -> Prefill:
        return Prefill(slot, 7)

    def stats(self) -> dict[str, int]:
        return {"hits": 3}

    def close(self) -> None:
        self.closed = True


def system(meter: Meter | None = None) -> tuple[CombinedDrafter, FakeModel, Acceptance]:
    model, acceptance = FakeModel(), Acceptance()
    lookup = LookupDrafter(slots=2, branches=3, slot_tokens=100)
    return CombinedDrafter(model, lookup, acceptance, meter or Meter()), model, acceptance


def task(context: list[int], *, slot: int = 0, model: bool = True) -> DraftTask:
    return DraftTask(slot, 0, context, 1, len(context), Sampling(), 2, model)


def learn(acceptance: Acceptance, drafter: str, sure: float, share: float) -> None:
    for index in range(200):
        acceptance.settle(drafter, sure, index % 20 < share * 20)


def tokens(runs: list[tuple[Guess, ...]]) -> list[list[int]]:
    return [[guess.token for guess in run] for run in runs]


def test_a_copied_run_that_comes_true_as_often_saves_the_forward() -> None:
    combined, model, acceptance = system()
    learn(acceptance, "model", 0.9, 0.8)
    learn(acceptance, "lookup", confidence(3), 0.9)
    assert tokens(combined.draft([task(COPIED)])) == [[4, 5]]
    assert model.calls == []


def test_a_copied_run_that_seldom_comes_true_is_left() -> None:
    combined, _, acceptance = system()
    learn(acceptance, "model", 0.9, 0.8)
    learn(acceptance, "lookup", confidence(3), 0.4)
    assert tokens(combined.draft([task(COPIED)])) == [[99]]


@pytest.mark.parametrize(
    ("draft_s", "step_s", "rtt_s", "copies"),
    [(0.001, 0.040, 0.000, False), (0.004, 0.040, 0.000, True), (0.004, 0.040, 0.200, False)],
)
def test_a_slow_model_is_spared_and_a_long_way_makes_an_error_dearer(
    draft_s: float, step_s: float, rtt_s: float, copies: bool
) -> None:
    # Copied runs come true 0.05 less often: copying must save that much of step and round trip.
    combined, _, acceptance = system(Meter(rtt_s, 0.0, draft_s, step_s))
    learn(acceptance, "model", 0.9, 0.8)
    learn(acceptance, "lookup", confidence(3), 0.75)
    assert (tokens(combined.draft([task(COPIED)])) == [[4, 5]]) == copies


def test_however_slow_the_model_is_copies_that_seldom_come_true_are_left() -> None:
    combined, _, acceptance = system(Meter(0.0, 0.0, 0.04, 0.04))
    learn(acceptance, "model", 0.9, 0.8)
    learn(acceptance, "lookup", confidence(3), 0.6)
    assert tokens(combined.draft([task(COPIED)])) == [[99]]


def test_an_answer_learns_what_copies_are_worth_in_it() -> None:
    combined, _, acceptance = system()
    learn(acceptance, "model", 0.9, 0.8)
    learn(acceptance, "lookup", confidence(3), 0.9)
    text = list(COPIED)
    for new in range(10, 16):
        # Each time 4 would be copied, and something else comes.
        combined.draft([task(text)])
        text = [*text, new, 1, 2, 3]
    assert tokens(combined.draft([task(text)])) == [[99]]
    assert tokens(combined.draft([task(COPIED, slot=1)])) == [[4, 5]], "another answer has its own record"
    combined.release(0)
    assert tokens(combined.draft([task(COPIED)])) == [[4, 5]], "and so has the next one in the slot"


def test_what_became_of_an_answers_copies_is_known_outside() -> None:
    combined, _, acceptance = system()
    assert acceptance.copies[0].mean is None
    combined.draft([task(COPIED)])
    combined.draft([task([*COPIED, 4, 9])])
    assert acceptance.copies[0].mean == 1.0
    assert acceptance.copies[1].mean is None
    combined.release(0)
    assert acceptance.copies[0].mean is None


def test_a_copy_behind_a_wrong_guess_does_not_count() -> None:
    combined, _, acceptance = system()
    learn(acceptance, "model", 0.9, 0.8)
    learn(acceptance, "lookup", confidence(3), 0.9)
    text = list(COPIED)
    for new in range(10, 30):
        guessed = DraftTask(0, 0, [*text, 4], 1, len(text), Sampling(), 2)
        assert tokens(combined.draft([guessed])) == [[5, 6]]
        text = [*text, new, 1, 2, 3]


def test_all_that_need_the_model_go_in_one_call() -> None:
    combined, model, acceptance = system()
    learn(acceptance, "model", 0.9, 0.5)
    learn(acceptance, "lookup", confidence(3), 0.9)
    asked = [task(NEW), task(COPIED, slot=1), task([*NEW, 8])]
    assert tokens(combined.draft(asked)) == [[99], [4, 5], [99]]
    assert model.calls == [[asked[0], asked[2]]]


def test_without_the_model_there_is_only_lookup() -> None:
    combined, model, acceptance = system()
    learn(acceptance, "lookup", confidence(3), 0.3)
    learn(acceptance, "model", 0.5, 0.3)
    runs = combined.draft([task(COPIED, model=False), task(NEW, slot=1, model=False)])
    assert tokens(runs) == [[4, 5], []]
    learn(acceptance, "model", 0.5, 0.9)
    assert tokens(combined.draft([task(COPIED, model=False)])) == [[]], "better wait for the model"
    assert model.calls == []


def test_both_forget_a_slot_and_both_close() -> None:
    combined, model, _ = system()
    combined.draft([task(COPIED, model=False)])
    combined.release(0)
    assert model.released == [0]
    assert tokens(combined.draft([task([7, 1, 2, 3], model=False)])) == [[]]
    combined.close()
    assert model.closed


def test_it_is_as_large_as_its_model() -> None:
    combined, _, _ = system()
    assert (combined.slots, combined.branches, combined.slot_tokens) == (2, 3, 100)
