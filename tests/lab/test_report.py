"""From runs to results: known numbers, the promised names, and a page that stands alone."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from xml.dom import minidom

import pytest
from pydantic import BaseModel, Field

from ecd.errors import ConfigError
from ecd.lab import page as page_module
from ecd.lab.expect import Expectation, controllers_setting, expect_measured
from ecd.lab.page import COLUMNS, GAIN, check_matplotlib, page, text_table
from ecd.lab.report import differing, report_of, results
from ecd.lab.runs import Campaign, Cell, Measured, Mode, Run, Variant
from ecd.lab.simulate import PLAIN, Regime, draws

CLOUD, ECD = Variant(Mode.CLOUD), Variant(Mode.ECD)
PLAIN_ECD = Variant(Mode.ECD_NO_ALTERNATES)
WAIT = Variant(Mode.WAIT)
K2, K4 = Variant(Mode.ROUNDS, 2), Variant(Mode.ROUNDS, 4)
CAMPAIGN = Campaign((0.0, 50.0), repeats=2)


def run(variant: Variant, decode_ms: float, *, prompt: int = 0, repeat: int = 0, rtt_ms: float = 0.0) -> Run:
    """A run of 11 tokens, the first at once: 10 in `decode_ms`."""
    kind = ("code", "chat")[prompt % 2]
    return Run(
        Cell(variant, rtt_ms, kind, prompt, repeat),
        ids=tuple(range(11)),
        decoded=10,
        decode_ms=decode_ms,
        ttft_ms=40.0,
        gaps_ms=(decode_ms / 10,) * 10,
        forwards=11 if variant is CLOUD else 5,
        drafted=0 if variant is CLOUD else 12,
        verified=0 if variant is CLOUD else 8,
        accepted=0 if variant is CLOUD else 6,
        settled=0 if variant is CLOUD else 10,
        right=0 if variant is CLOUD else 8,
        bytes_up=110,
        bytes_down=220,
        packet_bytes=1100,
        cpu_edge_s=0.5,
        cpu_cloud_s=1.5,
    )


def no_expectation(*given: Any) -> None:
    return None


def lines(runs: Sequence[Run]) -> dict[tuple[float, str, str], dict[str, Any]]:
    made = results(Measured(tuple(runs), len(runs), False, {}), CAMPAIGN, no_expectation)
    return {(line["rtt_ms"], line["class"], str(line["mode"])): line for line in made}


def both(variant: Variant, decode_ms: float, **where: Any) -> list[Run]:
    return [run(variant, decode_ms, repeat=repeat, **where) for repeat in (0, 1)]


def test_numbers_of_a_mode() -> None:
    line = lines([*both(CLOUD, 1000.0), *both(ECD, 500.0)])[0.0, "all", "ecd"]
    assert line["tokens_per_s"] == {"median": 20.0, "min": 20.0, "max": 20.0}
    assert line["ratio_to_cloud"] == {
        "median": 2.0, "lo": 2.0, "hi": 2.0, "pairs": 2, "resampled": "repeats",
    }  # fmt: skip
    assert line["ratio_to_best"]["median"] == 2.0
    assert line["best_other"] == "cloud"
    assert line["itl_ms"] == {"p50": 50.0, "p99": 50.0}
    assert line["ttft_ms"] == 40.0
    assert line["forwards_per_token"] == pytest.approx(5 / 11)
    assert line["acceptance_rate"] == 0.75
    assert line["guesses_right"] == 0.8
    assert line["wasted_drafts_per_token"] == pytest.approx(6 / 11)
    assert (line["bytes_up_per_token"], line["bytes_down_per_token"]) == (10.0, 20.0)
    assert line["packet_bytes_per_token"] == 100.0
    assert line["cpu_s"] == {"edge": 1.0, "cloud": 3.0}


def test_rounds_show_their_fastest_k_at_each_rtt() -> None:
    near = [*both(CLOUD, 1000.0), *both(K2, 500.0), *both(K4, 400.0)]
    far = [*both(CLOUD, 1000.0, rtt_ms=50.0), *both(K2, 800.0, rtt_ms=50.0), *both(K4, 900.0, rtt_ms=50.0)]
    found = lines(near + far)
    assert found[0.0, "all", "rounds"]["k"] == 4
    assert found[50.0, "all", "rounds"]["k"] == 2


def test_classes_are_apart_and_together() -> None:
    found = lines(
        [
            *both(CLOUD, 1000.0), *both(CLOUD, 1000.0, prompt=1),
            *both(ECD, 250.0), *both(ECD, 750.0, prompt=1),
        ]
    )  # fmt: skip
    ratios = {kind: found[0.0, kind, "ecd"]["ratio_to_cloud"]["median"] for kind in ("code", "chat", "all")}
    assert ratios == pytest.approx({"code": 4.0, "chat": 4 / 3, "all": 2.0})


def test_ecd_is_held_against_the_best_of_the_others() -> None:
    found = lines([*both(CLOUD, 1000.0), *both(K4, 500.0), *both(WAIT, 400.0), *both(ECD, 410.0)])
    line = found[0.0, "all", "ecd"]
    assert line["best_other"] == "wait"
    assert line["ratio_to_best"]["median"] == pytest.approx(400 / 410)
    assert "ratio_to_best" not in found[0.0, "all", "wait"]


def test_a_failed_run_is_counted_and_left_out() -> None:
    broken = replace(run(ECD, 1.0, repeat=1), error="the link was lost", ids=(), decoded=0, decode_ms=0.0)
    found = lines([*both(CLOUD, 1000.0), run(ECD, 500.0), broken])
    line = found[0.0, "all", "ecd"]
    assert (line["runs"], line["failed"]) == (1, 1)
    assert line["ratio_to_cloud"]["median"] == 2.0
    assert line["ratio_to_cloud"]["pairs"] == 1


def test_without_cloud_there_is_no_ratio() -> None:
    assert lines(both(ECD, 500.0))[0.0, "all", "ecd"]["ratio_to_cloud"] is None


def test_answers_that_differ_are_counted() -> None:
    odd = replace(run(ECD, 500.0), ids=(1, 2, 3))
    assert differing([*both(CLOUD, 1000.0), odd, run(ECD, 500.0, prompt=1)]) == (1, 4)


def test_the_prediction_stands_beside_the_measurement() -> None:
    expectation = Expectation([[True] * 60], Regime(0, 5, 100, 0.0))
    measured = Measured((*both(CLOUD, 1000.0), *both(ECD, 500.0)), 4, False, {})
    found = results(measured, CAMPAIGN, lambda *given: expectation)
    predicted = {str(line["mode"]): line["predicted_ratio"] for line in found if line["class"] == "all"}
    assert predicted["cloud"] == pytest.approx(1)
    assert predicted["ecd"] > 3


REGIMES = [
    Regime(rtt_ms, draft_ms, 30, slope)
    for rtt_ms in (0, 50, 200)
    for draft_ms in (3, 60)
    for slope in (0.02, 1)
]


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("acceptance", [0.05, 0.8])
def test_every_objective_has_a_prediction(regime: Regime, acceptance: float) -> None:
    expectation = Expectation([draws(acceptance, 600, seed=0)], regime)
    latency, balanced, cost = (
        expectation.of(ECD, objective) for objective in ("latency", "balanced", "cost")
    )
    # Nothing is faster than what is predicted for speed alone, and cost saves forwards whatever it takes.
    assert 1.01 * latency.ratio > balanced.ratio > 0.9
    assert 1.01 * latency.ratio > cost.ratio > 0
    assert cost.forwards_per_token <= balanced.forwards_per_token <= 1
    assert expectation.of(PLAIN_ECD, "cost") == cost


def test_the_controllers_setting_is_what_the_objective_says() -> None:
    near, slow = Regime(20, 5, 30, 0.02), Regime(20, 90, 30, 0.02)
    good, bad = [draws(0.8, 600, seed=0)], [draws(0.05, 600, seed=0)]
    assert controllers_setting(good, near, "cost").patience_ms == math.inf
    assert 0 <= controllers_setting(good, near, "balanced").patience_ms < math.inf
    assert controllers_setting(good, near, "balanced").ahead > 0
    assert controllers_setting(bad, slow, "balanced") == PLAIN


def test_what_alternates_are_worth_is_told_apart() -> None:
    found = lines([*both(CLOUD, 1000.0), *both(PLAIN_ECD, 500.0), *both(ECD, 400.0)])
    ours, without = found[0.0, "all", "ecd"], found[0.0, "all", "ecd-no-alternates"]
    # The best of the others is not one of ours.
    assert (ours["best_other"], without["best_other"]) == ("cloud", "cloud")
    assert without["ratio_to_best"]["median"] == 2.0
    assert ours["ratio_to_no_alternates"]["median"] == pytest.approx(1.25)
    assert "ratio_to_no_alternates" not in without
    assert "1.25 [1.25, 1.25]" in text_table([ours | {"emulated": False}], GAIN)


def test_the_report_says_what_was_resampled() -> None:
    def told(runs: Sequence[Run]) -> str:
        measured = Measured(tuple(runs), len(runs), False, {})
        return str(report_of(measured, CAMPAIGN, no_expectation, emulated=False)["intervals"])

    once = [run(variant, 500.0, prompt=prompt) for variant in (CLOUD, ECD) for prompt in (0, 2)]
    assert told([*both(CLOUD, 1000.0), *both(ECD, 500.0)]).startswith(
        "95 %, bootstrap, 2,000 resamples of repeats within each"
    )
    assert "resamples of prompts, where" in told(once)
    of_both_classes = [run(variant, 500.0, prompt=prompt) for variant in (CLOUD, ECD) for prompt in range(4)]
    assert "or of prompts within each class" in told(of_both_classes)
    assert told([]) == "none"
    mixed = [
        *once,
        run(CLOUD, 500.0, repeat=1),
        run(ECD, 500.0, repeat=1),
        *both(CLOUD, 9.0, prompt=1),
        *both(ECD, 9.0, prompt=1),
    ]
    assert "; or of prompts" in told(mixed)


def test_what_is_expected_of_real_models_is_what_was_measured() -> None:
    conditions = {"draft_ms": 7.0, "slope": 0.1, "acceptance": 0.1}
    expectation = expect_measured([*both(CLOUD, 1000.0), *both(WAIT, 500.0)], 20.0, conditions)
    assert expectation is not None
    assert expectation.regime == Regime(20.0, 7.0, 100.0, 0.1)
    (answer,) = expectation.answers
    assert sum(answer) / len(answer) == pytest.approx(0.8, abs=0.03)
    assert expect_measured(both(WAIT, 500.0), 20.0, conditions) is None
    assert expect_measured([*both(CLOUD, 1000.0), *both(WAIT, 500.0)], 20.0, {}) is None


class Spread(BaseModel):
    median: float
    min: float
    max: float


class Ratio(BaseModel):
    median: float
    lo: float
    hi: float


class Percentiles(BaseModel):
    p50: float
    p99: float


class Line(BaseModel):
    """A line of `results`; every name is there, though a number may be null."""

    mode: str
    rtt_ms: float
    kind: str = Field(alias="class")
    tokens_per_s: Spread
    ratio_to_cloud: Ratio
    ttft_ms: float
    itl_ms: Percentiles
    forwards_per_token: float
    acceptance_rate: float | None
    bytes_up_per_token: float
    bytes_down_per_token: float
    packet_bytes_per_token: float
    predicted_ratio: float


class Report(BaseModel):
    machine: dict[str, str | int | float]
    versions: dict[str, str]
    results: list[Line]


@pytest.fixture
def report() -> dict[str, Any]:
    runs = [
        made
        for rtt_ms in (0.0, 50.0)
        for prompt in (0, 1)
        for variant, ms in ((CLOUD, 1000.0), (K4, 600.0), (WAIT, 500.0), (ECD, 400.0))
        for made in both(variant, ms, prompt=prompt, rtt_ms=rtt_ms)
    ]
    expectation = Expectation([[True] * 30], Regime(0, 5, 100, 0.0))
    measured = Measured(tuple(runs), 40, True, {0.0: {"slope": 0.1}})
    return {
        "machine": {"cpu": "a CPU, 2 cores", "memory_gib": 23.6},
        "versions": {"ecd": "0.1"},
        "command": "ecd bench stream --target <x>",
        "started": "2026-11-22T00:00:00+00:00",
        **report_of(measured, CAMPAIGN, lambda *given: expectation, emulated=True),
    }


def test_the_json_has_the_promised_names(report: dict[str, Any]) -> None:
    text = json.dumps(report, allow_nan=False)
    checked = Report.model_validate_json(text, strict=True)
    seen = {(line.rtt_ms, line.kind, line.mode) for line in checked.results}
    modes, kinds = ("cloud", "rounds", "wait", "ecd"), ("all", "code", "chat")
    assert seen == {(rtt_ms, kind, mode) for rtt_ms in (0.0, 50.0) for kind in kinds for mode in modes}
    assert all(line["emulated"] for line in report["results"])
    assert len(report["runs"]) == 32
    assert (report["planned"], report["interrupted"], report["failed"], report["differing"]) == (
        40,
        True,
        0,
        0,
    )


def test_the_page_stands_alone_and_says_emulated_in_every_row(report: dict[str, Any]) -> None:
    html = page(report)
    plots = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(plots) == 3
    for plot in plots:
        minidom.parseString(plot)
    assert not re.search(r'(src|href)="(?!#)', html)
    rows = re.findall(r"<tr class=.*?</tr>", html)
    assert len(rows) == len(report["results"]) + 6
    assert all("emulated" in row for row in rows)
    assert "with TCP/IP headers" in html
    assert "&lt;x&gt;" in html
    assert "32 of 40, 0 failed, interrupted" in html


def test_a_run_that_was_interrupted_at_once_has_a_report_too() -> None:
    empty = report_of(Measured((), 40, True, {}), CAMPAIGN, no_expectation, emulated=False)
    assert empty["results"] == []
    assert "interrupted" in page({"machine": {}, "versions": {}, "command": "", "started": "", **empty})


def test_the_table_for_a_terminal_is_aligned(report: dict[str, Any]) -> None:
    rows = text_table(report["results"], COLUMNS).splitlines()
    assert len(rows) == 1 + len(report["results"])
    assert len({len(row) for row in rows}) == 1


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'ecd\[lab\]'"):
        check_matplotlib()
