"""Strategies of confidence against their formulas, on distributions that can be reckoned by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ecd.edge.confidence import MAX_PROB, PURE, Confidence, Strategy
from ecd.sampling import Rule, Sampling, guess, largest_prob

P = np.array([0.5, 0.25, 0.125, 0.125])
LOGITS = np.log(P).astype(np.float32) + np.float32(3)
ROWS = st.lists(st.floats(-80, 80, width=32) | st.just(-math.inf), min_size=2, max_size=40).filter(
    lambda row: max(row) > -math.inf
)


def of(strategy: Strategy, logits: NDArray[np.float32] = LOGITS, **numbers: object) -> float:
    return Confidence(strategy, **numbers).of(logits)  # type: ignore[arg-type]


def test_each_formula() -> None:
    squared = P**2 / (P**2).sum()
    assert of(Strategy.MAX_PROB) == pytest.approx(0.5)
    # H is 1.75 bits of the 2 that four tokens can have.
    assert of(Strategy.ENTROPY) == pytest.approx(1 - 1.75 / 2)
    assert of(Strategy.TEMPERATURE, temperature=0.5) == pytest.approx(squared[0])
    assert of(Strategy.TOP_K_AGG, top_k=2) == pytest.approx(0.75)
    assert of(Strategy.TOP_K_AGG, top_k=1) == pytest.approx(0.5)
    assert of(Strategy.TOP_K_AGG, top_k=99) == pytest.approx(1.0)
    assert of(Strategy.MARGIN) == pytest.approx(0.25)
    assert of(Strategy.NONE) == 1.0
    weights = {Strategy.MAX_PROB: 3.0, Strategy.MARGIN: 1.0}
    assert of(Strategy.ENSEMBLE, weights=weights) == pytest.approx((3 * 0.5 + 0.25) / 4)


def test_the_default_is_the_most_likely_tokens_probability_to_the_last_bit() -> None:
    row = np.random.default_rng(1).normal(0, 4, 50_000).astype(np.float32)
    assert MAX_PROB.of(row) == largest_prob(row) == float(1 / np.exp(row - row.max()).sum())
    assert guess(row, Sampling(), 3, [1], 1).confidence == MAX_PROB.of(row)


@given(ROWS, st.floats(0.1, 10), st.integers(1, 50))
def test_all_are_shares_of_one_and_do_not_change_when_all_logits_rise(
    row: list[float], temperature: float, top_k: int
) -> None:
    logits = np.array(row, dtype=np.float32)
    confidence = Confidence(Strategy.ENSEMBLE, temperature, top_k, dict.fromkeys(PURE, 1.0))
    every = confidence.all_of(logits)
    assert set(every) == set(PURE)
    for strategy in Strategy:
        value = Confidence(strategy, temperature, top_k).of(logits)
        assert 0 <= value <= 1
        assert every.get(strategy, value) == value
    raised = confidence.all_of(logits + np.float32(16))
    assert list(raised.values()) == pytest.approx(list(every.values()), abs=2e-3)
    assert every[Strategy.MARGIN] <= every[Strategy.MAX_PROB] + 1e-6
    assert every[Strategy.MAX_PROB] <= every[Strategy.TOP_K_AGG] + 1e-6


def test_certainty_is_1_and_a_uniform_distribution_is_the_least() -> None:
    certain = np.array([0, -np.inf, -np.inf], dtype=np.float32)
    assert set(Confidence().all_of(certain).values()) == {1.0}
    alike = Confidence(top_k=1).all_of(np.zeros(4, dtype=np.float32))
    assert alike[Strategy.ENTROPY] == pytest.approx(0, abs=1e-6)
    assert alike[Strategy.MARGIN] == 0
    assert alike[Strategy.MAX_PROB] == alike[Strategy.TEMPERATURE] == alike[Strategy.TOP_K_AGG] == 0.25


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("rule", [Rule.COUPLED, Rule.REJECTION])
def test_none_depends_on_the_token_that_was_drawn(strategy: Strategy, rule: Rule) -> None:
    made = [
        guess(LOGITS, Sampling(rule, seed, 1.0), 5, [0] * 5, 1, Confidence(strategy, 1.3).of)
        for seed in range(30)
    ]
    assert len({each.token for each in made}) > 1
    assert len({each.confidence for each in made}) == 1
