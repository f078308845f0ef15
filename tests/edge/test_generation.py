"""The edge's state machine as conversations."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ecd.cloud.session import Session, Vocabulary
from ecd.edge.acceptance import Acceptance
from ecd.edge.drafter import DraftTask
from ecd.edge.generation import (
    AT_ONCE,
    EARLY_S,
    EARLY_STEPS,
    Command,
    Emit,
    Finished,
    Generation,
    Phase,
    Send,
)
from ecd.edge.pacing import Conditions, Objective, Pace, Pacer, Survival
from ecd.edge.request import MAX_PATIENCE_US, UNSURE, Request
from ecd.errors import ProtocolError
from ecd.sampling import DraftDistribution, Guess, Rule, Sampling, Verdict
from ecd.wire.messages import Alternate, Draft, Finish, HintWeights, Open, Origin, Tokens
from ecd.wire.messages import Pace as WirePace

PROMPT = (90, 91, 92)
GREEDY = Sampling()
# A step of 100 ms, hints that cost nothing, 1 s there and back.
CONDITIONS = Conditions(rtt_s=1.0, jitter_s=0.0, draft_s=0.01, step_s=0.1, token_s=0.0)
ROUNDS = {"patience_us": MAX_PATIENCE_US, "hint_tokens": 3, "ahead": 3}


@dataclass
class Scripted(Pacer):
    """Says what the test says, once there are conditions."""

    objective: Objective = Objective.BALANCED
    edge: Survival = field(default_factory=lambda: Survival(100.0))
    says: Pace = field(default_factory=lambda: Pace(16))
    places: list[tuple[int, bool]] = field(default_factory=list)

    def pace(self, conditions: Conditions | None, committed: int, max_ahead: int, unsure: Pace) -> Pace:
        return unsure if conditions is None else self.says

    def settle(self, place: int, right: bool) -> None:
        self.places.append((place, right))


class Talk:
    """A generation and what it is told; nothing is measured unless `pace` scripts the controller."""

    def __init__(self, slot: int | None = 0, pace: Pace | None = None, **changes: Any) -> None:
        request = Request(**({"prompt": PROMPT, "sampling": GREEDY, "max_tokens": 20} | changes))
        self.pacer = Scripted(request.objective, says=pace or Pace(16))
        self.conditions = None if pace is None else CONDITIONS
        self.acceptance = Acceptance()
        self.g = Generation(request, self.acceptance, self.pacer)
        self.g.slot = slot
        self.now = 0.0

    def open(self, stream: int = 1, max_ahead: int = 64, *, alternates: bool = False) -> list[Command]:
        return self.g.open(stream, max_ahead, alternates=alternates, conditions=self.conditions, now=self.now)

    def task(self) -> DraftTask:
        (task,) = self.g.next_tasks(1)
        return task

    def done(self, task: DraftTask, *guesses: Guess) -> list[Command]:
        return self.g.drafted([task], [guesses], self.now)

    def draft(self, *tokens: int, **told: Any) -> list[Command]:
        """One task for each token."""
        return [
            command
            for token in tokens
            for command in self.done(self.task(), Guess(token, **({"confidence": 0.9} | told)))
        ]

    def commit(
        self, *ids: int, accepted: int = 0, finish: Finish = Finish.NONE, **changes: Any
    ) -> list[Command]:
        message = Tokens(self.g.stream, len(self.g.tokens), ids, accepted, accepted, 900, finish)
        received = self.g.receive(replace(message, **changes), self.now)
        return [*received, *self.g.steer(self.conditions, self.now)]

    def at(self, now: float) -> "Talk":
        self.now = now
        return self

    def timer(self) -> float:
        """The time of the next timer, told what it says there."""
        due = self.g.next_timer()
        assert due is not None
        return due


def drafts(commands: Iterable[Command]) -> list[Draft]:
    return [c.message for c in commands if isinstance(c, Send) and isinstance(c.message, Draft)]


def hints(commands: Iterable[Command]) -> list[tuple[int, int, tuple[int, ...]]]:
    """(seen, base, ids) of every DRAFT."""
    return [(m.seen, m.base, m.ids) for m in drafts(commands)]


def copied(*tokens: int) -> list[Guess]:
    return [Guess(token, 0.9, "lookup") for token in tokens]


def guesses(g: Generation) -> list[int]:
    return [guess.token for guess in g.lines.main.guesses]


def opening(commands: Sequence[Command]) -> Open:
    (command,) = commands
    assert isinstance(command, Send)
    assert isinstance(command.message, Open)
    return command.message


# --- opening


def test_opening_sends_the_request() -> None:
    sampling = Sampling(Rule.COUPLED, 7, 0.5)
    talk = Talk(sampling=sampling, stop=("x",), patience_us=5, hint_tokens=4)
    assert talk.g.phase is Phase.WAITING
    assert talk.open(3) == [Send(Open(3, None, 0, PROMPT, (), sampling.to_map(), 20, ("x",), WirePace(5, 4)))]
    assert talk.g.phase is Phase.STREAMING
    assert talk.g.tally.resumed == 0


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


# --- drafting ahead


def test_it_drafts_ahead_without_waiting_up_to_the_bound() -> None:
    talk = Talk(ahead=3)
    talk.open()
    assert hints(talk.draft(1, 2, 3)) == [(3, 3, (1,)), (3, 4, (2,)), (3, 5, (3,))]
    assert talk.g.next_tasks(1) == []
    talk.commit(1, accepted=1)
    assert hints(talk.draft(4)) == [(4, 6, (4,))]
    assert talk.g.next_tasks(1) == []


def test_it_never_drafts_what_could_not_be_verified() -> None:
    talk = Talk(max_tokens=3, ahead=9)
    talk.open()
    talk.draft(1)
    assert talk.task().at_most == 1
    talk = Talk(max_tokens=3, ahead=9)
    talk.open()
    talk.draft(1, 2)
    assert talk.g.next_tasks(1) == [], "the last token is the target's own"
    for changes in ({"max_tokens": 1}, {"ahead": 0}, {"slot": None}, {"draft": False}):
        assert Talk(**changes).g.next_tasks(1) == []


def test_more_guesses_than_there_is_room_for_are_dropped() -> None:
    talk = Talk(max_tokens=5, ahead=3)
    talk.open()
    task = talk.task()
    assert task.at_most == 3
    assert hints(talk.done(task, *(Guess(token, 0.9) for token in (1, 2, 3, 4)))) == [(3, 3, (1, 2, 3))]
    assert talk.g.tally.drafted == 4


def test_a_guess_that_is_hardly_ever_reached_is_not_made() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1, 2, 3, 4, 5, 6, confidence=0.5)
    assert talk.g.next_tasks(1) == []
    talk.commit(1, accepted=1)
    assert talk.g.next_tasks(1) != []


def test_one_task_at_a_time() -> None:
    talk = Talk()
    task = talk.task()
    assert talk.g.next_tasks(1) == []
    talk.done(task, Guess(1, 0.9))
    assert talk.task().context == [*PROMPT, 1]


def test_a_task_names_the_whole_text() -> None:
    sampling = Sampling(Rule.COUPLED, 7, 0.5)
    talk = Talk(slot=4, sampling=sampling, ahead=9)
    task = talk.task()
    assert task == DraftTask(4, 0, list(PROMPT), 3, 3, sampling, 9, True)
    talk.done(task, Guess(1, 0.9))
    talk.open()
    talk.commit(1, 2)
    assert talk.task() == DraftTask(4, 0, [*PROMPT, 1, 2], 3, 5, sampling, 9, True)


def test_a_drafter_without_a_guess_is_asked_again() -> None:
    talk = Talk()
    assert talk.done(talk.task()) == []
    assert talk.task().context == list(PROMPT)


def test_each_hint_tells_its_chance() -> None:
    talk = Talk(patience_us=0, hint_tokens=3)
    talk.open()
    talk.draft(1, confidence=0.5)
    talk.draft(2, confidence=0.8)
    (draft,) = drafts(talk.draft(3, confidence=1.0))
    assert draft.confidence == bytes([128, 204, 252])


def test_rejection_ships_the_distribution_of_every_hint() -> None:
    talk = Talk(sampling=Sampling(Rule.REJECTION, 1, 1.0), hint_tokens=2)
    talk.open()
    talk.done(talk.task(), Guess(5, 0.9, q=DraftDistribution((5, 6), (255, 3))))
    (draft,) = drafts(talk.done(talk.task(), Guess(7, 0.9, q=DraftDistribution((7,), (9,)))))
    assert draft.ids == (5, 7)
    assert draft.q == (HintWeights((5, 6), b"\xff\x03"), HintWeights((7,), b"\x09"))
    plain = Talk()
    plain.open()
    assert [draft.q for draft in drafts(plain.draft(5))] == [None]


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
    assert opening(talk.open()).pace == WirePace(MAX_PATIENCE_US, 3)
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
    talk = Talk(patience_us=MAX_PATIENCE_US, hint_tokens=3, ahead=9)
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


@pytest.mark.parametrize(("verified", "forward_s"), [(0, 0.1), (5, 0.15)])
def test_hints_leave_early_enough_for_the_next_step_they_can_reach(verified: int, forward_s: float) -> None:
    """The cloud's steps begin half a round trip before TOKENS came, and every step time from there."""
    talk = Talk(pace=Pace(16))
    talk.conditions = replace(CONDITIONS, token_s=0.01)
    talk.open()
    talk.at(10.0).commit(1, verified=verified)
    talk.at(10.03).draft(2)
    leaves = talk.timer()
    arrives = leaves + CONDITIONS.rtt_s / 2
    steps = [10.0 - CONDITIONS.rtt_s / 2 + forward_s * n for n in range(30)]
    early_s = max(EARLY_STEPS * forward_s, EARLY_S)
    assert min(step for step in steps if step > arrives) - arrives == pytest.approx(early_s)
    assert 10.03 <= leaves < 10.03 + forward_s


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
    assert hints(talk.draft(1, 2)) == [(3, 3, (1, 2)), (3, 3, ())]
    assert talk.commit(1, accepted=1)[1:] == [], "there is room again"
    assert hints(talk.draft(3)) == [], "the cloud does not wait now"
    assert hints(talk.g.timeout(talk.timer())) == [(4, 5, (3,)), (4, 4, ())]


def test_a_cloud_that_does_not_wait_need_not_be_told() -> None:
    talk = Talk(pace=Pace(2, gather=4))
    talk.open()
    talk.draft(1, 2)
    assert hints(talk.g.timeout(talk.timer())) == [(3, 3, (1, 2))]


# --- quiet and probing


def test_going_quiet_ends_the_clouds_patience() -> None:
    talk = Talk(pace=Pace(16, gather=2, patience_s=0.5))
    talk.open()
    talk.draft(1, 2)
    talk.pacer.says = Pace(8, model=False)
    assert drafts(talk.commit(1, accepted=1)) == [Draft(1, 4, 4, (), pace=WirePace(0, 1))]
    assert drafts(talk.commit(2, accepted=1)) == []


def test_while_the_model_is_quiet_copied_text_is_hinted_at_once() -> None:
    talk = Talk(pace=Pace(8, model=False))
    talk.open()
    task = talk.task()
    assert not task.model
    assert hints(talk.done(task, *copied(1, 2))) == [(3, 3, (1, 2))]
    assert talk.pacer.places == []
    talk.commit(1, accepted=1)
    assert talk.pacer.places == [], "it says nothing of the model"
    assert talk.acceptance.totals()["lookup"]["settled"] == 1


def test_a_copied_run_may_be_longer_than_what_the_model_drafts() -> None:
    talk = Talk(pace=Pace(4), max_tokens=99)
    talk.open(max_ahead=20)
    task = talk.task()
    assert task.at_most == 20, "but not longer than the cloud takes"
    talk.done(task, *copied(*range(30)))
    assert guesses(talk.g) == list(range(20))
    talk.commit(*range(15))
    assert talk.g.next_tasks(1) == [], "five are more than four"
    short = Talk(pace=Pace(4), max_tokens=7)
    short.open()
    assert short.task().at_most == 6


def test_while_the_model_is_quiet_nothing_is_asked_for_where_nothing_can_be_copied() -> None:
    talk = Talk(pace=Pace(8, model=False))
    talk.open()
    talk.done(talk.task())
    assert talk.g.next_tasks(3) == []
    talk.commit(1)
    assert [task.model for task in talk.g.next_tasks(3)] == [False]


def test_a_probe_sends_nothing_and_learns() -> None:
    talk = Talk(pace=Pace(4, send=False))
    talk.open()
    assert talk.draft(1, 2, 3) == []
    assert talk.g.next_timer() is None
    assert talk.commit(1, 9) == [Emit((1, 9), (Origin.TARGET, Origin.TARGET))]
    assert talk.pacer.places == [(0, True), (1, False)]
    assert (talk.g.tally.sent, talk.g.tally.settled, talk.g.tally.right) == (0, 2, 1)


def test_a_guess_that_comes_too_late_still_teaches() -> None:
    talk = Talk(pace=Pace(4, send=False))
    talk.open()
    for right in (True, False):
        task = talk.task()
        talk.commit(1)
        talk.done(task, Guess(1 if right else 2, 0.9))
    assert talk.pacer.places == [(0, True), (0, False)]
    assert talk.acceptance.totals()["model"] == {
        "drafted": 2,
        "settled": 2,
        "right": 1,
        "acceptance_rate": 0.5,
    }
    assert guesses(talk.g) == []


def test_a_late_guess_behind_a_wrong_one_teaches_nothing() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1)
    task = talk.task()
    talk.commit(9, 2)
    talk.done(task, Guess(2, 0.9))
    assert talk.g.tally.settled == 1


def test_after_a_good_probe_what_still_holds_is_sent() -> None:
    talk = Talk(pace=Pace(4, send=False))
    talk.open()
    talk.draft(1, 2, 3)
    talk.pacer.says = Pace(16, gather=1, patience_s=0.5)
    (draft,) = drafts(talk.commit(1))
    assert (draft.seen, draft.base, draft.ids) == (4, 4, (2, 3))
    assert draft.pace == WirePace(500_000, 1)


# --- alternates

UNSURE_OF = {"confidence": 0.4, "second": 50}


def alternating(**changes: Any) -> Talk:
    """One that has guessed a token it is unsure of."""
    talk = Talk(**({"pace": Pace(16, gather=1, patience_s=1.0, alternate_worth=1.0)} | changes))
    talk.open(alternates=True)
    talk.draft(1, **UNSURE_OF)
    return talk


def go_on(talk: Talk, *tokens: int) -> list[Command]:
    """Every line gets one token."""
    tasks = talk.g.next_tasks(3)
    assert len(tasks) == len(tokens)
    return talk.g.drafted(tasks, [(Guess(token, 0.95),) for token in tokens], talk.now)


def test_where_the_draft_was_unsure_its_second_choice_is_followed_too_in_one_batch() -> None:
    talk = alternating()
    main, alternate = talk.g.next_tasks(3)
    assert (main.branch, main.context) == (0, [*PROMPT, 1])
    assert (alternate.branch, alternate.context, alternate.at_most) == (1, [*PROMPT, 50], 1)
    talk.g.drafted([main, alternate], [(Guess(2, 0.95),), (Guess(51, 0.95),)], talk.now)
    assert [task.context for task in talk.g.next_tasks(3)] == [[*PROMPT, 1, 2], [*PROMPT, 50, 51]]


def test_an_alternate_follows_the_line_it_leaves() -> None:
    talk = Talk(pace=Pace(16, alternate_worth=1.0))
    talk.open(alternates=True)
    talk.draft(1)
    talk.draft(2, **UNSURE_OF)
    assert talk.g.next_tasks(3)[1].context == [*PROMPT, 1, 50]


def test_when_the_main_line_is_done_alternates_go_on_alone() -> None:
    talk = alternating(ahead=1)
    assert [task.branch for task in talk.g.next_tasks(3)] == [1]


def test_an_alternate_is_sent_with_its_first_hint_and_when_it_is_complete() -> None:
    talk = alternating()
    sent = []
    for token in range(6):
        sent += drafts(go_on(talk, 2 + token, 51 + token))
        if (due := talk.g.next_timer()) is not None:
            sent += drafts(talk.g.timeout(due))
    told = [draft.alternates for draft in sent if draft.alternates]
    assert told == [
        (Alternate(3, (50, 51)),),
        (Alternate(3, (50, 51, 52, 53, 54, 55, 56)),),
    ]
    assert talk.g.tally.alternates_sent == 2


@pytest.mark.parametrize("patience_s", [0.0, 1.0])
def test_an_alternate_that_comes_true_becomes_the_main_line_and_is_sent_again(patience_s: float) -> None:
    talk = alternating(pace=Pace(16, 1, patience_s, alternate_worth=1.0))
    go_on(talk, 2, 51)
    go_on(talk, 3, 52)
    commands = talk.commit(50)
    assert hints(commands) == [(4, 4, (51, 52))], "at once: the cloud may have nothing to go on with"
    assert (guesses(talk.g), talk.g.tally.alternates_used) == ([51, 52], 1)
    assert hints(talk.draft(53)) == []
    assert [task.context for task in talk.g.next_tasks(1)] == [[*PROMPT, 50, 51, 52, 53]]


def test_a_guess_under_way_for_the_alternate_still_counts_after_the_switch() -> None:
    talk = alternating()
    go_on(talk, 2, 51)
    tasks = talk.g.next_tasks(3)
    talk.commit(50)
    talk.g.drafted(tasks, [(Guess(3, 0.95),), (Guess(52, 0.95),)], talk.now)
    assert guesses(talk.g) == [51, 52]


def test_otherwise_alternates_are_dropped() -> None:
    for token in (1, 9):
        talk = alternating()
        go_on(talk, 2, 51)
        talk.commit(token)
        assert [task.branch for task in talk.g.next_tasks(3)] == [0]
        assert talk.g.tally.alternates_used == 0


@pytest.mark.parametrize(
    "why",
    [
        "the cloud takes none",
        "the cloud takes few hints",
        "rejection",
        "no branches",
        "worth nothing",
        "quiet",
        "probing",
        "fixed pace",
    ],
)
def test_no_alternates_where_they_are_of_no_use(why: str) -> None:
    pace = {
        "worth nothing": Pace(16),
        "quiet": Pace(8, model=False, alternate_worth=1.0),
        "probing": Pace(4, send=False, alternate_worth=1.0),
    }.get(why, Pace(16, alternate_worth=1.0))
    changes: dict[str, Any] = {"patience_us": 0} if why == "fixed pace" else {}
    if why == "rejection":
        changes["sampling"] = Sampling(Rule.REJECTION, 1, 1.0)
    talk = Talk(pace=pace, **changes)
    talk.open(
        max_ahead=5 if why == "the cloud takes few hints" else 64, alternates=why != "the cloud takes none"
    )
    q = DraftDistribution((1,), (1,)) if why == "rejection" else None
    (task,) = talk.g.next_tasks(3)
    talk.done(task, Guess(1, 0.4, second=50, q=q))
    tasks = talk.g.next_tasks(1 if why == "no branches" else 3)
    assert [task.branch for task in tasks] == [0]


def test_alternates_do_not_reach_beyond_the_last_token_that_can_be_hinted() -> None:
    talk = alternating(max_tokens=3)
    go_on(talk, 2, 51)
    assert talk.g.next_tasks(3) == [], "position 5 is the target's own"
    assert alternating(max_tokens=2).g.next_tasks(3) == []


def test_a_new_cloud_has_no_alternates() -> None:
    talk = alternating()
    go_on(talk, 2, 51)
    talk.g.lost()
    (_, draft) = [c.message for c in talk.open(2, alternates=True) if isinstance(c, Send)]
    assert isinstance(draft, Draft)
    assert (draft.ids, draft.alternates) == ((1, 2), None)
    assert talk.commit(50)[1:] == []


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
    assert task.context == [*PROMPT, 1, 7]
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
    assert talk.task().context == [*PROMPT, 7]


def test_a_guess_overtaken_by_the_text_is_dropped() -> None:
    talk = Talk()
    talk.open()
    task = talk.task()
    talk.commit(1, 2)
    assert talk.done(task, Guess(1, 0.9)) == []
    assert talk.task().context == [*PROMPT, 1, 2]


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
    assert talk.task().context == [*PROMPT, 1, 2, 9, 10]


def test_the_tally_counts_forwards_and_hints() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1, 2, 3)
    talk.commit(1, 7, accepted=1, verified=3)
    talk.commit(8, step_us=1234)
    t = talk.g.tally
    assert (t.drafted, t.sent, t.settled, t.right) == (3, 3, 2, 1)
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
    assert (UNSURE.ahead, talk.g.next_tasks(1)) == (16, [])
