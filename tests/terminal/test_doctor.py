"""`ecdctl doctor`: what is found in what an edge tells, and the asking over a real control socket."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ecd.client import BlockingClient
from ecd.control import Notify, control_socket
from ecd.errors import BadRequest
from ecd.terminal.doctor import (
    Finding,
    Level,
    _time_in,
    certificate_found,
    clock_found,
    edge_found,
    examine,
    link_found,
    rtt_found,
    speeds_found,
)

LINK: dict[str, Any] = {
    "state": "connected",
    "draining": False,
    "cloud": "127.0.0.1:7040",
    "reason": "",
    "refused": False,
    "rtt_ms": 20.0,
    "rtt_variation_ms": 2.0,
    "certificate_expires": None,
    "cloud_load": {"running": 0, "time": 0.0},
}
STATUS = {"role": "edge", "state": "serving", "draft_model": "small", "link": LINK}
UNMEASURED = dict.fromkeys(("rtt_ms", "draft_ms", "step_ms", "slope", "acceptance"))
CONDITIONS = {"rtt_ms": 20.0, "draft_ms": 4.0, "step_ms": 40.0, "slope": 0.05, "acceptance": 0.75}


def test_an_edge_serves_or_ends() -> None:
    assert edge_found(STATUS).level is Level.OK
    assert edge_found({**STATUS, "state": "draining"}).level is Level.FAILED


@pytest.mark.parametrize(
    ("changes", "level", "said", "todo"),
    [
        ({}, Level.OK, "tokenizers and versions match", ""),
        (
            {"refused": True, "reason": "the models differ in vocabulary"},
            Level.FAILED,
            "vocabulary",
            "family",
        ),
        ({"state": "down", "reason": "cannot reach"}, Level.FAILED, "cannot reach", "tunnel, firewall"),
        ({"state": "connecting"}, Level.FAILED, "connecting", "see that the cloud runs"),
        ({"draining": True}, Level.WARNING, "draining", "wait"),
    ],
)
def test_a_link_is_there_or_it_is_said_why_not(
    changes: dict[str, Any], level: Level, said: str, todo: str
) -> None:
    found = link_found({**LINK, **changes})
    assert found.level is level
    assert said in found.found
    assert todo in found.todo


@pytest.mark.parametrize(
    ("rtt_ms", "varies_ms", "level"),
    [
        (20.0, 2.0, Level.OK),
        (20.0, 10.5, Level.WARNING),
        (1.0, 9.0, Level.OK),
        (100.0, 49.0, Level.OK),
        (None, None, Level.WARNING),
    ],
)
def test_a_round_trip_is_steady_or_not(rtt_ms: float | None, varies_ms: float | None, level: Level) -> None:
    assert rtt_found({**LINK, "rtt_ms": rtt_ms, "rtt_variation_ms": varies_ms}).level is level


@pytest.mark.parametrize(
    ("days", "level"), [(None, Level.OK), (90, Level.OK), (13, Level.WARNING), (-1, Level.FAILED)]
)
def test_a_certificate_is_good_for_long_enough_or_it_is_to_be_renewed(days: int | None, level: Level) -> None:
    found = certificate_found(None if days is None else 1e9 + days * 86400, 1e9)
    assert found.level is level
    assert ("SIGHUP" in found.todo) == (level is not Level.OK)


def test_clocks_agree_or_it_is_said_which_is_ahead() -> None:
    assert clock_found(1.9).level is clock_found(-1.9).level is Level.OK
    assert clock_found(2.5).found == "2.5 s ahead of the cloud's"
    assert clock_found(-7.0) == Finding(
        Level.WARNING,
        "clock",
        "7.0 s behind the cloud's",
        "set both by NTP (timedatectl set-ntp true): certificates and logs go by them",
    )
    assert clock_found(None).level is Level.WARNING


def test_speeds_are_told_or_what_is_missing() -> None:
    assert speeds_found(CONDITIONS).found == (
        "4.0 ms a guess, 40.0 ms a target step, each hint in it 5.0% more, 75% of guesses right"
    )
    missing = speeds_found({**CONDITIONS, "draft_ms": None})
    assert (missing.level, missing.found) == (Level.WARNING, "not measured yet: draft_ms")


class FakeEdge:
    """Tells what the test wants; the cloud's clock is `behind_s` behind, and told anew with every look."""

    def __init__(self, behind_s: float = 0.0, **link: Any):
        self.link = {**LINK, **link}
        self.behind_s = behind_s
        self.conditions: Mapping[str, Any] = UNMEASURED
        self.asked: list[dict[str, Any]] = []

    async def status(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        told = {**self.link["cloud_load"], "time": time.time() - 0.01 - self.behind_s}
        return {**STATUS, "link": {**self.link, "cloud_load": told}}

    async def stats(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        return {"conditions": dict(self.conditions)}

    async def run(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        self.asked.append(args)
        self.conditions = CONDITIONS
        return {}

    async def examined(self, path: Path) -> list[Finding]:
        def ask() -> list[Finding]:
            with BlockingClient(path) as client:
                return examine(client, lambda conditions: f"much, at {conditions['rtt_ms']} ms")

        async with control_socket(path, {"status": self.status, "stats": self.stats, "run": self.run}):
            return await asyncio.to_thread(ask)


async def test_an_edge_that_measured_nothing_is_asked_one_prompt(tmp_path: Path) -> None:
    edge = FakeEdge()
    findings = await edge.examined(tmp_path / "edge.sock")
    assert len(edge.asked) == 1
    assert [finding.level for finding in findings] == [Level.OK] * 7
    assert findings[-1].found == "much, at 20.0 ms"
    again = await edge.examined(tmp_path / "edge.sock")
    assert len(edge.asked) == 1
    assert len(again) == 7


async def test_clocks_are_compared(tmp_path: Path) -> None:
    findings = await FakeEdge(behind_s=30.0).examined(tmp_path / "edge.sock")
    (clock,) = [finding for finding in findings if finding.about == "clock"]
    assert clock.level is Level.WARNING
    assert float(clock.found.split()[0]) == pytest.approx(30.0, abs=1.0)


@pytest.mark.parametrize("time", [None, "noon", [], {}, -1.0, 1e300, float("nan")])
def test_a_cloud_s_time_may_be_nonsense(time: Any) -> None:
    assert _time_in({"time": time}) is None
    assert _time_in({"time": 1763800000}) == 1763800000.0


async def test_without_a_link_nothing_else_is_examined(tmp_path: Path) -> None:
    findings = await FakeEdge(state="down", reason="no route").examined(tmp_path / "edge.sock")
    assert [finding.level for finding in findings] == [Level.OK, Level.FAILED]


async def test_a_cloud_is_not_examined(tmp_path: Path) -> None:
    async def status(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        return {"role": "cloud"}

    def ask() -> None:
        with BlockingClient(tmp_path / "cloud.sock") as client:
            examine(client, str)

    async with control_socket(tmp_path / "cloud.sock", {"status": status}):
        with pytest.raises(BadRequest, match="examines an edge"):
            await asyncio.to_thread(ask)
