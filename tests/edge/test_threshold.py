"""The adaptive threshold: the agreement that it is for, whatever is audited."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecd.edge.threshold import HIGHEST, LAST_STEP, LOWEST, AdaptiveThreshold, Thresholds


def audited(threshold: AdaptiveThreshold, tokens: int, rng: random.Random, power: float) -> tuple[int, int]:
    """Tokens of all confidences, right as often as confidence ** power says; how many were kept and right."""
    kept = right = 0
    for _ in range(tokens):
        confidence = 1 - rng.random() ** 2
        if confidence >= threshold.value:
            agreed = rng.random() < confidence**power
            kept += 1
            right += agreed
            threshold.audit(agreed)
    return kept, right


@pytest.mark.parametrize("agreement", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("power", [1.0, 0.5, 2.0], ids=["calibrated", "too modest", "too sure"])
def test_the_agreement_comes_out_however_well_confidence_is_calibrated(
    agreement: float, power: float
) -> None:
    threshold, rng = AdaptiveThreshold(agreement), random.Random(3)
    audited(threshold, 3000, rng, power)
    kept, right = audited(threshold, 20_000, rng, power)
    assert kept > 500
    assert right / kept == pytest.approx(agreement, abs=0.015)


def test_it_follows_prompts_that_become_harder() -> None:
    threshold, rng = AdaptiveThreshold(0.9), random.Random(4)
    audited(threshold, 5000, rng, 0.5)
    before = threshold.value
    audited(threshold, 5000, rng, 2.0)
    assert threshold.value > before
    kept, right = audited(threshold, 20_000, rng, 2.0)
    assert right / kept == pytest.approx(0.9, abs=0.015)


@settings(max_examples=200)
@given(st.sampled_from([0.5, 0.9, 0.95, 0.999]), st.lists(st.booleans(), max_size=400))
def test_it_rises_by_what_disagrees_falls_by_what_agrees_and_stays_in_bounds(
    agreement: float, verdicts: list[bool]
) -> None:
    threshold = AdaptiveThreshold(agreement)
    for agreed in verdicts:
        before = threshold.value
        threshold.audit(agreed)
        assert 0 < threshold.value < 1
        assert threshold.value <= before if agreed else threshold.value >= before
    assert threshold.audited == len(verdicts)


def test_the_errors_add_up_to_no_more_than_the_range_allows() -> None:
    """Where they come in no random order at all: the bound of adaptive conformal inference."""
    threshold, wrong, total = AdaptiveThreshold(0.9), 0, 4000
    for _ in range(total):
        agreed = threshold.value >= 0.97
        wrong += not agreed
        threshold.audit(agreed)
    assert abs(wrong / total - 0.1) <= (HIGHEST - LOWEST) / (LAST_STEP * total)
    assert abs(wrong / total - 0.1) < 0.01


def test_answers_share_a_threshold_for_each_agreement_and_all_audits_count() -> None:
    thresholds = Thresholds()
    assert thresholds.told()["agreement"] is None
    assert thresholds.adaptive(0.95) is thresholds.adaptive(0.9500001)
    assert thresholds.adaptive(0.95) is not thresholds.adaptive(0.9)
    first = thresholds.adaptive(0.95).value
    thresholds.audit(None, False)
    assert thresholds.adaptive(0.95).value == first == pytest.approx(0.8)
    thresholds.audit(0.95, False)
    assert thresholds.adaptive(0.95).value > first
    thresholds.audit(0.95, True)
    told = thresholds.told()
    assert (told["audited"], told["agreed"], told["agreement"]) == (3, 1, 1 / 3)
    assert set(thresholds.told()["thresholds"]) == {"0.95", "0.9"}  # type: ignore[call-overload]
