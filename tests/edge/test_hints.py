"""When hints leave, what a frame carries, and what the cloud is told of the pace."""

import math
from dataclasses import replace
from typing import Any

import pytest
from talk import CONDITIONS, ROUNDS, Talk, drafts, hints, opening

from ecd.cloud.session import Session, Vocabulary
from ecd.edge.departure import last_moment
from ecd.edge.hints import AT_ONCE
from ecd.edge.pacing import Objective, Pace
from ecd.sampling import Guess, Verdict
from ecd.wire.messages import ENDLESS_US, Draft
from ecd.wire.messages import Pace as WirePace

# --- frames, where the request fixes them


def test_fixed_hints_are_gathered_and_flushed_at_the_bound() -> None:
    talk = Talk(hint_tokens=3, ahead=5)
    talk.open()
    assert hints(talk.draft(1, 2)) == []
    assert hints(talk.draft(3)) == [(3, 3, (1, 2, 3))]
    assert hints(talk.draft(4)) == []
    assert hints(talk.draft(5)) == [(3, 6, (4, 5))], "no more can come"


def test_gathered_hints_that_were_committed_meanwhile_are_not_sent() -> None:
    talk = Talk(hint_tokens=3, ahead=9)
    talk.open()
    talk.draft(1, 2)
    talk.commit(1)
    assert hints(talk.draft(3)) == []
    assert hints(talk.draft(4)) == [(4, 4, (2, 3, 4))]
    talk.draft(5, 6)
    talk.commit(2, 3, 4, 5, 6, 7)
    assert hints(talk.draft(8, 9, 10)) == [(10, 10, (8, 9, 10))]


def test_strict_rounds_send_exactly_k_and_wait() -> None:
    talk = Talk(pace=Pace(16), **ROUNDS)
    assert opening(talk.open()).pace == WirePace(ENDLESS_US, 3)
    for first in (1, 11, 21):
        assert hints(talk.at(talk.now + 5).draft(first, first + 1)) == []
        assert talk.g.next_timer() is None, "the cloud does not go on without them"
        ((_, _, ids),) = hints(talk.draft(first + 2))
        assert ids == (first, first + 1, first + 2)
        assert talk.g.next_tasks(1) == []
        assert hints(talk.commit(first, 99, accepted=1)) == []


def test_a_strict_round_at_the_end_of_the_text_is_shorter() -> None:
    talk = Talk(max_tokens=3, **ROUNDS)
    talk.open()
    assert hints(talk.draft(1, 2)) == [(3, 3, (1, 2)), (3, 3, ())]


def test_strict_rounds_draft_on_however_unlikely_the_guesses_are() -> None:
    talk = Talk(**ROUNDS)
    talk.open()
    assert len(hints(talk.draft(1, 2, 3, confidence=0.02))) == 1


def test_a_cloud_that_waits_for_more_gets_what_is_missing() -> None:
    talk = Talk(patience_us=ENDLESS_US, hint_tokens=3, ahead=9)
    talk.open()
    talk.draft(1, 2, 3)
    assert hints(talk.commit(1, accepted=1)) == []
    assert hints(talk.draft(4)) == [(4, 6, (4,))]


# --- frames, where the controller decides


def test_under_latency_no_hint_waits_while_the_cloud_has_few() -> None:
    talk = Talk(pace=Pace(32), objective=Objective.LATENCY)
    talk.open()
    assert hints(talk.draft(*range(AT_ONCE))) == [(3, 3 + token, (token,)) for token in range(AT_ONCE)]
    assert hints(talk.draft(70, 71)) == []
    assert hints(talk.g.timeout(talk.timer())) == [(3, 3 + AT_ONCE, (70, 71))]


def test_under_balanced_a_step_gets_one_frame() -> None:
    talk = Talk(pace=Pace(16))
    talk.open()
    assert hints(talk.at(0.005).draft(1, 2)) == []
    first = talk.timer()
    assert hints(talk.at(0.015).draft(3)) == []
    assert talk.timer() == first, "the next step has not moved"
    assert hints(talk.g.timeout(first - 0.001)) == []
    assert hints(talk.g.timeout(first)) == [(3, 3, (1, 2, 3))]
    assert talk.g.next_timer() is None
    assert talk.g.timeout(first + 1) == []


@pytest.mark.parametrize(("there", "forward_s"), [(0, 0.1), (2, 0.12), (5, 0.13)])
def test_hints_leave_for_the_step_behind_the_one_that_verifies_what_is_there(
    there: int, forward_s: float
) -> None:
    """The last step verified three; the one under way has as many, or fewer where fewer were there."""
    talk = Talk(pace=Pace(16))
    talk.conditions = replace(CONDITIONS, token_s=0.01)
    talk.open()
    talk.draft(1, *range(2, 2 + there))
    talk.g.timeout(talk.timer())
    talk.at(10.0).commit(1, verified=3)
    talk.at(10.03).draft(9)
    assert talk.timer() == last_moment(talk.conditions, 10.0, min(there, 3), 10.03)
    steps = (talk.timer() + CONDITIONS.rtt_s - 10.0) / forward_s
    assert 0.9 < steps - int(steps) < 1


def test_an_uncertain_link_makes_hints_leave_earlier() -> None:
    talk = Talk(pace=Pace(16))
    talk.open()
    talk.draft(1)
    steady = talk.timer()
    talk.conditions = replace(CONDITIONS, jitter_s=0.01)
    talk.commit(1, accepted=1)
    talk.draft(2)
    assert talk.timer() == pytest.approx(steady - 0.02)


def test_hints_that_are_overdue_when_another_comes_go_with_it() -> None:
    """The timer and the drafter may be ready at the same time, in either order."""
    talk = Talk(pace=Pace(16))
    talk.open()
    talk.draft(1)
    assert hints(talk.at(talk.timer() + 0.0001).draft(2)) == [(3, 3, (1, 2))]


def test_a_patient_cloud_gets_what_it_waits_for_at_once_and_more_in_time() -> None:
    talk = Talk(pace=Pace(16, gather=2, patience_s=2.0))
    talk.open()
    assert hints(talk.draft(1)) == []
    assert hints(talk.draft(2)) == [(3, 3, (1, 2))]
    assert hints(talk.draft(3)) == []
    assert hints(talk.g.timeout(talk.timer())) == [(3, 5, (3,))]
    assert hints(talk.commit(1, 2, accepted=2)) == []
    assert hints(talk.draft(4)) == [(5, 6, (4,))], "one is there"


def test_a_cloud_of_no_end_of_patience_is_sent_no_fewer() -> None:
    talk = Talk(pace=Pace(16, gather=3, patience_s=math.inf))
    talk.open()
    assert hints(talk.draft(1, 2)) == []
    assert talk.g.next_timer() is None
    assert hints(talk.draft(3)) == [(3, 3, (1, 2, 3))]
    assert hints(talk.draft(4)) == []
    assert talk.g.next_timer() is not None, "the step after that may take it too"


def test_after_a_fork_hints_go_as_ever() -> None:
    talk = Talk(pace=Pace(16))
    talk.open()
    talk.draft(1, 2)
    talk.commit(9)
    assert talk.g.next_timer() is None, "nothing is left to send"
    assert hints(talk.draft(3)) == []
    assert hints(talk.g.timeout(talk.timer())) == [(4, 4, (3,))]


def test_what_is_ready_just_when_hints_had_to_leave_does_not_wait_for_the_next_step() -> None:
    talk = Talk(pace=Pace(16))
    talk.open()
    talk.draft(1)
    due = talk.timer()
    talk.g.timeout(due)
    assert hints(talk.at(due + 0.001).draft(2)) == [(3, 4, (2,))]
    assert hints(talk.at(due + 0.02).draft(3)) == []


# --- a pace that changes


def test_a_changed_pace_goes_with_the_next_hints_once() -> None:
    talk = Talk(pace=Pace(16, gather=1, patience_s=0.5))
    talk.open()
    assert [draft.pace for draft in drafts(talk.draft(1))] == [WirePace(500_000, 1)]
    talk.pacer.says = Pace(16, gather=2, patience_s=0.5)
    talk.commit(1, accepted=1)
    assert [draft.pace for draft in drafts(talk.draft(2, 3))] == [WirePace(500_000, 2)]
    talk.commit(2, 3, accepted=2)
    assert [draft.pace for draft in drafts(talk.draft(4, 5))] == [None]


def test_a_cloud_that_waits_is_told_when_no_more_hints_come() -> None:
    talk = Talk(pace=Pace(2, gather=4, patience_s=1.0))
    talk.open()
    assert talk.draft(1, 2) == [], "something may be copied behind them"
    assert hints(talk.done(talk.task())) == [(3, 3, (1, 2)), (3, 3, ())]
    assert talk.commit(1, accepted=1)[1:] == [], "there is room again"
    assert hints(talk.draft(3)) == [], "the cloud does not wait now"
    assert hints(talk.g.timeout(talk.timer())) == [(4, 5, (3,))]
    assert hints(talk.done(talk.task())) == [(4, 4, ())]


def test_a_cloud_that_does_not_wait_need_not_be_told() -> None:
    talk = Talk(pace=Pace(2, gather=4))
    talk.open()
    talk.draft(1, 2)
    assert hints(talk.g.timeout(talk.timer())) == [(3, 3, (1, 2))]


def slow(**changes: Any) -> Talk:
    """A draft that is overtaken: the cloud commits the token while it is guessed."""
    talk = Talk(**({"pace": Pace(4, gather=2, patience_s=math.inf)} | changes))
    talk.open()
    return talk


def overtaken(talk: Talk) -> list[Draft]:
    task = talk.task()
    talk.commit(1, 2)
    return drafts(talk.done(task, Guess(1, 0.9)))


def test_a_cloud_that_is_always_ahead_is_asked_to_wait() -> None:
    talk = slow()
    (draft,) = overtaken(talk)
    assert draft == Draft(1, 4, 4, (2,), pace=WirePace(ENDLESS_US, 2)), "a token of its own carries it"
    assert overtaken(talk) == [], "once"


def test_it_waits_then_although_it_has_forked_meanwhile() -> None:
    talk = slow()
    session = Session.of(
        opening(Talk().open()), Vocabulary(100, frozenset(), lambda token: b"x"), max_ahead=64, now=0.0
    )
    session.commit(Verdict((1,), 0), 0, now=0.0)
    session.hint(Draft(1, 4, 4, (7,)))
    session.commit(Verdict((2,), 0), 1, now=0.0)
    assert session.ready_at() <= 0.0
    for draft in overtaken(talk):
        session.hint(draft)
    assert session.ready_at() > 0.0


@pytest.mark.parametrize(
    "pace", [Pace(4), Pace(4, send=False), Pace(8, model=False)], ids=["not patient", "probing", "quiet"]
)
def test_nobody_is_asked_to_wait_where_nobody_need(pace: Pace) -> None:
    assert overtaken(slow(pace=pace)) == []


@pytest.mark.parametrize(
    ("objective", "patience_us"),
    [(Objective.COST, ENDLESS_US), (Objective.BALANCED, 0), (Objective.LATENCY, 0)],
)
def test_cost_begins_with_patience(objective: Objective, patience_us: int) -> None:
    """Before anything is measured; not before the first guess, while the prompt is read."""
    talk = Talk(objective=objective)
    assert opening(talk.open()).pace == WirePace(0, 1)
    (draft,) = drafts(talk.draft(1))
    assert (draft.pace or WirePace(0, 1)) == WirePace(patience_us, 1)
