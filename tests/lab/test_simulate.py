"""The simulation against the design's table, against closed formulas, and against itself."""

import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.lab.simulate import (
    PLAIN,
    Regime,
    Setting,
    best_rounds,
    draws,
    predict,
    predict_modes,
    rounds,
    simulate,
)

TOKENS = 4000
regimes = st.builds(
    Regime,
    rtt_ms=st.floats(0, 400),
    draft_ms=st.floats(0.5, 100),
    step_ms=st.floats(1, 100),
    slope=st.floats(0, 1),
)
answers = st.lists(st.booleans(), min_size=1, max_size=60)
settings_ = st.builds(
    Setting,
    patience_ms=st.just(math.inf) | st.floats(0, 200),
    gather=st.integers(0, 8),
    ahead=st.integers(0, 20),
    max_verify=st.integers(1, 16),
)


# tokens/s over plain streaming at t1 30, td 5, a 0.8, slope 0.02: rounds with best k, pipelined, streaming
DESIGN = {
    1: (1.86, 2.33, 2.23),
    10: (1.59, 2.05, 2.07),
    20: (1.39, 1.80, 1.81),
    40: (1.12, 1.46, 1.65),
    80: (0.82, 1.05, 1.39),
    150: (0.56, 0.71, 1.18),
}


@pytest.mark.parametrize("rtt_ms", DESIGN)
def test_the_designs_table_is_reproduced(rtt_ms: int) -> None:
    regime = Regime(rtt_ms, 5, 30, 0.02)
    answer = [draws(0.8, TOKENS, seed) for seed in range(4)]
    measured = (
        best_rounds(answer, regime).ratio,
        predict(answer, regime, Setting(math.inf)).ratio,
        predict(answer, regime, Setting()).ratio,
    )
    assert measured == pytest.approx(DESIGN[rtt_ms], rel=0.04)


@given(answers, regimes, settings_)
def test_every_answer_comes_to_its_end_with_every_token_counted_once(
    right: list[bool], regime: Regime, setting: Setting
) -> None:
    outcome = simulate(right, regime, setting)
    # Each forward commits the hints it accepts and one token of the target's own.
    assert outcome.accepted + outcome.forwards == outcome.tokens == len(right)
    assert outcome.accepted <= outcome.verified <= outcome.drafted
    assert outcome.accepted <= sum(right)
    assert 0 <= outcome.decoded < len(right)
    assert outcome == simulate(right, regime, setting)


@given(st.integers(1, 60), regimes)
def test_without_drafting_every_token_is_a_step(tokens: int, regime: Regime) -> None:
    outcome = simulate([True] * tokens, regime, PLAIN)
    assert (outcome.forwards, outcome.drafted) == (tokens, 0)
    assert outcome.decode_ms == pytest.approx((tokens - 1) * regime.step_ms)


@given(answers, regimes)
def test_a_draft_that_is_always_wrong_costs_a_cloud_that_never_waits_only_its_verifying(
    right: list[bool], regime: Regime
) -> None:
    outcome = simulate([False] * len(right), regime, Setting(max_verify=1))
    assert outcome.forwards == len(right)
    assert outcome.decode_ms <= (len(right) - 1) * regime.forward_ms(2) + 1e-6


def test_rounds_follow_their_formula() -> None:
    # With every guess right, a round of k commits k + 1 tokens in k drafts, a round trip and a step of k + 1.
    regime = Regime(40, 5, 30, 0.02)
    outcome = simulate([True] * (1 + 5 * 20), regime, rounds(4))
    assert outcome.forwards == 1 + 20
    assert outcome.decode_ms == pytest.approx(20 * (4 * 5 + 40 + 30 * 1.08), rel=0.02)


def test_a_wrong_guess_is_paid_with_a_round_trip() -> None:
    # td 10, t1 30, RTT 20, pipelined: the cloud waits for what is drafted when its correction has arrived.
    right = [True] * 30
    wrong = [*right[:15], False, *right[16:]]
    regime = Regime(20, 10, 30, 0.0)
    patient = Setting(math.inf)
    assert simulate(wrong, regime, patient).decode_ms > simulate(right, regime, patient).decode_ms
    assert simulate(wrong, regime, patient).accepted < simulate(right, regime, patient).accepted


def test_gathering_saves_forwards() -> None:
    right = draws(0.9, 1000, seed=1)
    regime = Regime(10, 5, 30, 0.02)
    forwards = [simulate(right, regime, Setting(math.inf, gather)).forwards for gather in (1, 4, 8)]
    assert forwards == sorted(forwards, reverse=True)
    assert forwards[2] < 0.7 * forwards[0]


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("rtt_ms", [0, 50, 400])
@pytest.mark.parametrize(("draft_ms", "slope"), [(5, 0.02), (60, 0.02), (5, 1.0)])
def test_ecd_is_predicted_to_be_the_best_of_all(
    acceptance: float, rtt_ms: int, draft_ms: int, slope: float
) -> None:
    modes = predict_modes([draws(acceptance, 400, seed=3)], Regime(rtt_ms, draft_ms, 30, slope))
    assert modes["ecd"].ratio == max(p.ratio for p in modes.values()) >= 1
    assert modes["cloud"].ratio == pytest.approx(1)


def test_several_answers_are_all_tokens_over_all_time() -> None:
    regime = Regime(20, 5, 30, 0.02)
    both = [[True] * 50, [False] * 30]
    outcomes = [simulate(right, regime, Setting()) for right in both]
    expected = sum(o.decoded for o in outcomes) / sum(o.decode_ms for o in outcomes)
    assert predict(both, regime, Setting()).tokens_per_s == pytest.approx(1000 * expected)


def test_draws_are_the_seeds_own() -> None:
    assert draws(0.5, 50, seed=7) == draws(0.5, 50, seed=7) != draws(0.5, 50, seed=8)
    assert sum(draws(0.5, TOKENS, seed=7)) == pytest.approx(TOKENS / 2, rel=0.05)


def test_it_is_quick() -> None:
    right = [random.Random(1).random() < 0.8 for _ in range(TOKENS)]
    start = time.process_time()
    simulate(right, Regime(150, 5, 30, 0.02), Setting())
    assert time.process_time() - start < 0.2
