"""The edge's state machine as conversations: opening, committed tokens, lost links."""

import math
from typing import Any

import pytest
from talk import PROMPT, Talk, drafts, guesses, hints, opening

from ecd.cloud.session import Session, Vocabulary
from ecd.edge.commands import Emit, Finished, Send
from ecd.edge.generation import Phase
from ecd.edge.pacing import Pace
from ecd.edge.request import MAX_PATIENCE_US, UNSURE
from ecd.errors import ProtocolError
from ecd.logprobs import TokenLogprobs
from ecd.sampling import Guess, Rule, Sampling, Verdict
from ecd.wire.messages import Draft, Finish, Open, Origin
from ecd.wire.messages import Pace as WirePace

# --- opening


def test_opening_sends_the_request() -> None:
    sampling = Sampling(Rule.COUPLED, 7, 0.5)
    talk = Talk(sampling=sampling, stop=("x",), patience_us=5, hint_tokens=4)
    assert talk.g.phase is Phase.WAITING
    assert talk.open(3) == [Send(Open(3, None, 0, PROMPT, (), sampling.to_map(), 20, ("x",), WirePace(5, 4)))]
    assert talk.g.phase is Phase.STREAMING
    assert talk.g.tally.resumed == 0


def test_logprobs_are_asked_for_at_every_opening_and_handed_on() -> None:
    talk = Talk(logprobs=1)
    assert opening(talk.open()).logprobs == 1
    first = TokenLogprobs(-0.5, ((5, -0.5),))
    second = (TokenLogprobs(-2.0, ((5, -0.5),)), TokenLogprobs(-3.0, ((7, -0.25),)))
    assert talk.commit(5, logprobs=(first,))[0] == Emit((5,), (Origin.TARGET,), (first,))
    talk.g.lost()
    assert opening(talk.open(stream=2)).logprobs == 1
    talk.commit(6, 8, logprobs=second)
    assert talk.g.logprobs == [first, *second]
    assert opening(Talk().open()).logprobs is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (None, (TokenLogprobs(-0.5, ()),)),
        (1, None),
        (1, ()),
        (1, (TokenLogprobs(-0.5, ()), TokenLogprobs(-0.5, ()))),
        (1, (TokenLogprobs(-0.5, ((1, -0.5), (2, -1.0))),)),
    ],
)
def test_logprobs_other_than_asked_for_break_the_protocol(
    asked: int | None, told: tuple[TokenLogprobs, ...] | None
) -> None:
    talk = Talk(logprobs=asked)
    talk.open()
    with pytest.raises(ProtocolError, match="do not carry the logprobs that were asked for"):
        talk.commit(5, logprobs=told)
    assert talk.g.committed == ()
    assert talk.g.logprobs == []


@pytest.mark.parametrize("changes", [{"slot": None, "patience_us": 5}, {"draft": False, "patience_us": 5}])
def test_without_a_drafter_the_cloud_is_not_asked_to_wait(changes: dict[str, Any]) -> None:
    assert opening(Talk(**changes).open()).pace == WirePace(0, 1)


def test_nobody_waits_for_an_edge_that_still_reads_the_prompt() -> None:
    talk = Talk(pace=Pace(16, gather=2, patience_s=math.inf))
    assert opening(talk.open()).pace == WirePace(0, 1)
    assert [draft.pace for draft in drafts(talk.draft(1, 2))] == [WirePace(MAX_PATIENCE_US, 2)]
    talk.g.lost()
    again = talk.open(stream=2)
    assert opening(again[:1]).pace == WirePace(MAX_PATIENCE_US, 2), "it has drafted before"


def test_guesses_drafted_before_the_link_was_there_go_with_the_opening() -> None:
    talk = Talk(hint_tokens=9)
    assert talk.draft(1, 2) == []
    assert hints(talk.open()) == [(3, 3, (1, 2))]


# --- committed tokens


def test_tokens_that_match_use_the_guesses_up() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1, 2, 3)
    origins = (Origin.DRAFT_ACCEPTED, Origin.DRAFT_ACCEPTED, Origin.TARGET)
    assert talk.commit(1, 2, 3, accepted=2) == [Emit((1, 2, 3), origins)]
    assert guesses(talk.g) == []
    assert talk.g.committed == (1, 2, 3)
    assert talk.g.origins == list(origins)
    assert hints(talk.draft(4)) == [(6, 6, (4,))]


def test_a_fork_drops_the_guesses() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1, 2, 3)
    talk.commit(1, 7, accepted=1)
    assert guesses(talk.g) == []
    task = talk.task()
    assert task.context[:] == [*PROMPT, 1, 7]
    assert hints(talk.done(task, Guess(8, 0.9))) == [(5, 5, (8,))]
    assert talk.pacer.places == [(0, True), (1, False)]


def test_a_guess_overtaken_by_a_fork_is_dropped() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1)
    task = talk.task()
    talk.commit(7)
    assert talk.done(task, Guess(2, 0.9)) == []
    assert guesses(talk.g) == []
    assert talk.task().context[:] == [*PROMPT, 7]


def test_a_guess_overtaken_by_the_text_is_dropped() -> None:
    talk = Talk()
    talk.open()
    task = talk.task()
    talk.commit(1, 2)
    assert talk.done(task, Guess(1, 0.9)) == []
    assert talk.task().context[:] == [*PROMPT, 1, 2]


def test_a_running_task_survives_commits_that_match() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1, 2)
    task = talk.task()
    talk.commit(1, accepted=1)
    assert hints(talk.done(task, Guess(3, 0.9))) == [(4, 5, (3,))]
    assert guesses(talk.g) == [2, 3]


def test_a_fork_behind_matching_commits_overtakes_a_running_task() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1, 2, 3)
    task = talk.task()
    talk.commit(1, 2, accepted=2)
    talk.commit(9)
    talk.commit(10)
    assert talk.done(task, Guess(4, 0.9)) == []
    assert talk.task().context[:] == [*PROMPT, 1, 2, 9, 10]


def test_the_tally_counts_forwards_and_hints() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1, 2, 3)
    talk.commit(1, 7, accepted=1, verified=3)
    talk.commit(8, step_us=1234)
    t = talk.g.tally
    assert (t.drafted, t.most_ahead, t.sent, t.settled, t.right) == (3, 3, 3, 2, 1)
    assert (t.forwards, t.forwards_without_hints, t.verified, t.accepted, t.step_us) == (2, 1, 3, 1, 1234)


def test_the_last_tokens_finish_it() -> None:
    talk = Talk(pace=Pace(16))
    talk.open()
    talk.draft(1)
    task = talk.task()
    assert talk.g.next_timer() is not None
    assert talk.commit(1, 2, finish=Finish.STOP)[-1] == Finished(Finish.STOP)
    assert talk.g.phase is Phase.FINISHED
    assert talk.g.next_timer() is None
    assert talk.done(task, Guess(3, 0.9)) == []
    assert talk.g.next_tasks(1) == []
    assert talk.commit(9) == []
    talk.g.lost()
    assert talk.g.phase is Phase.FINISHED


@pytest.mark.parametrize(
    "changes",
    [{"base": 2}, {"base": 4}, {"ids": ()}, {"accepted": 3}],
    ids=["behind", "ahead", "empty", "accepted"],
)
def test_tokens_that_do_not_continue_the_text_break_the_protocol(changes: dict[str, Any]) -> None:
    talk = Talk()
    talk.open()
    with pytest.raises(ProtocolError, match="TOKENS"):
        talk.commit(1, 2, **changes)
    assert talk.g.committed == ()


# --- losing the link


def test_tokens_of_another_stream_or_without_a_link_are_ignored() -> None:
    talk = Talk()
    assert talk.commit(1) == []
    talk.open(5)
    assert talk.commit(1, stream=4) == []
    talk.g.lost()
    assert talk.commit(1) == []
    assert talk.g.committed == ()


def test_after_a_lost_link_everything_needed_is_sent_again() -> None:
    talk = Talk(patience_us=7)
    talk.open(1)
    talk.draft(1, 2)
    talk.commit(1, accepted=1)
    talk.draft(3)
    talk.g.lost()
    assert talk.g.phase is Phase.WAITING
    assert talk.draft(4) == [], "it drafts on without a link"
    commands = talk.open(9)
    assert commands[0] == Send(Open(9, None, 0, PROMPT, (1,), {"rule": "greedy"}, 20, (), WirePace(7, 1)))
    assert hints(commands) == [(4, 4, (2, 3, 4))]
    assert talk.g.tally.resumed == 1
    assert talk.commit(2, 8, accepted=1, stream=1) == []
    talk.commit(2, 8, accepted=1)
    assert talk.g.committed == (1, 2, 8)
    assert hints(talk.draft(5)) == [(6, 6, (5,))]


def test_without_a_link_no_timer_runs() -> None:
    talk = Talk(pace=Pace(16))
    talk.open()
    talk.draft(1)
    assert talk.g.next_timer() is not None
    talk.g.lost()
    talk.draft(2)
    assert talk.g.next_timer() is None
    assert hints(talk.open(2)) == [(3, 3, (1, 2))]


def test_it_drafts_no_further_ahead_than_the_cloud_takes_hints() -> None:
    talk = Talk(ahead=9)
    talk.open(max_ahead=2)
    assert hints(talk.draft(1, 2)) == [(3, 3, (1,)), (3, 4, (2,))]
    assert talk.g.next_tasks(1) == []
    talk.commit(1, accepted=1)
    assert hints(talk.draft(3)) == [(4, 5, (3,))]


def test_a_cloud_that_takes_more_hints_than_wanted_changes_nothing() -> None:
    talk = Talk(ahead=2)
    talk.open(max_ahead=9)
    talk.draft(1, 2)
    assert talk.g.next_tasks(1) == []


def test_guesses_beyond_what_a_new_cloud_takes_are_dropped_and_drafted_again() -> None:
    talk = Talk(ahead=4, max_tokens=30)
    talk.draft(1, 2, 3, 4)
    assert hints(talk.open(max_ahead=2)) == [(3, 3, (1, 2))]
    assert talk.g.next_tasks(1) == []
    talk.commit(1, 2, 7, accepted=2)
    assert hints(talk.draft(8)) == [(6, 6, (8,))]
    talk.g.lost()
    assert hints(talk.open(2, max_ahead=3)) == [(6, 6, (8,))]
    assert hints(talk.draft(9, 10)) == [(6, 7, (9,)), (6, 8, (10,))]
    assert talk.g.next_tasks(1) == []


def test_a_guess_under_way_when_a_cloud_takes_fewer_is_dropped() -> None:
    talk = Talk(ahead=4)
    talk.draft(1, 2, 3)
    task = talk.task()
    assert hints(talk.open(max_ahead=2)) == [(3, 3, (1, 2))]
    assert talk.done(task, Guess(4, 0.9)) == []
    assert guesses(talk.g) == [1, 2]
    talk.commit(1, accepted=1)
    assert hints(talk.draft(5)) == [(4, 5, (5,))]


# --- giving up drafting


def test_the_cloud_is_told_when_drafting_ends() -> None:
    talk = Talk(patience_us=7)
    talk.open()
    talk.draft(1, 2)
    talk.task()
    assert talk.g.stop_drafting() == [Send(Draft(1, 3, 3, (), pace=WirePace(0, 1)))]
    assert talk.g.next_tasks(1) == []
    assert talk.commit(1, 2, accepted=1) == [Emit((1, 2), (Origin.DRAFT_ACCEPTED, Origin.TARGET))]
    talk.g.lost()
    assert opening(talk.open(2)).pace == WirePace(0, 1)


def test_a_cloud_that_forked_meanwhile_does_not_wait_for_a_drafter_that_failed() -> None:
    """It cannot take the empty DRAFT for its new line, so its patience must end with it too."""
    talk = Talk(patience_us=MAX_PATIENCE_US, hint_tokens=2, ahead=2)
    session = Session.of(
        opening(talk.open()), Vocabulary(100, frozenset(), lambda token: b"x"), max_ahead=64, now=0.0
    )
    session.commit(Verdict((1,), 0), 0, now=0.0)
    talk.commit(1)
    for draft in drafts(talk.draft(2, 3)):
        session.hint(draft)
    session.commit(Verdict((9,), 0), 2, now=0.0)
    for draft in drafts(talk.g.stop_drafting()):
        session.hint(draft)
    assert session.ready_at() <= 0.0


def test_without_a_link_nobody_need_be_told() -> None:
    assert Talk().g.stop_drafting() == []


@pytest.mark.parametrize("before", [(1,), ()])
def test_a_guess_that_comes_after_drafting_ended_is_dropped(before: tuple[int, ...]) -> None:
    talk = Talk()
    talk.open()
    talk.draft(*before)
    task = talk.task()
    talk.g.stop_drafting()
    assert talk.done(task, Guess(2, 0.9)) == []
    assert guesses(talk.g) == []
    assert talk.g.tally.drafted == len(before)


def test_before_anything_is_measured_it_drafts_sixteen_ahead() -> None:
    talk = Talk(max_tokens=60)
    talk.open()
    talk.draft(*range(UNSURE.ahead))
    assert UNSURE.ahead == 16
    task = talk.task()
    assert (task.model, task.at_most) == (False, UNSURE.copies_ahead - 16), "copies may go on"
    talk.done(task)
    assert talk.g.next_tasks(1) == [], "there are none"
