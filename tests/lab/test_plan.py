"""`ecd plan`: the formula it quotes, its verdicts, and what it says when something is missing."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ecd.cli import cli
from ecd.errors import BadRequest
from ecd.lab.plan import colocated, plan_for
from ecd.lab.simulate import Regime, draws, predict, rounds

GIVEN = ["--draft-ms", "5", "--target-ms", "30", "--slope", "0.02", "--acceptance", "0.8"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plan", *arguments])


def test_the_colocated_formula_is_the_papers() -> None:
    # Leviathan et al., theorem 3.8: (1 - a^(k+1)) / ((1 - a) (k c + 1)); their slope is 0.
    best = colocated(draft_ms=5, step_ms=30, slope=0, acceptance=0.8)
    assert best.ratio == pytest.approx((1 - 0.8 ** (best.k + 1)) / (0.2 * (best.k * 5 / 30 + 1)))
    assert best.k == 4


def test_the_formula_is_what_rounds_without_a_link_give() -> None:
    best = colocated(draft_ms=5, step_ms=30, slope=0.02, acceptance=0.8)
    answers = [draws(0.8, 4000, seed) for seed in range(4)]
    simulated = predict(answers, Regime(0, 5, 30, 0.02), rounds(best.k))
    assert simulated.ratio == pytest.approx(best.ratio, rel=0.02)


def test_a_certain_draft_commits_all_it_drafts() -> None:
    assert colocated(draft_ms=0.001, step_ms=30, slope=0, acceptance=1).ratio == pytest.approx(13, rel=0.01)


def test_the_verdict_knows_when_drafting_pays() -> None:
    assert "drafting is worth it" in plan_for(Regime(20, 5, 30, 0.02), 0.8).verdict
    assert "does not pay" in plan_for(Regime(20, 60, 30, 0.02), 0.5).verdict
    far = plan_for(Regime(100, 5, 30, 0.02), 0.8).verdict
    assert "waiting for drafts would be slower than no drafts" in far
    assert "a draft beside the target would give more" in far
    # The edge drafts for any gain above 2 %, and the plan does not say otherwise.
    little = plan_for(Regime(100, 15, 30, 0.02), 0.7)
    assert 1.02 < little.modes["ecd"].ratio < 1.03
    assert "drafting is worth it" in little.verdict


def test_a_line_for_each_rtt() -> None:
    result = run("--rtt", "100,0,20", *GIVEN)
    assert result.exit_code == 0, result.output
    verdicts = [line for line in result.output.splitlines() if line.startswith("RTT ") and "ms:" in line]
    assert [line.split(":")[0] for line in verdicts] == ["RTT 0 ms", "RTT 20 ms", "RTT 100 ms"]


def test_json_has_every_mode_and_no_infinity() -> None:
    (plan,) = json.loads(run("--rtt", "20", *GIVEN, "--json").output, parse_constant=pytest.fail)
    assert set(plan["modes"]) == {"cloud", "rounds", "wait", "ecd"}
    assert plan["rtt_ms"] == 20
    assert plan["modes"]["wait"]["setting"]["patience_ms"] is None
    assert plan["modes"]["ecd"]["ratio"] >= max(mode["ratio"] for mode in plan["modes"].values())


@pytest.mark.parametrize("rtt", ["x", "-1", "20,", "inf", "nan", "1e9"])
def test_a_bad_list_is_a_usage_error(rtt: str) -> None:
    result = run("--rtt", rtt, *GIVEN)
    assert result.exit_code == 2
    assert "--rtt" in result.output


@pytest.mark.parametrize("option", ["--draft-ms", "--target-ms", "--slope", "--acceptance"])
@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e308", "-1"])
def test_numbers_that_are_none_and_times_without_end_are_refused(option: str, number: str) -> None:
    result = run("--rtt", "20", *GIVEN, option, number)
    assert result.exit_code == 2
    assert option in result.output


def test_what_is_missing_is_named() -> None:
    with pytest.raises(BadRequest, match="--rtt, --slope"):
        _raise(run("--draft-ms", "5", "--target-ms", "30", "--acceptance", "0.8"))


def _raise(result: Result) -> None:
    assert result.exception is not None
    raise result.exception


CONDITIONS = {"rtt_ms": 40.0, "jitter_ms": 1.0, "draft_ms": 5.0, "step_ms": 30.0, "slope": 0.02}


@pytest.fixture
def edge(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A live edge in so far as `ecd plan` asks it: the conditions that its `stats` tell."""
    conditions: dict[str, Any] = {**CONDITIONS, "acceptance": 0.8}

    class Edge:
        def call(self, verb: str) -> dict[str, Any]:
            assert verb == "stats"
            return {"conditions": conditions}

    monkeypatch.setattr("ecd.client.BlockingClient", lambda path: contextlib.nullcontext(Edge()))
    return conditions


def test_a_live_edge_fills_in_what_is_not_given(edge: dict[str, Any]) -> None:
    (plan,) = json.loads(run("--socket", "edge.sock", "--json", "--acceptance", "0.5").output)
    assert (plan["rtt_ms"], plan["step_ms"], plan["acceptance"]) == (40.0, 30.0, 0.5)


def test_what_the_edge_has_not_measured_is_named(edge: dict[str, Any]) -> None:
    edge |= {"acceptance": None, "slope": None}
    with pytest.raises(BadRequest, match=r"edge\.sock has not measured these: --slope, --acceptance"):
        _raise(run("--socket", str(Path("edge.sock"))))
