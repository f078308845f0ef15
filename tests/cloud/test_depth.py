"""How many hints to verify: what steps cost, what hints are worth, and the choice that follows."""

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecd.cloud.depth import Calibration, Depth, Hinted, StepCost, best_counts

# Measured, ms by tokens of one sequence: docs/LOG.md has the first.
BF16 = {1: 287.0, 2: 309.0, 3: 357.0, 5: 400.0, 9: 560.0, 17: 880.0}
Q4 = {1: 7.0, 2: 25.0, 5: 41.0, 9: 53.0, 17: 77.0}
FLAT = {1: 30.0, 17: 31.0}


def seconds(curve: dict[int, float], tokens: int) -> float:
    """The curve's time, linear between its points."""
    return float(np.interp(tokens, list(curve), list(curve.values()))) / 1000


def rate(curve: dict[int, float], acceptance: float, count: int) -> float:
    """Committed tokens per second with so many hints of one session."""
    return sum(acceptance**j for j in range(count + 1)) / seconds(curve, count + 1)


class Noisy:
    """Times as a busy machine gives them: 7% of noise, and one step in a hundred stalls."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def __call__(self, time: float) -> float:
        return time * self.rng.lognormvariate(0, 0.07) * (10 if self.rng.random() < 0.01 else 1)


# --- what a step costs


def test_nothing_is_known_before_the_first_measurement() -> None:
    cost = StepCost()
    assert (cost.measured, cost.seconds(1), cost.seconds(20, 3)) == (0, 0.0, 0.0)


@pytest.mark.parametrize("curve", [BF16, Q4], ids=["BF16", "Q4"])
@pytest.mark.parametrize("seed", range(5))
def test_a_curve_is_known_after_a_few_steps(curve: dict[int, float], seed: int) -> None:
    cost, rng = StepCost(), random.Random(seed)
    for tokens in [1, 2, 3, 5, 9, 17] * 3:
        cost.learn(tokens, 1, seconds(curve, tokens) * rng.lognormvariate(0, 0.03))
    for tokens in range(1, 18):
        assert cost.seconds(tokens) == pytest.approx(seconds(curve, tokens), rel=0.13), tokens


@pytest.mark.parametrize("split", [0.0, 0.6])
def test_what_passes_cost_is_told_apart_from_what_tokens_cost(split: float) -> None:
    cost, rng = StepCost(), random.Random(1)
    for _ in range(200):
        tokens, passes = rng.randint(8, 40), rng.randint(1, 5)
        cost.learn(tokens, passes, (0.02 + 0.001 * tokens) * passes**split)
    assert cost.seconds(20, 3) / cost.seconds(20) == pytest.approx(3**split, rel=0.1)
    assert cost.seconds(20) == pytest.approx(0.04, rel=0.1)


def test_more_tokens_or_passes_never_cost_less() -> None:
    cost = StepCost()
    for _ in range(20):
        cost.learn(1, 1, 0.05)
        cost.learn(16, 1, 0.02)
        cost.learn(16, 4, 0.01)
    times = [cost.seconds(n) for n in range(1, 200)]
    assert times == sorted(times)
    assert cost.seconds(16, 4) >= cost.seconds(16)


def test_one_stalled_step_changes_little() -> None:
    cost = StepCost()
    for _ in range(100):
        cost.learn(4, 1, 0.03)
    cost.learn(4, 1, 30.0)
    assert cost.seconds(4) == pytest.approx(0.03, rel=0.05)


def test_a_stall_at_the_first_step_is_forgotten_at_the_second() -> None:
    cost = StepCost()
    cost.learn(1, 1, 3.0)
    cost.learn(1, 1, 0.03)
    assert cost.seconds(1) == pytest.approx(0.03, rel=0.1)


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_machine_that_has_become_slower_or_faster_is_so_for_every_size(factor: float) -> None:
    cost = StepCost()
    for tokens in [1, 2, 4, 8] * 20:
        cost.learn(tokens, 1, seconds(BF16, tokens))
    for _ in range(50):
        cost.learn(4, 1, seconds(BF16, 4) * factor)
    assert cost.seconds(4) == pytest.approx(seconds(BF16, 4) * factor, rel=0.05)
    if factor > 1:
        assert cost.seconds(1) > seconds(BF16, 1) * 1.3


def test_a_load_that_comes_and_goes_does_not_make_the_rest_of_the_curve_drift_up() -> None:
    cost, rng = StepCost(), random.Random(1)
    for tokens in [1, 2, 4, 8, 16] * 10:
        cost.learn(tokens, 1, seconds(Q4, tokens))
    for _ in range(40):
        for factor in (1, 2):
            for _ in range(8):
                cost.learn(1, 1, seconds(Q4, 1) * factor * rng.lognormvariate(0, 0.03))
    for tokens in (2, 4, 8, 16):
        assert cost.seconds(tokens) < 2.2 * seconds(Q4, tokens)


def test_the_largest_batch_to_try_grows_with_what_was_seen() -> None:
    cost = StepCost()
    assert (cost.most_tokens(1), cost.most_tokens(40)) == (32, 80)
    cost.learn(50, 1, 0.1)
    assert cost.most_tokens(1) == 100


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-3, 10_000),
            st.integers(-1, 20),
            st.one_of(st.floats(1e-9, 1e4), st.sampled_from([0.0, -1.0, math.inf, math.nan])),
        ),
        max_size=60,
    )
)
def test_whatever_is_measured_predictions_stay_times(measured: list[tuple[int, int, float]]) -> None:
    cost = StepCost()
    for each in measured:
        cost.learn(*each)
    for tokens, passes in itertools.product((1, 3, 17, 500, 9000), (1, 2, 17)):
        predicted = cost.seconds(tokens, passes)
        assert math.isfinite(predicted)
        assert (predicted > 0) == (cost.measured > 0)


# --- what hints are worth


def test_at_first_a_claim_is_believed() -> None:
    assert Calibration().chances([0.0, 0.3, 1.0]) == [0.0, 0.3, 1.0]


def test_claims_are_corrected_by_what_became_of_them() -> None:
    calibration, rng = Calibration(), random.Random(5)
    for _ in range(400):
        claim, truth = rng.choice([(0.95, 0.5), (0.4, 0.8), (0.7, 0.7)])
        calibration.learn([claim], int(rng.random() < truth))
    high, low, right = calibration.chances([0.95, 0.4, 0.7])
    assert high == pytest.approx(0.5, abs=0.15)
    assert low == pytest.approx(0.8, abs=0.15)
    assert right == pytest.approx(0.7, abs=0.15)


def test_what_stands_behind_a_rejected_hint_is_not_judged() -> None:
    calibration = Calibration()
    calibration.learn([0.9, 0.5, 0.1], 1)
    chances = calibration.chances([0.9, 0.5, 0.1])
    assert chances[0] > 0.9
    assert chances[1] < 0.5
    assert chances[2] == 0.1


def test_a_liar_buys_little_and_is_asked_again_after_a_while() -> None:
    calibration, cost = Calibration(), StepCost()
    for tokens in [1, 2, 5, 9, 17] * 10:
        cost.learn(tokens, 1, seconds(BF16, tokens))
    verified = []
    for _ in range(2000):
        chances = calibration.chances([1.0] * 16)
        (count,) = best_counts([Hinted(chances)], cost, 16)
        calibration.learn([1.0] * count, 0)
        verified.append(count)
    wasted = [seconds(BF16, 1 + count) / seconds(BF16, 1) - 1 for count in verified]
    assert sum(wasted[:100]) < 20
    assert sum(wasted[100:]) < 0.02 * len(wasted[100:])
    assert any(verified[1000:])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.lists(st.floats(0, 1), max_size=16), st.integers(0, 16)), max_size=50))
def test_a_chance_is_one_whatever_was_claimed_and_judged(steps: list[tuple[list[float], int]]) -> None:
    calibration = Calibration()
    for claims, accepted in steps:
        calibration.learn(claims, min(accepted, len(claims)))
        assert all(0 <= chance <= 1 for chance in calibration.chances(claims))


# --- the choice


def known(curve: dict[int, float], split: float = 0.0, sessions: int = 1) -> StepCost:
    """A cost that has seen the curve for long, stretched to so many sessions."""
    cost = StepCost()
    for _ in range(30):
        for tokens in (1, 2, 4, 8, 16, 32, 64):
            for passes in (1, 2, 3):
                cost.learn(tokens, passes, seconds(curve, max(1, tokens // sessions)) * passes**split)
    return cost


def value(sessions: Sequence[Hinted], counts: Sequence[int], cost: StepCost) -> float:
    """Expected committed tokens per second, written out."""
    tokens = sum(
        1 + sum(math.prod(s.chances[: j + 1]) for j in range(count))
        for s, count in zip(sessions, counts, strict=True)
    )
    size = len(sessions) + sum(counts)
    return tokens / float(cost.hoped(np.array(float(size)), np.array(float(len(set(counts))))))


CHANCES = st.lists(st.sampled_from([0.1, 0.4, 0.6, 0.8, 0.9, 1.0]), max_size=3)
FREE, STRICT = False, True


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.builds(Hinted, CHANCES, st.sampled_from([FREE, FREE, FREE, STRICT])), min_size=1, max_size=4),
    st.sampled_from([BF16, Q4, FLAT]),
    st.integers(0, 3),
)
def test_without_a_cost_of_passes_nothing_is_better(
    sessions: list[Hinted], curve: dict[int, float], at_most: int
) -> None:
    cost = known(curve)
    counts = best_counts(sessions, cost, at_most)
    if all(s.all_of_them for s in sessions):
        assert counts == [len(s.chances) for s in sessions]
        return
    ranges = [range(min(at_most, len(s.chances)) + 1) for s in sessions]
    best = max(value(sessions, each, cost) for each in itertools.product(*ranges))
    assert value(sessions, counts, cost) == pytest.approx(best, rel=1e-9)
    assert all(count in allowed for count, allowed in zip(counts, ranges, strict=True))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.builds(Hinted, CHANCES), min_size=1, max_size=4),
    st.sampled_from([BF16, FLAT]),
    st.floats(0.1, 1.0),
)
def test_where_passes_cost_it_is_the_best_of_the_candidates(
    sessions: list[Hinted], curve: dict[int, float], split: float
) -> None:
    cost = known(curve, split)
    counts = best_counts(sessions, cost, 3)
    candidates = [[0] * len(sessions)]
    thresholds = {math.prod(s.chances[:k]) for s in sessions for k in range(1, 4)}
    for k, threshold in itertools.product(range(1, 4), thresholds):
        products = [[math.prod(s.chances[: j + 1]) for j in range(len(s.chances))] for s in sessions]
        ragged = [sum(product >= threshold for product in each) for each in products]
        equal = [k if len(s.chances) >= k else 0 for s in sessions]
        candidates += [ragged, equal]
    best = max(value(sessions, each, cost) for each in candidates)
    assert value(sessions, counts, cost) >= best * (1 - 1e-9)


def test_where_passes_cost_much_sessions_get_equal_counts() -> None:
    sessions = [Hinted([0.9, 0.9, chance]) for chance in (0.9, 0.8, 0.7, 0.5)]
    cost = known(BF16, split=0.8, sessions=4)
    assert len(set(best_counts(sessions, cost, 16))) == 1
    ragged = [Hinted([0.99] * 3), Hinted([0.99] * 3), Hinted([0.05]), Hinted([0.05])]
    assert (
        best_counts(ragged, known({1: 10.0, 8: 11.0, 16: 60.0}), 16) == [3, 1, 0, 0]
        or len(set(best_counts(ragged, known({1: 10.0, 8: 11.0, 16: 60.0}), 16))) > 1
    )


def test_where_all_want_all_of_their_hints_verified_they_get_that() -> None:
    wanting = Hinted([0.01] * 5, all_of_them=True)
    assert best_counts([wanting], known(Q4), 3) == [5]
    assert best_counts([wanting, Hinted([], all_of_them=True), wanting], known(Q4), 3) == [5, 0, 5]


@pytest.mark.parametrize("others", [[Hinted([0.01] * 5)], [Hinted([])]], ids=["hints", "no hints"])
def test_nobody_buys_fewer_forwards_with_the_time_of_others(others: list[Hinted]) -> None:
    """Beside one that does not want it so, hints of one that does are judged by what they are worth."""
    for chance in (0.01, 0.9):
        strict, free = Hinted([chance] * 5, all_of_them=True), Hinted([chance] * 5)
        for curve in (Q4, FLAT):
            cost = known(curve)
            assert best_counts([strict, *others], cost, 16) == best_counts([free, *others], cost, 16)
    assert best_counts([Hinted([0.01] * 5, all_of_them=True), *others], known(Q4), 16)[0] == 0


def test_no_hints_no_choice() -> None:
    assert best_counts([], known(Q4), 16) == []
    assert best_counts([Hinted([]), Hinted([])], known(Q4), 16) == [0, 0]
    assert best_counts([Hinted([0.9])], known(BF16), 0) == [0]
    assert best_counts([Hinted([0.0, 1.0])], known(FLAT), 16) == [0]


def test_a_batch_far_beyond_what_is_known_is_not_tried() -> None:
    cost = StepCost()
    cost.learn(40, 1, 0.03)
    counts = best_counts([Hinted([1.0] * 16)] * 40, cost, 16)
    assert 0 < sum(counts) <= 40


# --- step after step


def play(curve: dict[int, float], acceptance: float, steps: int, seed: int = 0) -> list[int]:
    """The counts chosen for one session whose hints are right with this chance, and say so."""
    depth, rng, noisy = Depth(16), random.Random(seed), Noisy(seed)
    chosen = []
    for _ in range(steps):
        (count,) = depth.choose([Hinted([acceptance] * 16)])
        depth.cost.learn(count + 1, 1, noisy(seconds(curve, count + 1)))
        chosen.append(count)
        rng.random()
    return chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("acceptance", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("curve", [BF16, Q4, FLAT], ids=["BF16", "Q4", "flat"])
def test_it_finds_what_pays_by_itself(curve: dict[int, float], acceptance: float, seed: int) -> None:
    chosen = play(curve, acceptance, 600, seed)
    tokens = sum(rate(curve, acceptance, k) * seconds(curve, k + 1) for k in chosen)
    reached = tokens / sum(seconds(curve, k + 1) for k in chosen)
    best = max(rate(curve, acceptance, k) for k in range(17))
    assert reached > 0.88 * best
    # Never worse than a cloud without hints, but for the tries.
    assert reached > 0.97 * rate(curve, acceptance, 0)


def test_where_hints_never_pay_tries_become_rare() -> None:
    chosen = play(Q4, 0.4, 4000)
    assert sum(count > 0 for count in chosen[:200]) < 20
    assert 1 <= sum(count > 0 for count in chosen[1000:]) <= 5
    time = sum(seconds(Q4, count + 1) - seconds(Q4, 1) for count in chosen)
    assert time < 0.03 * len(chosen) * seconds(Q4, 1)


def test_a_changed_cost_is_found_out() -> None:
    depth = Depth(16)
    curve, chosen = Q4, []
    for step in range(3000):
        if step == 1000:
            curve = FLAT
        (count,) = depth.choose([Hinted([0.9] * 4)])
        depth.cost.learn(count + 1, 1, seconds(curve, count + 1))
        chosen.append(count)
    assert chosen[900:1000].count(0) >= 98
    assert chosen[-100:].count(4) >= 98


def test_where_hints_pay_a_step_without_any_is_tried_unless_one_came_by_itself() -> None:
    def zeros(gap: int) -> int:
        depth, zeros = Depth(16), 0
        for step in range(100):
            hints = [] if gap and step % gap == 0 else [0.9] * 4
            (count,) = depth.choose([Hinted(hints)])
            depth.cost.learn(count + 1, 1, seconds(FLAT, count + 1))
            zeros += bool(hints) and not count
        return zeros

    assert zeros(gap=0) >= 3
    assert zeros(gap=3) == 0


def test_strict_sessions_by_themselves_are_never_tried_upon() -> None:
    depth = Depth(4)
    for _ in range(300):
        assert depth.choose([Hinted([0.9] * 3, all_of_them=True)]) == [3]
        depth.cost.learn(4, 1, 0.03)


def test_strict_sessions_beside_others_are_tried_upon_like_them() -> None:
    depth, counts = Depth(4), []
    for _ in range(300):
        counts.append(depth.choose([Hinted([0.9] * 3, all_of_them=True), Hinted([0.9] * 3)]))
        depth.cost.learn(2 + sum(counts[-1]), len(set(counts[-1])), 0.03)
    assert [0, 0] in counts[-200:]
    assert counts[-1] == [3, 3]
