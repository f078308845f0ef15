"""Rates learned from settled guesses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.decayed_rate import DecayedRate
from ecd.edge.acceptance import BUCKETS, Acceptance

confidences = st.floats(0, 1)


@given(st.floats(2, 500), st.lists(st.booleans(), max_size=300))
def test_a_decayed_rate_weighs_trials_by_their_age(memory: float, trials: list[bool]) -> None:
    rate = DecayedRate(memory)
    for success in trials:
        rate.add(success)
    weights = [(1 - 1 / memory) ** age for age in reversed(range(len(trials)))]
    assert rate.trials == pytest.approx(sum(weights))
    right = sum(weight for weight, success in zip(weights, trials, strict=True) if success)
    assert rate.successes == pytest.approx(right)
    assert rate.estimate(0.5, 4.0) == pytest.approx((right + 2) / (sum(weights) + 4))
    assert rate.mean == (pytest.approx(right / sum(weights)) if trials else None)


def test_trials_elsewhere_make_older_what_is_known_and_change_no_rate() -> None:
    rate, elsewhere = DecayedRate(10.0), DecayedRate(10.0)
    for each in (rate, elsewhere):
        each.add(True)
        each.add(False)
    before = rate.mean
    rate.fade()
    elsewhere.add(True)
    assert rate.mean == before
    assert rate.trials == pytest.approx(elsewhere.trials - 1)


def test_before_anything_is_settled_a_guess_is_worth_its_confidence() -> None:
    assert Acceptance().rate("model", 0.6) == 0.6
    assert Acceptance().mean("model") is None


def test_the_prior_weighs_four_guesses() -> None:
    acceptance = Acceptance()
    for _ in range(4):
        acceptance.settle("model", 0.5, False)
    assert acceptance.rate("model", 0.5) == pytest.approx(0.25, abs=0.01)


def test_a_bucket_learns_alone() -> None:
    acceptance = Acceptance()
    for _ in range(50):
        acceptance.settle("model", 0.9, False)
    assert acceptance.rate("model", 0.9) < 0.1
    assert acceptance.rate("model", 0.5) == 0.5
    assert acceptance.rate("lookup", 0.9) == 0.9


def test_the_mean_is_that_of_the_last_hundred_or_so() -> None:
    acceptance = Acceptance()
    for _ in range(1000):
        acceptance.settle("model", 0.9, True)
    assert acceptance.mean("model") == pytest.approx(1)
    for _ in range(100):
        acceptance.settle("model", 0.9, False)
    assert acceptance.mean("model") == pytest.approx(0.366, abs=0.01)
    assert acceptance.rate("model", 0.9) == pytest.approx(0.386, abs=0.02)


@given(st.lists(st.tuples(confidences, st.booleans()), max_size=300), confidences)
def test_a_rate_is_never_0_or_1(settled: list[tuple[float, bool]], confidence: float) -> None:
    acceptance = Acceptance()
    for sure, right in settled:
        acceptance.settle("model", sure, right)
    assert 0 < acceptance.rate("model", confidence) < 1


@given(st.sampled_from(range(len(BUCKETS) - 1)), st.lists(st.booleans(), max_size=50), st.data())
def test_within_a_bucket_surer_is_likelier(bucket: int, outcomes: list[bool], data: st.DataObject) -> None:
    low, high = BUCKETS[bucket], BUCKETS[bucket + 1]
    a, b = sorted(data.draw(st.lists(st.floats(low, high, exclude_max=True), min_size=2, max_size=2)))
    acceptance = Acceptance()
    for right in outcomes:
        acceptance.settle("model", low, right)
    assert acceptance.rate("model", a) <= acceptance.rate("model", b)


def test_totals_count_every_guess() -> None:
    acceptance = Acceptance()
    acceptance.drafted("lookup", 5)
    acceptance.drafted("model")
    acceptance.settle("lookup", 0.7, True)
    acceptance.settle("lookup", 0.7, False)
    assert acceptance.totals() == {
        "lookup": {
            "drafted": 5,
            "settled": 2,
            "right": 1,
            "acceptance_rate": 0.5,
            "recent": pytest.approx(0.5, abs=0.01),
            "confidence": {
                "0.75": {"rate": pytest.approx(0.5, abs=0.01), "settled": pytest.approx(2, abs=0.02)}
            },
        },
        "model": {
            "drafted": 1,
            "settled": 0,
            "right": 0,
            "acceptance_rate": None,
            "recent": None,
            "confidence": {},
        },
    }
    assert acceptance.mean("model") is None
