"""Ratios with known answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.lab.bootstrap import Amounts, ratio_interval

NONE = float("nan")


def amounts(work: list[list[float]], time: list[list[float]]) -> Amounts:
    return Amounts(np.array(work), np.array(time))


def test_equal_runs_have_no_interval_to_speak_of() -> None:
    ours, theirs = amounts([[60, 60]] * 3, [[1, 1]] * 3), amounts([[60, 60]] * 3, [[2, 2]] * 3)
    interval = ratio_interval(ours, theirs, seed=0)
    assert interval is not None
    assert (interval.median, interval.lo, interval.hi, interval.pairs) == (2, 2, 2, 6)


def test_it_is_all_work_over_all_time_and_not_the_mean_of_ratios() -> None:
    ours = amounts([[10, 10], [90, 90]], [[1, 1], [1, 1]])
    theirs = amounts([[10, 10], [90, 90]], [[1, 1], [3, 3]])
    interval = ratio_interval(ours, theirs, seed=0)
    assert interval is not None
    assert interval.median == pytest.approx((100 / 2) / (100 / 4))


def test_with_repeats_prompts_are_taken_as_given() -> None:
    # Prompts differ by far, repeats not at all: nothing is uncertain.
    ours = amounts([[10, 10, 10], [90, 90, 90]], [[1, 1, 1]] * 2)
    theirs = amounts([[10, 10, 10], [30, 30, 30]], [[1, 1, 1]] * 2)
    interval = ratio_interval(ours, theirs, seed=0)
    assert interval is not None
    assert interval.hi - interval.lo == 0


def test_without_repeats_prompts_are_resampled() -> None:
    ours = amounts([[10], [10]], [[1], [1]])
    theirs = amounts([[10], [10]], [[1], [3]])
    interval = ratio_interval(ours, theirs, seed=0)
    assert interval is not None
    assert (interval.lo, interval.hi) == (1, 3)


def test_pairs_stay_together() -> None:
    # A machine that is slow in one repeat is slow for both: the ratio is certain all the same.
    ours, theirs = amounts([[10, 10, 10]], [[1, 5, 2]]), amounts([[10, 10, 10]], [[2, 10, 4]])
    interval = ratio_interval(ours, theirs, seed=0)
    assert interval is not None
    assert interval.lo == pytest.approx(interval.hi) == pytest.approx(2)


def test_the_interval_covers_what_it_should() -> None:
    rng = np.random.default_rng(1)
    times = rng.normal(1, 0.1, (1, 400))
    ours, theirs = Amounts(np.ones((1, 400)), times), Amounts(np.ones((1, 400)), np.ones((1, 400)))
    interval = ratio_interval(ours, theirs, seed=0)
    assert interval is not None
    # The standard error of the mean time is 0.1 / sqrt(400) = 0.005; 95 % is 1.96 of it to each side.
    assert interval.hi - interval.lo == pytest.approx(2 * 1.96 * 0.005, rel=0.15)
    assert interval.lo < 1 / times.mean() < interval.hi


def test_a_missing_run_takes_its_partner_out() -> None:
    ours = amounts([[10, NONE], [10, 10]], [[1, NONE], [1, 1]])
    theirs = amounts([[10, 10], [NONE, 10]], [[2, 99], [NONE, 2]])
    interval = ratio_interval(ours, theirs, seed=0)
    assert interval is not None
    assert (interval.median, interval.pairs) == (2, 2)


def test_nothing_to_compare_is_none() -> None:
    there, empty = amounts([[1]], [[1]]), amounts([[NONE]], [[NONE]])
    assert ratio_interval(there, empty, seed=0) is None
    assert ratio_interval(there, amounts([[0]], [[0]]), seed=0) is None


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=12), st.integers(0, 5))
def test_the_same_seed_gives_the_same_interval(times: list[float], seed: int) -> None:
    ours, theirs = (
        amounts([[1] for _ in times], [[t] for t in times]),
        amounts([[1] for _ in times], [[1] for _ in times]),
    )
    first, again = ratio_interval(ours, theirs, seed), ratio_interval(ours, theirs, seed)
    assert first == again
    assert first is not None
    assert first.lo <= first.median <= first.hi
