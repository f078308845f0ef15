"""Running means of what was measured."""

from typing import Any

import pytest

from ecd.edge.meter import FIRST_SLOPE, NEW_SAMPLE, OUTLIER, Meter
from ecd.edge.pacing import Conditions


def measured(**changes: Any) -> Meter:
    return Meter(**({"rtt_s": 0.05, "draft_s": 0.005, "step_s": 0.03} | changes))


def test_there_are_no_conditions_until_all_is_measured() -> None:
    meter = Meter()
    assert meter.conditions is None
    meter.drafted(0.005)
    meter.stepped(0.03, 0)
    assert meter.conditions is None
    meter.rtt_s = 0.0
    assert meter.conditions == Conditions(0.0, 0.0, 0.005, 0.03, FIRST_SLOPE * 0.03)


def test_means_follow_what_is_measured_slowly() -> None:
    meter = Meter()
    meter.drafted(0.01)
    meter.drafted(0.02)
    assert meter.draft_s == pytest.approx(0.01 + NEW_SAMPLE * 0.01)
    for _ in range(100):
        meter.drafted(0.02)
    assert meter.draft_s == pytest.approx(0.02, rel=1e-3)


def test_a_stall_counts_as_a_few_times_the_mean() -> None:
    meter = measured()
    meter.stepped(10.0, 0)
    assert meter.step_s == pytest.approx(0.03 + NEW_SAMPLE * (OUTLIER - 1) * 0.03)
    slow = measured()
    for _ in range(60):
        slow.stepped(0.3, 0)
    assert slow.step_s == pytest.approx(0.3, rel=0.05), "but what stays is believed"


def test_hints_are_taken_out_of_a_steps_time() -> None:
    meter = Meter(token_s=0.001)
    meter.stepped(0.034, 4)
    assert meter.step_s == pytest.approx(0.03)
    unknown = Meter()
    unknown.stepped(0.1, 4)
    assert unknown.step_s == pytest.approx(0.1 * (1 - 4 * FIRST_SLOPE))


def test_a_step_takes_time_whatever_its_hints_are_said_to() -> None:
    meter = Meter(token_s=1.0)
    meter.stepped(0.03, 16)
    assert meter.step_s == pytest.approx(0.003)


def test_what_a_hint_costs_is_the_clouds_to_tell() -> None:
    meter = measured()
    meter.told({"running": 1, "step_ms": 30.0, "token_ms": 0.5})
    assert meter.conditions is not None
    assert meter.conditions.token_s == pytest.approx(0.0005)
    meter.told({"step_ms": 30, "token_ms": 0})
    assert meter.token_s == 0.0


@pytest.mark.parametrize(
    "load",
    [
        {},
        {"token_ms": 0.5},
        {"step_ms": 0.0, "token_ms": 0.0},
        {"step_ms": 30.0, "token_ms": None},
        {"step_ms": 30.0, "token_ms": "1"},
        {"step_ms": 30.0, "token_ms": -1.0},
        {"step_ms": 30.0, "token_ms": float("nan")},
        {"step_ms": 30.0, "token_ms": float("inf")},
        {"step_ms": float("nan"), "token_ms": 1.0},
        {"step_ms": 30.0, "token_ms": [1]},
    ],
)
def test_what_a_cloud_has_not_measured_or_cannot_mean_is_not_taken(load: dict[str, Any]) -> None:
    meter = measured()
    meter.told(load)
    assert meter.token_s is None


def test_a_step_that_took_no_time_was_not_measured() -> None:
    """A cloud may say so; nothing could be divided by it."""
    meter = Meter(rtt_s=0.05, draft_s=0.005)
    meter.stepped(0.0, 0)
    assert meter.conditions is None
    meter.stepped(0.03, 0)
    meter.stepped(0.0, 3)
    assert meter.step_s == pytest.approx(0.03)
