"""What the daemons cost, from counts and arrivals."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from ecd.errors import DaemonError
from ecd.lab.load import Arrival, Window, requests
from ecd.lab.overhead import line_of, measure_overhead, overhead, overhead_of
from ecd.lab.shipped import find_file
from ecd.lab.trace import Trace

CLOUD = {
    "cpu_s": 0.5,
    "steps": 100,
    "batch_sessions": 400,
    "committed": 1000,
    "gaps": 80,
    "gap_s": 0.04,
    "gaps_over_1ms": 2,
}


def window(arrivals: list[Arrival], **cloud: float) -> Window:
    return Window(10.0, CLOUD | cloud, {"cpu_s": 0.2}, arrivals)


def arrivals(waits_ms: list[float]) -> tuple[list[Arrival], dict[tuple[int, int], float]]:
    """A piece of 3 tokens for each wait, and when it was committed."""
    commits = {(1, 3 * (i + 1)): float(i) for i in range(len(waits_ms))}
    return [Arrival(0, 1, 3, 3 * (i + 1), i + wait_ms / 1000) for i, wait_ms in enumerate(waits_ms)], commits


def test_cpu_time_is_shared_out_and_waits_are_matched_by_answer_and_length() -> None:
    came, commits = arrivals([1.0] * 98 + [5.0] * 2)
    cut_short = Arrival(0, 1, 1, 9999, 50.0)
    row = overhead_of(4, window([*came, cut_short]), commits)
    assert (row.tokens_per_s, row.steps_per_s) == (100, 10)
    assert row.cloud_cpu_ms_per_step == pytest.approx(5)
    assert row.cloud_cpu_ms_per_session_step == pytest.approx(1.25)
    assert row.cloud_cpu_us_per_token == pytest.approx(500)
    assert row.edge_cpu_us_per_token == pytest.approx(200)
    assert row.gap_ms == pytest.approx(0.5)
    assert row.gaps_over_1ms == pytest.approx(0.025)
    assert row.commit_to_client_ms == {"p50": pytest.approx(1), "p99": pytest.approx(5)}
    words = ["4", "100", "10.0", "5.00", "1.250", "500", "200", "0.50", "2.5%", "1.00", "5.00"]
    assert line_of(row).split() == words


def test_without_steps_close_together_there_is_no_gap() -> None:
    came, commits = arrivals([1.0] * 2)
    row = overhead_of(1, window(came, gaps=0, gap_s=0.0, gaps_over_1ms=0), commits)
    assert (row.gap_ms, row.gaps_over_1ms) == (None, None)
    assert line_of(row).split()[-3:] == ["200", "1.00", "1.00"]


@pytest.mark.parametrize("committed", [0, 1000])
def test_a_window_without_tokens_is_too_short(committed: int) -> None:
    with pytest.raises(DaemonError, match="give more --seconds"):
        overhead_of(4, window([], committed=committed), {})


def test_every_recorded_answer_is_asked_for_as_it_was_recorded(trace: Trace) -> None:
    first, second = requests(trace, {"draft": False})
    assert first == {
        "prompt": "first prompt",
        "temperature": 0.0,
        "seed": 5,
        "max_tokens": 4,
        "draft": False,
    }
    assert (second["prompt"], second["max_tokens"]) == ("second prompt", 2)


@pytest.mark.parametrize("given", ["0", "1.5", "16,257", "many"])
def test_sessions_are_whole_numbers(given: str) -> None:
    result = CliRunner().invoke(overhead, ["--sessions", given])
    assert result.exit_code == 2
    assert "is not a list like" in result.output


@pytest.mark.slow
def test_two_sessions_of_real_daemons(tmp_path: Path) -> None:
    trace = find_file("traces", "qwen-coder-greedy")
    row = measure_overhead(tmp_path, trace, 2, step_ms=20.0, draft_ms=5.0, seconds=2.0)
    # No faster than the engine allows, and the daemons take a part of the time only.
    assert 20 < row.tokens_per_s < 2 * 17 * 50
    assert 0 < row.cloud_cpu_ms_per_session_step < row.cloud_cpu_ms_per_step < 20
    assert row.edge_cpu_us_per_token > 0
    assert row.gap_ms is not None
    assert row.gap_ms > 0
    assert 0 < row.commit_to_client_ms["p50"] <= row.commit_to_client_ms["p99"]
