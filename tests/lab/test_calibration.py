"""Reliability, temperature and risk-coverage, on tokens whose numbers can be reckoned by hand."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.confidence import PURE, Strategy
from ecd.lab.calibrate import Observed, calibrate, calibration_report, draw, summary
from ecd.lab.calibration import (
    TEMPERATURES,
    Bin,
    Kept,
    area_of_risk,
    calibration_error,
    fitted,
    reliability,
    risk_coverage,
    tempered,
    thinned,
    threshold_for,
)

CONFIDENCE = np.array([0.95, 0.95, 0.91, 0.35, 1.0])
AGREED = np.array([True, True, False, False, True])
TOKENS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def test_bins_hold_mean_confidence_and_agreement_and_weigh_in_the_error_by_their_tokens() -> None:
    low, high = reliability(CONFIDENCE, AGREED)
    assert low == Bin(0.3, 0.4, 1, 0.35, 0.0)
    assert (high.low, high.high, high.tokens, high.agreement) == (0.9, 1.0, 4, 0.75)
    assert high.confidence == pytest.approx(0.9525)
    assert calibration_error((low, high)) == pytest.approx(0.2 * 0.35 + 0.8 * 0.2025)


def test_equal_confidences_are_kept_together_and_the_curve_ends_with_all() -> None:
    assert risk_coverage(CONFIDENCE, AGREED) == (
        Kept(1.0, 0.2, 1.0),
        Kept(0.95, 0.6, 1.0),
        Kept(0.91, 0.8, 0.75),
        Kept(0.35, 1.0, 0.6),
    )
    assert area_of_risk(risk_coverage(CONFIDENCE, AGREED)) == pytest.approx(0.2 * 0.25 + 0.2 * 0.4)


def test_the_threshold_for_an_agreement_keeps_as_much_as_it_can() -> None:
    curve = risk_coverage(CONFIDENCE, AGREED)
    assert threshold_for(curve, 0.9) == Kept(0.95, 0.6, 1.0)
    assert threshold_for(curve, 0.75) == Kept(0.91, 0.8, 0.75)
    assert threshold_for(curve, 0.5) == curve[-1]
    assert threshold_for(risk_coverage(CONFIDENCE, ~AGREED), 0.99) is None


@given(TOKENS)
def test_curves_and_bins_cover_every_token_once(tokens: list[tuple[float, bool]]) -> None:
    confidence, agreed = np.array([c for c, _ in tokens]), np.array([a for _, a in tokens])
    assert sum(each.tokens for each in reliability(confidence, agreed)) == len(tokens)
    curve = risk_coverage(confidence, agreed)
    assert curve[-1].agreement == pytest.approx(agreed.mean())
    assert curve[-1].coverage == 1
    assert [point.coverage for point in curve] == sorted({point.coverage for point in curve})
    assert 0 <= area_of_risk(curve) <= 1
    few = thinned(curve, 5)
    assert len(few) <= 5 or len(curve) <= 5
    assert (few[0], few[-1]) == (curve[0], curve[-1])


def drawn(rng: np.random.Generator, true_temperature: float, tokens: int) -> list[tuple[np.ndarray, int]]:
    """Rows of logits, and tokens drawn from them at another temperature."""
    rows = rng.normal(0, 3, (tokens, 40)).astype(np.float32)
    weights = np.exp(rows / true_temperature)
    return [
        (row, int(rng.choice(40, p=weight / weight.sum())))
        for row, weight in zip(rows.astype(np.float32), weights.astype(np.float64), strict=True)
    ]


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.0])
def test_the_temperature_that_tokens_were_drawn_at_is_found(true_temperature: float) -> None:
    rows = drawn(np.random.default_rng(7), true_temperature, 1500)
    losses = np.array([tempered(row, token)[0] for row, token in rows])
    assert TEMPERATURES[fitted(losses)] == pytest.approx(true_temperature, rel=0.12)


def test_tempered_is_what_softmax_says() -> None:
    row = np.array([2.0, 1.0, -np.inf], dtype=np.float32)
    losses, largest = tempered(row, 1)
    for temperature, loss, most in zip(TEMPERATURES, losses, largest, strict=True):
        weights = np.exp(row.astype(float) / temperature)
        assert most == pytest.approx(weights[0] / weights.sum(), rel=1e-5)
        assert loss == pytest.approx(-np.log(weights[1] / weights.sum()), rel=1e-5)


def test_a_report_that_its_picture_would_overwrite_is_refused_before_anything_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "calibration.png"
    result = CliRunner().invoke(calibrate, ["--target", "a", "--draft", "b", "--out", str(out)])
    assert result.exit_code == 2
    assert "name the report *.json" in result.output
    assert not out.exists()


def test_the_report_has_every_strategy_and_its_picture_can_be_drawn(tmp_path: object) -> None:
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(1)
    pairs = drawn(rng, 2.0, 300)
    at = [tempered(row, token) for row, token in pairs]
    sure = rng.random(300)
    observed = Observed(
        dict.fromkeys(PURE, sure),
        rng.random(300) < sure,
        np.array([losses for losses, _ in at]),
        np.array([largest for _, largest in at]),
        np.arange(300) % 2 == 0,
    )
    report = calibration_report(observed, {Strategy.MAX_PROB: 1.0, Strategy.MARGIN: 1.0}, 0.8)
    assert set(report["strategies"]) == {*map(str, PURE), "ensemble"}
    assert report["tokens"] == 300
    assert report["temperature"]["fitted"] == pytest.approx(2.0, rel=0.25)
    assert report["temperature"]["loss_fitted"] < report["temperature"]["loss_at_1"]
    told = report["strategies"]["max_prob"]
    assert told == report["strategies"]["ensemble"], "the mean of two that are alike"
    assert told["for_agreement"]["kept"]["agreement"] >= 0.8
    assert 0 < told["for_agreement"]["kept"]["coverage"] < 1
    path = tmp_path / "picture.png"  # type: ignore[operator]
    draw(report | {"target": "big", "draft": "small"}, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "300 tokens" in summary(report)
