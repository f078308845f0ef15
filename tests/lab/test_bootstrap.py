"""Rates and ratios with known answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.lab.bootstrap import Amounts, Resampled, describe, rate_interval, ratio_interval

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


def test_without_repeats_prompts_of_a_class_are_resampled_by_themselves() -> None:
    # Classes differ by far, prompts of one not at all: nothing is uncertain.
    work, time = np.ones((4, 1)), np.array([[1.0], [1], [9], [9]])
    theirs = Amounts(work, np.ones((4, 1)))
    interval = ratio_interval(Amounts(work, time, np.array([1, 1, 2, 2])), theirs, seed=0)
    assert interval is not None
    assert (interval.lo, interval.hi) == pytest.approx((0.2, 0.2))
    assert interval.resampled is Resampled.OF_CLASSES
    assert "within each class" in describe([interval.resampled])


@pytest.mark.parametrize("classes", [[1, 1, 1, 1], [1, 1, 1, 2], [1, 2, 3, 4]])
def test_where_a_class_has_one_prompt_all_are_one_set(classes: list[int]) -> None:
    work, time = np.ones((4, 1)), np.array([[1.0], [1], [9], [9]])
    theirs = Amounts(work, np.ones((4, 1)))
    interval = ratio_interval(Amounts(work, time, np.array(classes)), theirs, seed=0)
    assert interval == ratio_interval(Amounts(work, time), theirs, seed=0)
    assert interval is not None
    assert interval.lo < interval.hi
    assert interval.resampled is Resampled.PROMPTS


def test_a_class_that_was_not_run_is_left_out() -> None:
    work, time = np.array([[1.0], [1], [NONE], [1], [1]]), np.array([[1.0], [1], [NONE], [2], [4]])
    theirs = Amounts(work, np.ones((5, 1)))
    interval = ratio_interval(Amounts(work, time, np.array([1, 1, 7, 2, 2])), theirs, seed=0)
    assert interval is not None
    assert (interval.lo, interval.hi) == pytest.approx((4 / 10, 4 / 6))
    assert interval.resampled is Resampled.OF_CLASSES


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


def coverage(prompts: int, repeats: int, experiments: int) -> float:
    """How often the interval has the true ratio in it, where repeats differ by chance and prompts by far."""
    rng = np.random.default_rng(7)
    covered = 0
    for experiment in range(experiments):
        lengths = rng.uniform(0.5, 4, (prompts, 1)) * np.ones((1, repeats))
        work = 10 * lengths
        # Each run takes its own time; on average ours takes 2 for each unit of work and theirs 3.
        ours, theirs = (Amounts(work, work * mean * rng.lognormal(-0.02, 0.2, work.shape)) for mean in (2, 3))
        interval = ratio_interval(ours, theirs, seed=experiment)
        assert interval is not None
        covered += interval.lo <= 1.5 <= interval.hi
    return covered / experiments


@pytest.mark.parametrize("repeats", [2, 3, 8])
def test_intervals_of_few_repeats_are_wide_enough(repeats: int) -> None:
    # 300 experiments of 95 %: a standard error of 1.3 %. Without the correction two repeats give 0.81.
    assert 0.91 < coverage(24, repeats, 300) < 0.99


def test_intervals_over_prompts_are_wide_enough() -> None:
    assert 0.90 < coverage(24, 1, 300) < 0.99


def test_the_variance_is_the_unbiased_one() -> None:
    # With two repeats the unbiased variance of a prompt's total time is (a - b)^2.
    times = np.random.default_rng(3).normal(10, 0.5, (200, 2))
    ones = np.ones((200, 2))
    interval = ratio_interval(Amounts(ones, times), Amounts(ones, ones), seed=0)
    assert interval is not None
    relative = np.sqrt(np.square(times[:, 0] - times[:, 1]).sum()) / times.sum()
    assert (interval.hi - interval.lo) / interval.median == pytest.approx(2 * 1.96 * relative, rel=0.1)


def test_prompts_of_unequal_repeats_keep_their_weight() -> None:
    # Two of three repeats of the second prompt are left; nothing varies, so the ratio is that of the sums.
    ours = amounts([[10, 10, 10], [90, 90, NONE]], [[1, 1, 1], [3, 3, NONE]])
    theirs = amounts([[10, 10, 10], [90, 90, 90]], [[1, 1, 1], [6, 6, 6]])
    interval = ratio_interval(ours, theirs, seed=0)
    assert interval is not None
    assert interval.resampled is Resampled.REPEATS
    assert interval.lo == pytest.approx(interval.hi) == pytest.approx((3 + 12) / (3 + 6))


def test_a_prompt_that_was_measured_once_makes_it_about_prompts() -> None:
    # Taken as they are, the two that have one repeat would look certain.
    ours = amounts([[10, 10], [10, NONE], [10, NONE]], [[1, 1], [1, NONE], [1, NONE]])
    theirs = amounts([[10, 10], [10, 10], [10, 10]], [[1, 1], [2, 2], [3, 3]])
    interval = ratio_interval(ours, theirs, seed=0)
    assert interval is not None
    assert interval.resampled is Resampled.PROMPTS
    assert interval.lo == 1
    assert interval.hi > 2


def test_a_rate_is_all_work_over_all_time_and_as_sure_as_its_repeats() -> None:
    still = rate_interval(amounts([[10, 10], [90, 90]], [[1, 1], [4, 4]]), seed=0)
    assert still is not None
    assert (still.median, still.lo, still.hi, still.pairs) == (20, 20, 20, 4)
    assert still.resampled is Resampled.REPEATS
    times = np.random.default_rng(4).normal(10, 1, (1, 400))
    measured = rate_interval(Amounts(times, np.ones((1, 400))), seed=0)
    assert measured is not None
    # The standard error of the mean is 1 / sqrt(400) = 0.05; 95 % is 1.96 of it to each side.
    assert measured.hi - measured.lo == pytest.approx(2 * 1.96 * 0.05, rel=0.15)
    assert measured.lo < times.mean() < measured.hi


def test_no_work_is_a_rate_of_nought_and_no_time_is_none() -> None:
    nothing = rate_interval(amounts([[0], [0]], [[1], [1]]), seed=0)
    assert nothing is not None
    assert (nothing.lo, nothing.median, nothing.hi) == (0, 0, 0)
    assert rate_interval(amounts([[1]], [[0]]), seed=0) is None
    assert rate_interval(amounts([[NONE]], [[NONE]]), seed=0) is None
