"""An answer without a cloud: the draft's tokens are its text until a cloud takes it again."""

from typing import Any

import pytest
from talk import PROMPT, Talk, guesses, opening

from ecd.edge.commands import Command, Emit, Finished
from ecd.edge.generation import Phase
from ecd.edge.pacing import Pace
from ecd.edge.threshold import Thresholds
from ecd.edge.turns import Turns
from ecd.sampling import Guess
from ecd.wire.messages import Finish, Origin

END = 7
OFFLINE = Origin.EDGE_OFFLINE


class Alone(Talk):
    """An answer that has got two tokens when its cloud goes; `guessed` waits for the third on."""

    def __init__(self, *guessed: int, **changes: Any) -> None:
        super().__init__(**changes)
        self.open()
        self.commit(1, 2)
        self.draft(*guessed)
        self.g.lost()

    def go(self) -> list[Command]:
        own = Turns.of(
            self.g.request, Thresholds(), lambda token: b"%d," % token, frozenset({END}), self.g.committed
        )
        return self.g.go_on_alone(own)


def emitted(*ids: int) -> Emit:
    return Emit(ids, (OFFLINE,) * len(ids))


def test_what_was_guessed_is_the_text_and_then_each_guess() -> None:
    talk = Alone(3, 4)
    assert talk.go() == [emitted(3, 4)]
    assert talk.draft(5) == [emitted(5)]
    assert talk.draft(6) == [emitted(6)]
    assert talk.g.committed == (1, 2, 3, 4, 5, 6)
    assert talk.g.origins == [Origin.TARGET] * 2 + [OFFLINE] * 4
    assert talk.g.phase is Phase.WAITING


def test_back_at_a_cloud_all_that_was_shown_is_committed() -> None:
    talk = Alone(3)
    talk.go()
    talk.draft(4)
    task = talk.task()
    assert opening(talk.open(2)[:1]).committed == (1, 2, 3, 4)
    # What was being guessed then is a hint again.
    talk.done(task, Guess(5, 0.9))
    assert guesses(talk.g) == [5]
    assert talk.commit(5, 6, accepted=1)[0] == Emit((5, 6), (Origin.DRAFT_ACCEPTED, Origin.TARGET), None)
    assert talk.g.committed == (1, 2, 3, 4, 5, 6)


def test_it_may_go_alone_again() -> None:
    talk = Alone(3)
    talk.go()
    talk.open(2)
    talk.commit(4)
    talk.g.lost()
    assert talk.go() == []
    assert talk.draft(5) == [emitted(5)]


def test_copied_text_is_not_the_drafts_own() -> None:
    talk = Alone()
    talk.done(talk.task(), Guess(3, 0.9), Guess(8, 0.9, "lookup"), Guess(9, 0.9, "lookup"))
    assert talk.go() == [emitted(3)]
    assert guesses(talk.g) == []
    task = talk.task()
    assert (task.model, task.copies, task.at_most) == (True, False, 1)
    assert list(task.context) == [*PROMPT, 1, 2, 3]


def test_a_guess_under_way_when_the_cloud_is_given_up_is_the_text_too() -> None:
    talk = Alone(3)
    task = talk.task()
    assert talk.go() == [emitted(3)]
    assert talk.g.next_tasks(1) == [], "one at a time"
    assert talk.done(task, Guess(4, 0.9), Guess(9, 0.9, "lookup")) == [emitted(4)]
    assert talk.draft(5) == [emitted(5)]


@pytest.mark.parametrize("pace", [Pace(0, send=False), Pace(16, model=False), Pace(4, send=False)], ids=str)
def test_it_drafts_whatever_the_pace(pace: Pace) -> None:
    talk = Alone(pace=pace)
    talk.go()
    assert talk.draft(3) == [emitted(3)]


def test_the_last_token_is_drafted_too() -> None:
    talk = Alone(max_tokens=3)
    talk.go()
    assert talk.draft(3) == [emitted(3), Finished(Finish.LENGTH)]
    assert talk.g.phase is Phase.FINISHED
    assert talk.g.next_tasks(1) == []


@pytest.mark.parametrize(("guessed", "stop"), [((3, END, 5), ()), ((3, 14, 5), ("3,1",))])
def test_nothing_follows_the_end(guessed: tuple[int, ...], stop: tuple[str, ...]) -> None:
    talk = Alone(*guessed, stop=stop)
    assert talk.go() == [emitted(*guessed[:2]), Finished(Finish.STOP)]
    assert talk.g.committed == (1, 2, *guessed[:2])


def test_without_a_drafter_it_waits() -> None:
    talk = Alone(slot=None)
    assert talk.go() == []
    assert talk.g.turns is None


def test_a_drafter_that_fails_leaves_it_waiting_with_what_it_has() -> None:
    talk = Alone(3)
    talk.go()
    assert talk.g.stop_drafting() == []
    assert talk.g.next_tasks(1) == []
    assert opening(talk.open(2)).committed == (1, 2, 3)


def test_it_does_not_leave_a_cloud_that_is_there() -> None:
    talk = Alone(3)
    talk.open(2)
    assert talk.go() == []
    assert talk.g.committed == (1, 2)
