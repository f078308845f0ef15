"""The search for the most sessions, and what it looks at."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.lab.capacity import (
    PRECISION,
    Capacity,
    Emulation,
    Level,
    largest,
    level_of,
    line_of,
    measure_capacity,
    running_system,
    straight_pace,
)
from ecd.lab.load import Arrival, Window
from ecd.lab.pace import Curve, save_profile
from ecd.lab.runs import Mode, Variant
from ecd.lab.shipped import find_file

LEVEL = Level(12, 20.4, 245.0, 0.5, 30.0, 0.1)


@given(limit=st.integers(0, 300), most=st.integers(1, 256))
def test_the_largest_is_found_in_few_tries(limit: int, most: int) -> None:
    tried: list[int] = []

    def holds(sessions: int) -> bool:
        tried.append(sessions)
        return sessions <= limit

    found = largest(holds, most)
    best = min(limit, most)
    assert best - max(1, PRECISION * (best + 1)) < found <= best
    assert found == 0 or found in tried
    assert all(1 <= sessions <= most for sessions in tried)
    assert len(tried) == len(set(tried)) <= 12


def test_the_median_session_counts_and_one_without_tokens_is_a_session() -> None:
    arrivals = [Arrival(0, 1, 30, 30, 1.0), Arrival(1, 2, 10, 10, 1.0), Arrival(1, 2, 10, 20, 2.0)]
    counts = {"forwards": 25, "committed": 50, "batch_tokens": 80, "steps": 20, "cpu_s": 1.0}
    level = level_of(3, Window(10.0, counts, {}, arrivals))
    assert level == Level(
        3,
        session_tokens_per_s=2.0,
        tokens_per_s=5.0,
        forwards_per_token=0.5,
        batch_tokens=4.0,
        cloud_cpu=0.1,
    )


@given(st.floats(1, 100), st.floats(0, 1), st.integers(1, 64), st.integers(1, 16))
def test_a_straight_pace_is_straight_in_all_tokens(
    step_ms: float, slope: float, sessions: int, each: int
) -> None:
    curve = Curve.of(straight_pace(step_ms, slope).points)
    tokens = sessions * each
    assert curve.step_ms(sessions, tokens) == pytest.approx(step_ms * (1 + slope * (tokens - 1)))


def test_a_line_says_what_limited() -> None:
    assert "most that was tried" not in line_of(Capacity("ecd", 20.0, LEVEL, False, (LEVEL,)))
    assert line_of(Capacity("ecd", 20.0, LEVEL, True, (LEVEL,))).endswith("the most that was tried")
    hot = Level(12, 20.4, 245.0, 0.5, 30.0, 0.95)
    assert "limited by the daemon" in line_of(Capacity("ecd", 20.0, hot, False, (hot,)))
    slow = Level(1, 3.0, 3.0, 0.5, 30.0, 0.1)
    assert "below the rate" in line_of(Capacity("rounds 4", 20.0, None, False, (slow,)))


@pytest.mark.slow
def test_a_cloud_that_serves_one_session_at_the_rate_but_not_two(tmp_path: Path) -> None:
    # 40 ms alone and 76 ms for two: 25 and 13 tokens/s without drafts.
    save_profile(tmp_path / "pace.json", straight_pace(40.0, 0.9))
    emulation = Emulation(find_file("traces", "qwen-coder-greedy"), tmp_path / "pace.json", 5.0, 0.0)
    with running_system(tmp_path, emulation, 2) as system:
        found = measure_capacity(
            system, emulation, Variant(Mode.CLOUD), "latency", rate=16.0, most=2, seconds=2.0
        )
    assert found.level is not None
    assert found.level.sessions == 1
    assert not found.at_the_limit
    assert [level.sessions for level in found.tried] == [2, 1]
