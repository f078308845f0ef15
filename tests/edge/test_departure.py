"""Until when hints wait for company."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.departure import EARLY_S, EARLY_STEPS, last_moment
from ecd.edge.pacing import Conditions


def conditions(rtt_s: float = 0.05, jitter_s: float = 0.0, step_s: float = 0.1) -> Conditions:
    return Conditions(rtt_s, jitter_s, draft_s=0.01, step_s=step_s, token_s=0.01)


def test_they_are_there_just_before_a_step_begins() -> None:
    """TOKENS came at 10.0, so steps began 25 ms before that and 140 ms later."""
    leaves = last_moment(conditions(), 10.0, 4, 10.03)
    assert leaves + 0.025 == pytest.approx(10.0 - 0.025 + 0.14 - EARLY_STEPS * 0.14)


def test_an_uncertain_way_makes_them_leave_earlier() -> None:
    steady, shaky = (last_moment(conditions(jitter_s=jitter_s), 10.0, 0, 10.0) for jitter_s in (0.0, 0.005))
    assert shaky == pytest.approx(steady - 0.01)


def test_what_is_a_little_late_leaves_at_once() -> None:
    leaves = last_moment(conditions(), 10.0, 0, 10.0)
    for late_s in (0.0, 0.001, 0.0029):
        assert last_moment(conditions(), 10.0, 0, leaves + late_s) == leaves + late_s
    assert last_moment(conditions(), 10.0, 0, leaves + 0.005) == pytest.approx(leaves + 0.1)


@given(st.floats(0, 1), st.floats(0, 0.1), st.floats(0.001, 0.5), st.integers(0, 16), st.floats(0, 3))
def test_no_wait_is_longer_than_a_step(
    rtt_s: float, jitter_s: float, step_s: float, in_step: int, since_s: float
) -> None:
    at = conditions(rtt_s, jitter_s, step_s)
    leaves = last_moment(at, 100.0, in_step, 100.0 + since_s)
    assert 0 <= leaves - (100.0 + since_s) <= at.forward_s(in_step) + 1e-9
    assert EARLY_S > 0
