"""How many guesses may be added, at every pace."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.lines import Line
from ecd.edge.pacing import Pace
from ecd.edge.room import Room
from ecd.sampling import Guess

PACES = st.builds(
    Pace, st.integers(0, 20), st.integers(1, 4), copies_ahead=st.integers(0, 30), model=st.booleans()
)


def line_of(count: int, chance: float = 0.9) -> Line:
    return Line(5, guesses=[Guess(1, chance)] * count, chances=[chance] * count)


@given(PACES, st.integers(0, 20), st.integers(0, 24), st.integers(1, 40), st.booleans())
def test_no_guess_could_not_be_verified(pace: Pace, count: int, most: int, left: int, fixed: bool) -> None:
    room = Room(line_of(count, 1.0), pace, most, left, fixed)
    assert count + room.copies <= max(count, min(most, left - 1))
    assert count + room.guesses <= left - 1
    if room.may_guess:
        assert (room.guesses if room.asks_model else room.copies) > 0


@pytest.mark.parametrize(
    ("pace", "guesses", "copies", "asks_model"),
    [
        (Pace(8, copies_ahead=0), 6, 6, True),
        (Pace(8, copies_ahead=12), 6, 10, True),
        (Pace(8, model=False, copies_ahead=12), 6, 10, False),
        (Pace(0, copies_ahead=12), -2, 0, False),
        (Pace(2, copies_ahead=40), 0, 18, False),
    ],
)
def test_copies_may_reach_further_than_guesses_of_the_model(
    pace: Pace, guesses: int, copies: int, asks_model: bool
) -> None:
    room = Room(line_of(2), pace, 20, 100, False)
    assert (room.guesses, room.copies, room.asks_model) == (guesses, copies, asks_model)


def test_an_unlikely_line_goes_on_only_in_strict_rounds() -> None:
    unlikely = line_of(2, 0.1)
    assert not Room(unlikely, Pace(8, 4), 20, 100, False).may_guess
    assert Room(unlikely, Pace(8, 4, math.inf), 20, 100, False).may_guess
    assert Room(unlikely, Pace(8, 4), 20, 100, True).may_guess
    assert not Room(unlikely, Pace(8, 2), 20, 100, True).may_guess, "what is gathered is there"
