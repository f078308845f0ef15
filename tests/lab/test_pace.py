"""Step times: lines, curves through measured points, and keeping time."""

import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ecd.engine.llama import LlamaModel
from ecd.errors import BadRequest
from ecd.lab import pace
from ecd.lab.pace import Curve, Hold, Line, Point, Profile, load_curve, measure_pace, save_profile

POINTS = (Point(1, 1, 10.0), Point(1, 5, 14.0), Point(4, 1, 16.0), Point(4, 5, 32.0))


def test_a_line_counts_the_tokens_behind_the_first_of_each_session() -> None:
    assert Line(30, 0.02).step_ms(3, 3) == 30
    assert Line(30, 0.02).step_ms(3, 8) == pytest.approx(33)


@pytest.mark.parametrize(
    ("sessions", "tokens", "ms"),
    [
        (1, 1, 10),
        (4, 20, 32),
        (1, 3, 12),
        (2, 2, 12),
        (2, 6, 16),  # between the points in both directions
        (1, 7, 16),  # straight on beyond the last
        (7, 7, 22),
        (4, 4, 16),
    ],
)
def test_a_curve_goes_through_its_points_and_on(sessions: int, tokens: int, ms: float) -> None:
    assert Curve.of(POINTS).step_ms(sessions, tokens) == pytest.approx(ms)


@given(st.integers(1, 40), st.integers(0, 300), st.randoms())
def test_a_curve_does_not_depend_on_the_order_of_points_and_stays_positive(
    sessions: int, more: int, random: object
) -> None:
    shuffled = sorted(POINTS, key=lambda point: random.random())  # type: ignore[attr-defined]
    ms = Curve.of(shuffled).step_ms(sessions, sessions + more)
    assert ms == Curve.of(POINTS).step_ms(sessions, sessions + more) >= 10


def test_beyond_the_last_point_a_curve_never_falls() -> None:
    falling = Curve.of((Point(1, 1, 10.0), Point(1, 2, 9.0)))
    assert falling.step_ms(1, 100) == 9


@pytest.mark.parametrize(
    "points",
    [
        (),
        POINTS[:3],
        (*POINTS, POINTS[0]),
        (Point(0, 1, 1.0),),
        (Point(1, 1, 0.0),),
        (Point(1, 1, math.inf),),
        (Point(1, 1, float("nan")),),
    ],
)
def test_points_must_be_a_grid_of_positive_times(points: tuple[Point, ...]) -> None:
    with pytest.raises(BadRequest, match="a pace needs"):
        Curve.of(points)


def test_a_profile_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "pace.json"
    save_profile(file, Profile({"machine": 'a "machine"'}, POINTS))
    assert load_curve(file) == Curve.of(POINTS)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "JSON"), ('{"points": []}', "provenance"), ('{"provenance": {}, "points": []}', "a pace needs")],
)
def test_a_bad_profile_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "pace.json"
    file.write_text(text)
    with pytest.raises(BadRequest, match=said) as raised:
        load_curve(file)
    assert str(file) in str(raised.value)


class Clock:
    """A clock whose sleeps end a little late."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + 80e-6


def test_late_sleeps_and_work_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    hold = Hold()
    for _ in range(1000):
        started = clock.now
        clock.now += 0.4e-3  # the work itself
        hold.until(started, 5.0)
    assert clock.now - 100 == pytest.approx(5.0, abs=0.001)


def test_a_stall_is_not_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    hold = Hold()
    started = clock.now
    clock.now += 0.5
    hold.until(started, 5.0)
    started = clock.now
    hold.until(started, 5.0)
    assert clock.now - started == pytest.approx(0.004, abs=0.0002)


def test_a_pace_can_be_measured_here(target: LlamaModel) -> None:
    seen: list[Point] = []
    points = measure_pace(
        target, sessions=(1, 2), tokens=(1, 4), context_tokens=70, repeats=1, on_point=seen.append
    )
    assert [(p.sessions, p.tokens_per_session) for p in points] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert seen == list(points)
    assert Curve.of(points).step_ms(2, 5) > 0


def test_the_command_writes_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "measure_pace", lambda model, threads, on_point: POINTS)
    out = tmp_path / "pace.json"
    result = CliRunner().invoke(pace.pace, ["--model", "smollm2-135m", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert load_curve(out) == Curve.of(POINTS)
