"""What the edge drafts and when it does not: ahead, alternates, quiet, probing."""

from typing import Any

import pytest
from talk import PROMPT, Talk, copied, drafts, guesses, hints

from ecd.edge.commands import Command, Emit, Send
from ecd.edge.drafter import Context, DraftTask
from ecd.edge.pacing import Pace
from ecd.sampling import DraftDistribution, Guess, Rule, Sampling
from ecd.wire.messages import Alternate, Draft, HintWeights, Origin
from ecd.wire.messages import Pace as WirePace

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
    assert talk.task().context[:] == [*PROMPT, 1]


def test_a_task_names_the_whole_text() -> None:
    sampling = Sampling(Rule.COUPLED, 7, 0.5)
    talk = Talk(slot=4, sampling=sampling, ahead=9)
    task = talk.task()
    assert task == DraftTask(4, 0, Context(list(PROMPT), 3), 3, 3, sampling, 9, True)
    talk.done(task, Guess(1, 0.9))
    talk.open()
    talk.commit(1, 2)
    assert talk.task() == DraftTask(4, 0, Context([*PROMPT, 1, 2], 5), 3, 5, sampling, 9, True)


def test_a_drafter_without_a_guess_is_asked_again() -> None:
    talk = Talk()
    assert talk.done(talk.task()) == []
    assert talk.task().context[:] == list(PROMPT)


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
    task = talk.task()
    assert (task.model, task.at_most) == (False, 15), "five are more than four, but copies may go on"
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
    model = talk.acceptance.totals()["model"]
    assert (model["drafted"], model["settled"], model["right"]) == (2, 2, 1)
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
    assert (main.branch, main.context[:]) == (0, [*PROMPT, 1])
    assert (alternate.branch, alternate.context[:], alternate.at_most) == (1, [*PROMPT, 50], 1)
    talk.g.drafted([main, alternate], [(Guess(2, 0.95),), (Guess(51, 0.95),)], talk.now)
    assert [task.context[:] for task in talk.g.next_tasks(3)] == [[*PROMPT, 1, 2], [*PROMPT, 50, 51]]


def test_an_alternate_follows_the_line_it_leaves() -> None:
    talk = Talk(pace=Pace(16, alternate_worth=1.0))
    talk.open(alternates=True)
    talk.draft(1)
    talk.draft(2, **UNSURE_OF)
    assert talk.g.next_tasks(3)[1].context[:] == [*PROMPT, 1, 50]


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
    assert [task.context[:] for task in talk.g.next_tasks(1)] == [[*PROMPT, 50, 51, 52, 53]]


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
        "the request wants none",
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
    if why == "the request wants none":
        changes["alternates"] = False
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
