"""What is counted of an answer, with daemons that only tell their counters."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ecd.errors import Code, DaemonError, RemoteError
from ecd.lab.ablation import running
from ecd.lab.ablation.conversations import Conversation, Turn
from ecd.lab.ablation.records import Answer, Asked
from ecd.lab.ablation.running import Counts, Pair, converse, wait_until_idle
from ecd.lab.system import DaemonProcess

ASKED = Asked("mine", 0, 0)


class Telling(DaemonProcess):
    """Tells one state after another, and at last the same again and again."""

    def __init__(self, role: str, states: Sequence[dict[str, Any]]):
        super().__init__(role, [], Path("/nowhere"))
        self.states = list(states)

    def call(self, verb: str, **args: Any) -> dict[str, Any]:
        assert verb == "stats"
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


def cloud(sessions: int, forwards: int, idle: bool = True) -> dict[str, Any]:
    return {"sessions": sessions, "forwards": forwards, "idle": idle}


def edge(audited: int = 0, agreed: int = 0, running: int = 0) -> dict[str, Any]:
    return {"confident": {"audited": audited, "agreed": agreed}, "running": running}


def test_the_pair_is_idle_when_what_was_opened_has_come_and_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "POLL_S", 0.0)
    clouds = [cloud(3, 40), cloud(4, 40, idle=False), cloud(4, 42, idle=False), cloud(4, 43)]
    edges = [edge(running=1), edge(), edge(8, 6)]
    pair = Pair(Telling("cloud", clouds), Telling("edge", edges), {})
    assert wait_until_idle(pair, sessions=4) == Counts(4, 43, 8, 6)


@pytest.mark.parametrize(("wire_bytes", "forwards", "audited"), [(90, 7, 16), (0, 0, 0)])
def test_an_answer_has_what_was_done_for_it_after_its_end_too(
    wire_bytes: int, forwards: int, audited: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "POLL_S", 0.0)
    monkeypatch.setattr(
        running, "_answered", lambda pair, messages: (Answer(text="x", wire_bytes=wire_bytes), {})
    )
    sessions = 1 + (wire_bytes > 0)
    clouds = [cloud(1, 5), cloud(sessions, 9, idle=False), cloud(sessions, 5 + forwards)]
    edges = [edge(4, 3), edge(4, 3), edge(4 + audited, 3 + audited // 2)]
    pair = Pair(Telling("cloud", clouds), Telling("edge", edges), {})
    exchange = converse(pair, ASKED, Conversation("", (Turn("Why?"),)), lambda result: None)
    assert exchange.answers == (
        Answer(
            text="x", wire_bytes=wire_bytes, forwards=forwards, audited=audited, audits_agreed=audited // 2
        ),
    )


def _fails(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any) -> Any:
        raise error

    return fail


CHAT = Conversation("", (Turn("Hello."), Turn("Why?")))


def test_a_turn_that_fails_is_kept_while_the_daemons_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_answered", _fails(RemoteError(Code.BUSY, "no room")))
    pair = Pair(Telling("cloud", [cloud(1, 5)]), Telling("edge", [edge()]), {})
    exchange = converse(pair, ASKED, CHAT, lambda result: None)
    assert [answer.error for answer in exchange.answers] == ["no room", running.NOT_ASKED]


def test_a_daemon_that_is_gone_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = DaemonProcess("edge", [], tmp_path)
    gone.log.write_text("killed\n")
    told = Telling("edge", [edge()])

    def dies(*args: Any) -> Any:
        gone.process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
        gone.process.wait()
        monkeypatch.setattr(told, "call", gone.call)
        monkeypatch.setattr(told, "check_runs", gone.check_runs)
        raise DaemonError("closed")

    monkeypatch.setattr(running, "_answered", dies)
    pair = Pair(Telling("cloud", [cloud(1, 5)]), told, {})
    with pytest.raises(DaemonError, match="`ecd edge` ended with code 7: killed"):
        converse(pair, ASKED, CHAT, lambda result: None)


def test_an_edge_ends_with_its_cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "WATCH_S", 0.01)
    lasting = [sys.executable, "-c", "import time; time.sleep(600)"]
    processes = [subprocess.Popen(lasting) for _ in range(2)]
    its_cloud, its_edge = (DaemonProcess("any", [], tmp_path, process=process) for process in processes)
    try:
        with running._ending_with(its_cloud, its_edge):
            processes[0].kill()
            assert processes[1].wait(60) == -signal.SIGKILL
    finally:
        for process in processes:
            process.kill()
            process.wait()
