"""What a timeline tells of an answer, and that it tells no more than is asked for."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.commands import Emit, Finished, Send
from ecd.edge.drafter import Context, DraftTask
from ecd.edge.timeline import (
    MOST_EVENTS,
    Committed,
    Drafted,
    HintsSent,
    RolledBack,
    Timeline,
    TokensArrived,
    as_map,
)
from ecd.sampling import Guess, Sampling
from ecd.wire.messages import Alternate, Draft, Finish, Open, Origin, Tokens
from ecd.wire.messages import Pace as WirePace

PROMPT = (90, 91)
TASK = DraftTask(0, 0, Context(list(PROMPT), 2, (5, 6)), 2, 2, Sampling(), 1, True)


def guesses(*tokens: int) -> list[Guess]:
    return [Guess(token, 1.0, "model") for token in tokens]


def begun() -> Timeline:
    return Timeline(100.0, len(PROMPT))


def emit(*ids: int) -> Emit:
    return Emit(ids, (Origin.TARGET,) * len(ids))


def test_a_draft_is_told_by_its_main_line() -> None:
    timeline = begun()
    alternate = replace(TASK, branch=1, context=Context(list(PROMPT), 2, (7,)))
    timeline.drafted([alternate, TASK], [guesses(8), guesses(1, 2, 3)], 100.001, 100.004)
    (event,) = timeline.drain()
    assert as_map(event) == {
        "kind": "drafted",
        "start_ms": 1.0,
        "end_ms": 4.0,
        "base": 4,
        "count": 3,
        "lines": 2,
    }


def test_drafting_alternates_alone_adds_nothing_to_the_main_line() -> None:
    timeline = begun()
    timeline.performed([emit(1, 2, 3)], 100.0)
    timeline.drafted([replace(TASK, branch=2)], [guesses(8)], 100.0, 100.001)
    _, event = timeline.drain()
    assert isinstance(event, Drafted)
    assert (event.base, event.count, event.lines) == (5, 0, 1)


def test_frames_with_hints_are_told_and_others_are_not() -> None:
    timeline = begun()
    opening = Open(1, None, 0, PROMPT, (), {}, 9, (), WirePace(0, 1))
    hints = Draft(1, 2, 4, (7, 8), None, None, (Alternate(5, (1, 2)),))
    exhausted = Draft(1, 2, 2, ())
    timeline.performed([Send(opening), Send(hints), Send(exhausted), Finished(Finish.STOP)], 100.5)
    assert timeline.drain() == (HintsSent(500.0, 4, 2, 1),)


def test_commits_follow_each_other() -> None:
    timeline = begun()
    timeline.performed([emit(1, 2)], 100.25)
    timeline.performed([emit(3)], 100.5)
    assert timeline.drain() == (Committed(250.0, 2, 2), Committed(500.0, 4, 1))


@pytest.mark.parametrize(
    ("guessed", "void"),
    [((), None), ((1, 2), None), ((1, 2, 3, 4), None), ((1, 9, 3, 4), (3, 3)), ((9,), (2, 1))],
)
def test_an_arrival_tells_what_it_makes_void(guessed: tuple[int, ...], void: tuple[int, int] | None) -> None:
    timeline = begun()
    timeline.arrived(Tokens(1, 2, (1, 2, 3), 2, 4, 30_500), guesses(*guessed), 0.04, 100.1)
    arrived, *rest = timeline.drain()
    assert isinstance(arrived, TokensArrived)
    assert as_map(arrived) == {
        "kind": "tokens-arrived",
        "at_ms": 100.0,
        "base": 2,
        "count": 3,
        "accepted": 2,
        "verified": 4,
        "step_ms": 30.5,
        "rtt_ms": 40.0,
    }
    assert rest == ([] if void is None else [RolledBack(arrived.at_ms, *void)])


def test_an_unknown_round_trip_time_is_told_as_none() -> None:
    timeline = begun()
    timeline.arrived(Tokens(1, 2, (1,), 0, 0, 1), (), None, 100.1)
    assert as_map(timeline.drain()[0])["rtt_ms"] is None


@given(st.lists(st.integers(1, 5), max_size=3), st.integers(0, 3))
def test_what_was_read_is_not_told_again(commits: list[int], reads: int) -> None:
    timeline, told = begun(), []
    for count in commits:
        timeline.performed([emit(*range(count))], 100.0)
        for _ in range(reads):
            told += timeline.drain()
    told += timeline.drain()
    assert [event.count for event in told if isinstance(event, Committed)] == commits
    assert timeline.drain() == ()


def test_nobody_reads_and_it_stays_bounded() -> None:
    timeline = begun()
    for _ in range(MOST_EVENTS + 5):
        timeline.performed([emit(1)], 100.0)
    kept = timeline.drain()
    assert len(kept) == MOST_EVENTS
    assert isinstance(kept[0], Committed)
    assert kept[0].base == len(PROMPT) + 5
