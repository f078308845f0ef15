"""What an answer teaches of guesses, and when."""

import pytest
from talk import CONDITIONS, Scripted

from ecd.edge.acceptance import Acceptance
from ecd.edge.lessons import Lessons
from ecd.edge.lines import Settled
from ecd.edge.tally import Tally
from ecd.sampling import Guess

MODEL, COPY = Guess(1, 0.9), Guess(2, 0.9, "lookup")


def lessons(*, teaches: bool = True) -> Lessons:
    return Lessons(Acceptance(), Scripted(), Tally(), teaches)


def settled_at(taught: Lessons) -> int:
    totals = taught.acceptance.totals()  # type: ignore[attr-defined]
    return int(totals.get("model", {}).get("settled", 0))


def test_what_was_settled_is_learned_later_and_once() -> None:
    taught = lessons()
    for right in (True, True, False):
        taught.settled(Settled(MODEL, 3, right, False))
    taught.settled(Settled(None, 0, False, False))
    assert (taught.tally.settled, settled_at(taught)) == (0, 0)
    taught.learn(model=True)
    taught.learn(model=True)
    assert (taught.tally.settled, taught.tally.right, settled_at(taught)) == (3, 2, 3)
    assert taught.pacer.places == [(3, True), (3, True), (3, False)]  # type: ignore[attr-defined]


def test_while_the_model_is_quiet_places_teach_nothing() -> None:
    taught = lessons()
    taught.settled(Settled(COPY, 0, True, False))
    taught.learn(model=False)
    assert taught.tally.settled == 1
    assert taught.pacer.places == []  # type: ignore[attr-defined]


def test_an_answer_of_fixed_pace_counts_and_teaches_nobody() -> None:
    taught = lessons(teaches=False)
    taught.late(MODEL, right=True, model=True)
    taught.audited(0.9, agreed=True)
    assert (taught.tally.settled, settled_at(taught)) == (1, 0)


def test_copied_guesses_take_no_time() -> None:
    taught = lessons()
    assert taught.applied(None) is None
    assert taught.applied(CONDITIONS) == CONDITIONS
    for _ in range(200):
        taught.drafted([MODEL, COPY])
    assert taught.tally.drafted == 400
    applied = taught.applied(CONDITIONS)
    assert applied is not None
    assert applied.draft_s == pytest.approx(CONDITIONS.draft_s / 2, rel=0.2)
    assert applied.step_s == CONDITIONS.step_s
