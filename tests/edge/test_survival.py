"""How long guesses stay right, by their place behind a fork."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.survival import EDGE_MEMORY, FIRST_RATE, GROUP_NAMES, GROUPS, HORIZON, Survival


def test_survival_begins_with_a_guess_of_its_own_and_then_counts_by_place() -> None:
    session = Survival(64.0)
    assert session.rate == FIRST_RATE
    assert session.curve(None)[:3] == pytest.approx((1.0, 0.7, 0.49), rel=0.1)
    for _ in range(300):
        for place in range(3):
            session.settle(place, place != 1)
    rates = session.rates(None)
    assert rates[0] > 0.9 > 0.7 > rates[1]
    assert rates[1] < 0.2
    assert rates[2] > 0.9


def test_far_places_are_counted_together() -> None:
    session = Survival(64.0)
    for place in (GROUPS[-1], GROUPS[-1] + 1, 100):
        session.settle(place, True)
    assert session.groups[-1].trials == pytest.approx(3.0, rel=0.05)
    assert [group.trials for group in session.groups[:-1]] == [0.0] * (len(GROUPS) - 1)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.8, 0.95, 0.99])
def test_a_curve_is_coarse_where_that_matters_little(rate: float) -> None:
    session = Survival(1e9)
    for number in range(100_000):
        session.settle(0, number % 100 < round(100 * rate))
    failure = 1 - session.curve(None)[1]
    assert failure == pytest.approx(1 - rate, rel=0.13)


def test_a_new_session_leans_on_what_the_edge_has_seen() -> None:
    edge = Survival(EDGE_MEMORY)
    for _ in range(200):
        edge.settle(0, False)
    assert Survival(64.0).rates(edge)[0] < 0.05
    assert Survival(64.0).rates(None)[0] == pytest.approx(FIRST_RATE)


def test_old_guesses_are_forgotten() -> None:
    session = Survival(64.0)
    for right in (False, True):
        for _ in range(400):
            session.settle(0, right)
    assert session.rates(None)[0] > 0.9


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=100))
def test_a_curve_falls_from_one(settled: list[tuple[int, bool]]) -> None:
    session = Survival(64.0)
    for place, right in settled:
        session.settle(place, right)
    curve = session.curve(Survival(EDGE_MEMORY))
    assert curve[0] == 1.0
    assert list(curve) == sorted(curve, reverse=True)
    assert 2 <= len(curve) <= HORIZON + 1
    assert curve[-1] <= 1e-3 or len(curve) == HORIZON + 1


def test_what_is_told_is_what_is_gone_by() -> None:
    session, edge = Survival(64.0), Survival(EDGE_MEMORY)
    for place, right in ((0, True), (1, False), (0, True), (9, True)):
        session.settle(place, right)
        edge.settle(place, right)
    told = session.told(edge)
    assert tuple(told) == GROUP_NAMES
    assert [group["rate"] for group in told.values()] == session.rates(edge)
    assert [round(group["settled"]) for group in told.values()] == [2, 1, 0, 1]
