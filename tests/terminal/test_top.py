"""`ecdctl top`: what follows from two readings, and what is drawn of it."""

import io
from typing import Any

import pytest
from rich.console import Console

from ecd.terminal.top import BARS, Rates, Reading, rates, sparkline, view

EDGE = {
    "role": "edge",
    "state": "serving",
    "draft_model": "small",
    "target_model": {"name": "large"},
    "link": {
        "state": "connected",
        "cloud": "127.0.0.1:7040",
        "reason": "",
        "rtt_ms": 20.25,
        "rtt_variation_ms": None,
        "cloud_load": {"running": 3, "queued": 1, "step_ms": 30.0},
    },
    "sessions": 2,
}
EDGE_STATS = {
    "committed": 100,
    "verified": 50,
    "acceptance_rate": 0.5,
    "forwards_per_token": 0.75,
    "wire_bytes_per_token": 41.6,
    "running": 2,
    "finished": 7,
    "failed": 1,
    "cancelled": 2,
}


def session(number: int, tokens: int) -> dict[str, Any]:
    return {
        "id": number,
        "phase": "open",
        "state": "drafting",
        "prompt_tokens": 31,
        "completion_tokens": tokens,
        "ahead": 6,
        "verified": 9,
        "accepted": 4,
        "target_forwards": 12,
    }


def reading(at_s: float, committed: int, *sessions: dict[str, Any]) -> Reading:
    return Reading(at_s, EDGE, {**EDGE_STATS, "committed": committed}, sessions)


def drawn(now: Reading, rate: Rates) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(view(now, rate, [0.0, rate.total]))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_tokens_of_running_and_of_finished_answers_count_once() -> None:
    before = reading(10.0, 100, session(1, 40), session(2, 10))
    # Session 1 has finished with 44 tokens, session 3 began.
    now = reading(12.0, 144, session(2, 20), session(3, 6))
    assert rates(before, now) == Rates(total=(4 + 10 + 6) / 2, sessions={2: 5.0})


def test_a_cloud_counts_committed_tokens_as_they_come() -> None:
    cloud = {"role": "cloud"}
    before = Reading(0.0, cloud, {"committed": 50}, [session(1, 40)])
    now = Reading(0.5, cloud, {"committed": 60}, [session(1, 50)])
    assert rates(before, now) == Rates(20.0, {1: 20.0})


def test_a_daemon_that_began_anew_has_no_negative_rate() -> None:
    assert rates(reading(0.0, 100), reading(1.0, 3)).total == 0.0


def test_no_time_gives_no_rate() -> None:
    assert rates(reading(1.0, 5), reading(1.0, 9)) == Rates(0.0, {})


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([0.0, 0.0], "▁▁"), ([0.0, 1.0, 2.0], "▁▅█"), ([7.0], "█"), (range(8), BARS)],
)
def test_sparklines(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars


def test_an_edge_is_drawn_with_what_matters() -> None:
    text = drawn(reading(1.0, 100, session(5, 40)), Rates(31.5, {5: 31.5}))
    for shown in (
        "ecd edge, serving",
        "31.5  ▁█",
        "small drafts for large",
        "connected to 127.0.0.1:7040",
        "20.2 ms, varies by -",
        "3 running, 1 queued",
        "50% of 50 verified hints",
        "0.75 per token",
        "42 bytes per token",
        "7 finished, 1 failed, 2 cancelled",
        "4 of 9",
        "drafting",
    ):
        assert shown in text


def test_an_edge_that_has_lost_its_cloud_says_why() -> None:
    link = {
        **EDGE["link"],
        "state": "waiting",
        "reason": "connection refused",
        "rtt_ms": None,
        "cloud_load": {},
    }  # type: ignore[dict-item]
    now = Reading(1.0, {**EDGE, "target_model": {}, "link": link}, EDGE_STATS, [])
    text = drawn(now, Rates(0.0, {}))
    for shown in ("a model not known yet", "waiting to 127.0.0.1:7040: connection refused", "nothing runs"):
        assert shown in text


def test_square_brackets_are_text_and_no_markup() -> None:
    link = {**EDGE["link"], "cloud": "[::1]:7040", "reason": "[bold]"}  # type: ignore[dict-item]
    text = drawn(Reading(1.0, {**EDGE, "link": link}, EDGE_STATS, []), Rates(0.0, {}))
    assert "connected to [::1]:7040: [bold]" in text


def test_a_cloud_s_name_for_its_model_cannot_steer_the_terminal() -> None:
    target = {"name": "\x1b]0;mine\x07\x9b2J"}
    text = drawn(Reading(1.0, {**EDGE, "target_model": target}, EDGE_STATS, []), Rates(0.0, {}))
    assert "small drafts for \ufffd]0;mine\ufffd\ufffd2J" in text
