"""The controller: its forecast against closed formulas and the simulation, its decisions by objective."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.pacing import (
    AS_FEW,
    BALANCED_LOSS,
    COST_WAIT_S,
    DECIDED_FOR,
    FORECAST_ERROR,
    GATHERS,
    PROBE_AHEAD,
    PROBE_GUESSES,
    PROBE_TOKENS,
    QUIET_FIRST,
    QUIET_LONGEST,
    WORTH_IT,
    Conditions,
    Objective,
    Pace,
    Pacer,
    best_pace,
    forecast,
    rounds_forecast,
)
from ecd.edge.survival import EDGE_MEMORY, HORIZON, Survival
from ecd.lab.simulate import Regime, Setting, draws, simulate

MAX_VERIFY = 16
USUAL = Conditions(rtt_s=0.05, jitter_s=0.0, draft_s=0.005, step_s=0.03, token_s=0.0006)


def survival(acceptance: float) -> tuple[float, ...]:
    return tuple(acceptance**j for j in range(HORIZON + 1))


def slower(draft_s: float, conditions: Conditions = USUAL) -> Conditions:
    return Conditions(conditions.rtt_s, conditions.jitter_s, draft_s, conditions.step_s, conditions.token_s)


CONDITIONS = st.builds(
    Conditions,
    rtt_s=st.floats(0, 0.5),
    jitter_s=st.just(0.0),
    draft_s=st.floats(0.001, 0.05),
    step_s=st.floats(0.005, 0.1),
    token_s=st.floats(0, 0.01),
)
CURVES = st.lists(st.floats(0, 1), min_size=1, max_size=HORIZON).map(
    lambda rates: tuple(math.prod(rates[:j]) for j in range(len(rates) + 1))
)


# --- the forecast


@pytest.mark.parametrize("patience_s", [0.0, 0.01, math.inf])
@pytest.mark.parametrize("gather", [1, 4])
def test_where_no_guess_is_right_a_token_takes_a_step_and_what_is_waited_for(
    gather: int, patience_s: float
) -> None:
    wait_s = min(patience_s, USUAL.rtt_s + (gather + 0.5) * USUAL.draft_s)
    hints = gather if patience_s == math.inf else 0
    made = forecast(USUAL, (1.0, *([0.0] * HORIZON)), gather, patience_s, MAX_VERIFY)
    assert made.tokens_per_s == pytest.approx(1 / (wait_s + USUAL.forward_s(hints)))
    assert made.forwards_per_token == 1


@given(CONDITIONS, st.floats(0, 1), st.sampled_from(GATHERS))
def test_without_a_pipeline_it_is_the_formula_of_rounds(
    conditions: Conditions, acceptance: float, k: int
) -> None:
    """With no right guess behind the k-th there is nothing to overlap; half a guess is lost at a fork."""
    curve = (*(acceptance**j for j in range(k + 1)), 0.0)
    made, rounds = (
        forecast(conditions, curve, k, math.inf, MAX_VERIFY),
        rounds_forecast(conditions, curve, k),
    )
    assert made.forwards_per_token == pytest.approx(rounds.forwards_per_token)
    tokens = 1 / rounds.forwards_per_token
    seconds = tokens / rounds.tokens_per_s
    assert made.tokens_per_s == pytest.approx(tokens / (seconds + conditions.draft_s / 2))


def test_where_every_guess_is_right_the_slower_of_the_two_sets_the_pace() -> None:
    """A step of 30 ms with 5 ms a guess: six hints and a token in a forward of 33.6 ms; a guess of 20 ms."""
    for draft_s, rate in ((0.005, 1 / 0.005), (0.02, 1 / 0.02)):
        made = forecast(slower(draft_s), (1.0,) * 2000, 1, 0.0, MAX_VERIFY)
        assert made.tokens_per_s == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize("rtt_ms", [5, 50, 200])
@pytest.mark.parametrize(("draft_ms", "step_ms"), [(2, 15), (5, 30), (12, 60)])
@pytest.mark.parametrize("acceptance", [0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize(("gather", "patience"), [(1, 0.0), (1, math.inf), (4, math.inf), (4, 2.0)])
def test_it_is_near_the_simulation(
    rtt_ms: float, draft_ms: float, step_ms: float, acceptance: float, gather: int, patience: float
) -> None:
    """`patience` in steps. The simulated cloud verifies all it has, so hints cost little here."""
    slope, patience_ms = 0.02, patience * step_ms
    decoded = decode_ms = forwards = tokens = 0.0
    for seed in range(2):
        outcome = simulate(
            draws(acceptance, 1500, seed),
            Regime(rtt_ms, draft_ms, step_ms, slope),
            Setting(patience_ms, gather, max_verify=MAX_VERIFY),
        )
        decoded, decode_ms = decoded + outcome.decoded, decode_ms + outcome.decode_ms
        forwards, tokens = forwards + outcome.forwards, tokens + outcome.tokens
    conditions = Conditions(rtt_ms / 1000, 0.0, draft_ms / 1000, step_ms / 1000, slope * step_ms / 1000)
    made = forecast(conditions, survival(acceptance), gather, patience_ms / 1000, MAX_VERIFY)
    assert made.tokens_per_s == pytest.approx(1000 * decoded / decode_ms, rel=0.1)
    assert made.forwards_per_token == pytest.approx(forwards / tokens, rel=0.12)


@given(CONDITIONS, CURVES, st.sampled_from(GATHERS), st.sampled_from([0.0, 0.02, math.inf]))
def test_a_forecast_is_possible(
    conditions: Conditions, curve: tuple[float, ...], gather: int, patience_s: float
) -> None:
    made = forecast(conditions, curve, gather, patience_s, MAX_VERIFY)
    assert 1 / (MAX_VERIFY + 1) - 1e-9 <= made.forwards_per_token <= 1 + 1e-9
    # No token is faster than its share of the fullest forward, nor slower than with all waiting there is.
    assert made.tokens_per_s <= (MAX_VERIFY + 1) / conditions.step_s + 1e-9
    longest_s = conditions.rtt_s + (gather + 1.5) * conditions.draft_s + conditions.forward_s(MAX_VERIFY)
    assert made.tokens_per_s >= 1 / longest_s - 1e-9


@given(CONDITIONS, CURVES)
def test_a_cloud_that_never_waits_is_never_slower_than_without_drafts(
    conditions: Conditions, curve: tuple[float, ...]
) -> None:
    made = forecast(conditions, curve, 1, 0.0, MAX_VERIFY)
    assert made.tokens_per_s * conditions.step_s >= 0.98


# --- the choice


@given(CONDITIONS, CURVES)
def test_the_best_pace_is_at_least_as_fast_as_never_waiting(
    conditions: Conditions, curve: tuple[float, ...]
) -> None:
    never = forecast(conditions, curve, 1, 0.0, MAX_VERIFY).tokens_per_s
    for objective, least in ((Objective.LATENCY, 0.995), (Objective.BALANCED, 0.98)):
        chosen = best_pace(conditions, curve, objective, MAX_VERIFY, 64).forecast
        assert chosen is not None
        assert chosen.tokens_per_s >= least * never * (1 - 1e-9)


@given(CONDITIONS, st.floats(0.02, 0.98))
def test_the_best_pace_is_as_fast_as_rounds_but_for_the_guess_that_a_fork_interrupts(
    conditions: Conditions, acceptance: float
) -> None:
    curve = survival(acceptance)
    chosen = best_pace(conditions, curve, Objective.LATENCY, MAX_VERIFY, 64).forecast
    assert chosen is not None
    for k in GATHERS:
        rounds = rounds_forecast(conditions, curve, k)
        seconds = 1 / rounds.forwards_per_token / rounds.tokens_per_s
        lost = 0.995 * seconds / (seconds + conditions.draft_s / 2)
        assert max(chosen.tokens_per_s, 1 / conditions.step_s) >= lost * rounds.tokens_per_s * (1 - 1e-9)


@given(CONDITIONS, st.floats(0.05, 0.98))
def test_objectives_give_speed_for_forwards_in_their_order(conditions: Conditions, acceptance: float) -> None:
    made = [
        best_pace(conditions, survival(acceptance), objective, MAX_VERIFY, 64).forecast
        for objective in (Objective.LATENCY, Objective.BALANCED)
    ]
    assert made[0] is not None
    assert made[1] is not None
    least = 1 - BALANCED_LOSS + FORECAST_ERROR
    assert made[1].tokens_per_s >= least * made[0].tokens_per_s * (1 - 1e-9)
    assert made[1].forwards_per_token <= made[0].forwards_per_token + 1e-9


def test_cost_takes_fewest_forwards_and_is_still_faster_than_rounds() -> None:
    for rtt_s in (0.0, 0.02, 0.1, 0.4):
        conditions = Conditions(rtt_s, 0.0, 0.005, 0.03, 0.0006)
        chosen = best_pace(conditions, survival(0.8), Objective.COST, MAX_VERIFY, 64)
        quick = best_pace(conditions, survival(0.8), Objective.BALANCED, MAX_VERIFY, 64)
        assert chosen.patience_s == math.inf
        assert chosen.forecast is not None
        assert quick.forecast is not None
        assert chosen.forecast.forwards_per_token <= quick.forecast.forwards_per_token + 1e-9
        rounds = [rounds_forecast(conditions, survival(0.8), k) for k in GATHERS]
        best = max(rounds, key=lambda made: made.tokens_per_s)
        assert chosen.forecast.tokens_per_s > best.tokens_per_s
        assert chosen.forecast.forwards_per_token <= 1.05 * best.forwards_per_token


@pytest.mark.parametrize("draft_s", [0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("rtt_s", [0.0, 0.1, 0.4])
def test_cost_with_a_slow_draft_is_like_the_fastest_rounds(draft_s: float, rtt_s: float) -> None:
    conditions = Conditions(rtt_s, 0.0, draft_s, 0.03, 0.0006)
    chosen = best_pace(conditions, survival(0.8), Objective.COST, MAX_VERIFY, 64)
    assert chosen.patience_s == math.inf
    assert chosen.forecast is not None
    best = max(
        (rounds_forecast(conditions, survival(0.8), k) for k in GATHERS), key=lambda made: made.tokens_per_s
    )
    assert chosen.forecast.forwards_per_token <= AS_FEW * best.forwards_per_token
    assert chosen.forecast.tokens_per_s >= 0.9 * best.tokens_per_s
    if draft_s >= 0.3:
        assert chosen.ahead == chosen.gather, "what is drafted behind them comes too late"


@pytest.mark.parametrize(("rtt_s", "draft_s"), [(0.0, 1.1 * COST_WAIT_S), (1.1 * COST_WAIT_S, 0.005)])
def test_text_flows_under_cost_however_slow_draft_and_link_are(rtt_s: float, draft_s: float) -> None:
    conditions = Conditions(rtt_s, 0.0, draft_s, 0.03, 0.0006)
    assert best_pace(conditions, survival(0.95), Objective.COST, MAX_VERIFY, 64).patience_s == 0


@given(CONDITIONS, st.floats(0.05, 0.98))
def test_under_cost_no_step_waits_longer_for_its_hints_than_the_bound(
    conditions: Conditions, acceptance: float
) -> None:
    chosen = best_pace(conditions, survival(acceptance), Objective.COST, MAX_VERIFY, 64)
    waits_s = conditions.rtt_s + chosen.gather * conditions.draft_s
    assert chosen.patience_s == 0 or waits_s <= COST_WAIT_S


def test_patience_is_for_short_links() -> None:
    for objective in (Objective.LATENCY, Objective.BALANCED):
        near, far = (
            best_pace(Conditions(rtt_s, 0.0, 0.005, 0.03, 0.0006), survival(0.8), objective, MAX_VERIFY, 64)
            for rtt_s in (0.0, 0.2)
        )
        assert near.patience_s > far.patience_s == 0


def test_patience_lasts_until_the_hints_can_be_there_and_longer_on_an_uncertain_link() -> None:
    steady, shaky = (
        best_pace(
            Conditions(0.001, jitter_s, 0.005, 0.03, 0.0006),
            survival(0.8),
            Objective.BALANCED,
            MAX_VERIFY,
            64,
        )
        for jitter_s in (0.0, 0.001)
    )
    assert steady.gather == shaky.gather > 1
    assert 0.001 + (steady.gather + 1) * 0.005 < steady.patience_s < 0.001 + (steady.gather + 2) * 0.005
    assert shaky.patience_s == pytest.approx(steady.patience_s + 0.004)


def test_the_window_grows_with_the_round_trip_up_to_what_the_cloud_takes() -> None:
    windows = [
        best_pace(Conditions(rtt_s, 0.0, 0.005, 0.03, 0.0006), survival(0.8), Objective.LATENCY, 16, 64).ahead
        for rtt_s in (0.0, 0.05, 0.1, 0.2, 0.4)
    ]
    assert windows == sorted(windows)
    assert PROBE_AHEAD <= windows[0] < windows[2] < windows[4] == 64
    # While a round trip and a step last, a right draft is used up as fast as it is made.
    assert windows[2] * 0.005 >= 0.1 + 0.03
    assert best_pace(USUAL, survival(0.8), Objective.LATENCY, 16, 5).ahead == 5


def test_alternates_are_worth_more_the_longer_a_fork_stays_unanswered() -> None:
    worths = [
        best_pace(Conditions(rtt_s, 0.0, 0.005, 0.03, 0.0), survival(0.8), Objective.LATENCY, 16, 64)
        for rtt_s in (0.0, 0.01, 0.2)
    ]
    assert [pace.alternate_worth for pace in worths] == pytest.approx([0.25, 17.5 / 30, 1.0])


# --- drafting, quiet, probing

UNSURE = Pace(7)


def pacer(objective: Objective = Objective.LATENCY) -> Pacer:
    return Pacer(objective, Survival(EDGE_MEMORY))


def learn(controller: Pacer, *, right: bool, guesses: int = 30) -> None:
    for _ in range(guesses):
        controller.settle(0, right)


def test_before_anything_is_measured_it_does_as_told() -> None:
    assert pacer().pace(None, 0, 64, UNSURE) is UNSURE


def test_another_cloud_verifies_as_many_hints_as_it_takes() -> None:
    pacer = Pacer(Objective.COST, Survival(100.0), max_verify=16)
    conditions = Conditions(rtt_s=0.0, jitter_s=0.0, draft_s=0.002, step_s=0.03, token_s=0.0)
    before = pacer.pace(conditions, 0, 64, UNSURE)
    pacer.at_cloud(2)
    assert before.gather > pacer.pace(conditions, 0, 64, UNSURE).gather <= 2


def test_it_drafts_while_that_pays() -> None:
    pace = pacer().pace(USUAL, 0, 64, UNSURE)
    assert pace.send
    assert pace.model
    assert pace.forecast is not None
    assert pace.plain_tokens_per_s == pytest.approx(1 / USUAL.step_s, rel=0.1)
    assert pace.forecast.tokens_per_s > WORTH_IT * (pace.plain_tokens_per_s or 0)


def test_a_draft_that_is_wrong_is_quiet_then_probed_and_taken_up_again_when_it_is_right() -> None:
    controller = pacer()
    learn(controller, right=False)
    committed, waits = 10, []
    for _ in range(3):
        begun = committed
        pace = controller.pace(USUAL, committed, 64, UNSURE)
        assert (pace.model, pace.send, pace.patience_s) == (False, True, 0.0)
        assert pace.ahead == pace.copies_ahead > 0
        while not (pace := controller.pace(USUAL, committed, 64, UNSURE)).model:
            committed += 1
        waits.append(committed - begun)
        assert (pace.send, pace.ahead) == (False, PROBE_AHEAD)
        learn(controller, right=False, guesses=PROBE_GUESSES)
    assert waits == [QUIET_FIRST, 2 * QUIET_FIRST, 4 * QUIET_FIRST]
    learn(controller, right=True, guesses=300)
    committed += DECIDED_FOR
    assert controller.pace(USUAL, committed, 64, UNSURE).send
    learn(controller, right=False, guesses=300)
    committed += DECIDED_FOR
    assert not controller.pace(USUAL, committed, 64, UNSURE).model
    assert controller.pace(USUAL, committed + QUIET_FIRST, 64, UNSURE).model, "it begins with short waits"


def test_quiet_has_a_longest() -> None:
    controller = pacer()
    learn(controller, right=False, guesses=200)
    looked_at, committed = [], 0
    for committed in range(6 * QUIET_LONGEST):
        if controller.pace(USUAL, committed, 64, UNSURE).model:
            learn(controller, right=False, guesses=PROBE_GUESSES)
            looked_at.append(committed)
    gaps = [later - earlier for earlier, later in pairwise(looked_at)]
    assert max(gaps) <= QUIET_LONGEST + PROBE_TOKENS
    assert gaps[-1] >= QUIET_LONGEST


def test_a_probe_that_learns_nothing_ends_too() -> None:
    controller = pacer()
    learn(controller, right=False)
    controller.pace(USUAL, 0, 64, UNSURE)
    probing = [
        committed
        for committed in range(QUIET_FIRST, 3 * QUIET_FIRST)
        if controller.pace(USUAL, committed, 64, UNSURE).model
    ]
    assert probing == list(range(QUIET_FIRST, QUIET_FIRST + PROBE_TOKENS))


@pytest.mark.parametrize("objective", [Objective.LATENCY, Objective.BALANCED])
def test_a_slow_draft_is_quiet_however_right_it_is(objective: Objective) -> None:
    controller = pacer(objective)
    learn(controller, right=True, guesses=100)
    assert not controller.pace(slower(0.2), 0, 64, UNSURE).model
    assert pacer(objective).pace(slower(0.005), 0, 64, UNSURE).model


def test_cost_drafts_for_fewer_forwards_even_where_that_is_slower() -> None:
    slow = pacer(Objective.COST).pace(slower(0.04), 0, 64, UNSURE)
    assert slow.patience_s == math.inf
    assert slow.forecast is not None
    assert slow.forecast.tokens_per_s < 1 / USUAL.step_s
    useless = pacer(Objective.COST)
    learn(useless, right=False, guesses=300)
    assert not useless.pace(USUAL, 0, 64, UNSURE).model


def test_what_one_session_learns_is_known_to_the_next() -> None:
    edge = Survival(EDGE_MEMORY)
    learn(Pacer(Objective.LATENCY, edge), right=False, guesses=100)
    assert not Pacer(Objective.LATENCY, edge).pace(USUAL, 0, 64, UNSURE).model
