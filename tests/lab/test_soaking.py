"""That a soak notices what is wrong: daemons that are made to misbehave, behind real control sockets."""

import asyncio
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from ecd.control import Handler, Notify, control_socket
from ecd.errors import BadRequest, DaemonError, LinkError
from ecd.lab import soaking
from ecd.lab.fault_plan import Fault, Kind
from ecd.lab.hardship import EdgeToken
from ecd.lab.lane import Conditions
from ecd.lab.link import EmulatedLink
from ecd.lab.questions import Question
from ecd.lab.soaked import Outcome, Soaked
from ecd.lab.soaking import Soak, Watched
from ecd.lab.system import DaemonProcess

EXPECTED = (5, 6, 7)
QUESTION = Question("'why'", {"prompt": "why"}, EXPECTED)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soaking, "HANG_S", 3.0)
    monkeypatch.setattr(soaking, "QUIET_S", 0.2)
    monkeypatch.setattr(soaking, "READ_EVERY_S", 0.05)
    monkeypatch.setattr(soaking, "NOTICED_S", 0.05)


def saying(streamed: tuple[int, ...], result: tuple[int, ...], resumed: int = 0) -> Handler:
    """A `run` that takes a moment."""

    async def run(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        for token in streamed:
            await asyncio.sleep(0.01)
            await emit({"event": "text", "ids": [token]})
        return {"token_ids": list(result), "stats": {"resumed": resumed}}

    return run


async def refusing(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
    await asyncio.sleep(0.01)
    raise BadRequest("not today")


async def expired(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
    await asyncio.sleep(0.01)
    raise LinkError("the cloud refuses this edge: the token 'soak' expired on 2026-01-01")


async def never(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


@asynccontextmanager
async def daemon(folder: Path, role: str, **changes: Handler) -> AsyncIterator[Watched]:
    """The calls of an idle daemon but for `changes`, and a process that does nothing."""

    async def status(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        return {"connections": 1, "running": 0, "queued": 0, "link": {"state": "connected"}, "sessions": 0}

    async def stats(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        return {"tasks": 4}

    async def sessions(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        return {"sessions": []}

    place = folder / role
    place.mkdir()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # noqa: ASYNC220
    found = DaemonProcess(role, [], place, process=process)
    found.log.touch()
    handlers: dict[str, Handler] = {"status": status, "stats": stats, "sessions": sessions}
    try:
        async with control_socket(found.socket, handlers | changes):
            yield Watched(found)
    finally:
        process.kill()
        process.wait()


async def soaked(folder: Path, run: Handler, faults: tuple[Fault, ...] = (), **of_cloud: Handler) -> Soaked:
    async with AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(daemon(folder, "cloud", **of_cloud))
        edge = await stack.enter_async_context(daemon(folder, "edge", run=run))
        link = await stack.enter_async_context(EmulatedLink("127.0.0.1", 1, Conditions()))
        token = EdgeToken.create(folder / "tokens.json")
        soak = Soak(cloud, [edge], link, token, [QUESTION], 2)
        return await soak.run(faults, 0.4, seed=1)


async def test_right_answers_are_right_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecd.lab.soaking.WARM_UP_ANSWERS", 1)
    found = await soaked(tmp_path, saying(EXPECTED, EXPECTED, resumed=2))
    right = found.answers.outcomes[Outcome.RIGHT]
    assert right > 3
    assert found.problems() == []
    assert found.answers.resumed == 2 * right
    assert len(found.answers.pauses_s) == right
    assert found.answers.tokens == 3 * right
    assert [held.name for held in found.daemons] == ["cloud", "edge"]
    assert all(held.early_bytes and held.late_bytes for held in found.daemons)


async def test_a_process_that_has_answered_little_is_not_judged_by_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecd.lab.soaking.WARM_UP_ANSWERS", 1_000_000)
    found = await soaked(tmp_path, saying(EXPECTED, EXPECTED))
    assert found.answers.outcomes[Outcome.RIGHT] > 3
    assert [held.growth_bytes for held in found.daemons] == [None, None]
    assert "not judged of cloud, edge" in found.table()


@pytest.mark.parametrize(
    ("run", "outcome", "reason"),
    [
        (saying((5, 6, 8), (5, 6, 8)), Outcome.WRONG, "another text from token 2 of 3 on"),
        (saying((5, 6), (5, 6)), Outcome.WRONG, "another text from token 3 of 3 on"),
        (saying((5, 6, 6, 7), EXPECTED), Outcome.WRONG, "4 tokens were streamed that are not the result's 3"),
        (refusing, Outcome.FAILED, "BAD_REQUEST not today"),
        (expired, Outcome.FAILED, "UNAVAILABLE the cloud refuses this edge: the token 'soak' expired"),
        (never, Outcome.HUNG, "for 3 s"),
    ],
    ids=["wrong token", "token lost", "token repeated", "error", "refused a good token", "nothing"],
)
async def test_bad_answers_are_noticed(tmp_path: Path, run: Handler, outcome: Outcome, reason: str) -> None:
    found = await soaked(tmp_path, run)
    assert found.answers.outcomes[outcome] > 0
    assert found.answers.outcomes[Outcome.RIGHT] == 0
    assert any(reason in problem for problem in found.problems())


async def test_what_is_left_over_is_noticed(tmp_path: Path) -> None:
    asked = 0

    async def stats(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"tasks": 4 + asked}

    async def sessions(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        return {"sessions": [{"id": 3}]}

    found = await soaked(tmp_path, saying(EXPECTED, EXPECTED), stats=stats, sessions=sessions)
    assert found.problems() == [
        "cloud: 6 tasks, and 5 at its first start",
        "cloud: 1 sessions, and 0 at its first start",
    ]


async def test_a_daemon_that_ends_by_itself_ends_the_soak(tmp_path: Path) -> None:
    async with daemon(tmp_path, "cloud") as cloud, daemon(tmp_path, "edge", run=never) as edge:
        link = EmulatedLink("127.0.0.1", 1, Conditions())
        soak = Soak(cloud, [edge], link, EdgeToken.create(tmp_path / "tokens.json"), [QUESTION], 1)
        running = asyncio.create_task(soak.run((), 60.0, seed=1))
        await asyncio.sleep(1.0)
        assert cloud.daemon.process is not None
        cloud.daemon.process.kill()
        with pytest.raises(DaemonError, match="cloud ended by itself with code -9"):
            await running


async def test_faults_are_done_to_the_link(tmp_path: Path) -> None:
    kinds = (Kind.CUT, Kind.STALL, Kind.HALF_OPEN, Kind.CORRUPT)
    faults = tuple(Fault(0.01, kind, 0.01, 0) for kind in kinds)
    found = await soaked(tmp_path, saying(EXPECTED, EXPECTED), faults)
    assert dict(found.faults) == dict.fromkeys(kinds, 1)


async def test_an_answer_may_end_with_the_error_of_an_expired_token_while_it_is(tmp_path: Path) -> None:
    right = saying(EXPECTED, EXPECTED)

    async def run(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        bad = '"expires": null' not in (tmp_path / "tokens.json").read_text()
        return await (expired if bad else right)(args, emit)

    found = await soaked(tmp_path, run, (Fault(0.1, Kind.EXPIRED, 0.1, 0),))
    assert found.problems() == []
    assert found.answers.outcomes[Outcome.REFUSED] in (1, 2), "a client asks again when the token is good"


async def test_the_disk_is_full_for_a_while_only(tmp_path: Path) -> None:
    limits: list[bool] = []

    async def run(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        soft, hard = resource.prlimit(pids[0], resource.RLIMIT_FSIZE)
        limits.append(soft != hard)
        return await saying(EXPECTED, EXPECTED)(args, emit)

    pids: list[int] = []
    async with AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(daemon(tmp_path, "cloud"))
        edge = await stack.enter_async_context(daemon(tmp_path, "edge", run=run))
        link = await stack.enter_async_context(EmulatedLink("127.0.0.1", 1, Conditions()))
        token = EdgeToken.create(tmp_path / "tokens.json")
        soak = Soak(cloud, [edge], link, token, [QUESTION], 1)
        pids += [cloud.pid(), edge.pid()]
        await soak.run((Fault(0.1, Kind.FULL_DISK, 0.1, 0),), 0.4, seed=1)
    assert [full for full, _ in groupby(limits)] == [False, True, False]
