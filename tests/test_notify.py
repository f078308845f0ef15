"""What a service manager is told, over a real datagram socket."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecd.notify import STATUS_S, Notifier
from tests.listening_manager import ListeningManager

SOON_S = 0.03


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ListeningManager]:
    manager = ListeningManager(tmp_path / "notify", patience_s=5.0)
    yield manager
    manager.close()


def test_it_tells_states(manager: ListeningManager) -> None:
    notifier = Notifier(str(manager.path))
    notifier.tell(READY="1", STATUS="two\nlines")
    assert manager.next() == {"READY": "1", "STATUS": "two lines"}


def test_an_abstract_address_is_one() -> None:
    name = f"@ecd-test-{os.getpid()}"
    manager = ListeningManager(Path("\0" + name[1:]))
    Notifier(name).tell(READY="1")
    assert manager.next() == {"READY": "1"}
    manager.close()


def test_without_a_manager_nothing_happens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier().tell(READY="1")
    assert not caplog.records
    Notifier(str(tmp_path / "nobody")).tell(READY="1", STATUS="x")
    assert "the service manager was not told READY, STATUS" in caplog.text


async def test_without_a_manager_there_is_no_heart() -> None:
    async def alive() -> None:
        raise AssertionError

    await Notifier().beat_forever(alive, lambda: "")


def test_a_manager_that_does_not_read_holds_nobody_up(manager: ListeningManager) -> None:
    notifier = Notifier(str(manager.path))
    for _ in range(2000):
        notifier.tell(STATUS="x")


@pytest.mark.parametrize(
    ("given", "beat_s"),
    [
        ({}, STATUS_S),
        ({"WATCHDOG_USEC": "300000"}, 0.1),
        ({"WATCHDOG_USEC": "300000", "WATCHDOG_PID": str(os.getpid())}, 0.1),
        ({"WATCHDOG_USEC": "300000", "WATCHDOG_PID": "1"}, STATUS_S),
        ({"WATCHDOG_USEC": "60000000"}, STATUS_S),
        ({"WATCHDOG_USEC": "0"}, STATUS_S),
        ({"WATCHDOG_USEC": "soon"}, STATUS_S),
    ],
)
def test_the_environment_says_how_often(
    given: dict[str, str], beat_s: float, monkeypatch: pytest.MonkeyPatch, manager: ListeningManager
) -> None:
    slept: list[float] = []

    async def alive() -> None: ...

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        raise asyncio.CancelledError

    monkeypatch.setattr("ecd.notify.asyncio.sleep", sleep)
    environ = {**given, "NOTIFY_SOCKET": str(manager.path), "PATH": "/bin"}
    notifier = Notifier.from_environment(environ)
    assert environ == {"PATH": "/bin"}
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(notifier.beat_forever(alive, lambda: "well"))
    assert slept == [pytest.approx(beat_s)]
    assert manager.next() == {"WATCHDOG": "1", "STATUS": "well"}


def test_a_reload_has_a_time_and_an_end(manager: ListeningManager) -> None:
    notifier, before = Notifier(str(manager.path)), time.monotonic()
    with pytest.raises(OSError, match="gone"), notifier.reloading():
        raise OSError("gone")
    told = manager.next()
    assert told["RELOADING"] == "1"
    assert before <= int(told["MONOTONIC_USEC"]) / 1e6 <= time.monotonic()
    assert manager.next() == {"READY": "1"}


async def test_no_beat_without_a_sign_of_life(manager: ListeningManager) -> None:
    lives = asyncio.Event()
    lives.set()

    async def alive() -> None:
        await lives.wait()

    beating = asyncio.create_task(
        Notifier(str(manager.path), watchdog_s=SOON_S).beat_forever(alive, lambda: "well")
    )
    assert await asyncio.to_thread(manager.until, "WATCHDOG")
    lives.clear()
    assert await asyncio.to_thread(manager.is_silent_for, 5 * SOON_S)
    lives.set()
    assert await asyncio.to_thread(manager.until, "WATCHDOG")
    beating.cancel()
