"""Both daemons under a service manager: real processes, a real notify socket, a real activated socket.

They replay recorded models, so that starting them takes no model.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecd.client import BlockingClient
from ecd.lab.shipped import find_file
from ecd.lab.system import DaemonProcess, address_of, running_cloud
from ecd.lab.trace import load_trace
from tests.listening_manager import ListeningManager

TRACE = "qwen-coder-greedy"
# An answer of 64 tokens without drafts takes two seconds.
SLOW = ("--step-ms", "30")
PROMPT = load_trace(find_file("traces", TRACE)).recordings[0].prompt
ASK = {"prompt": PROMPT, "max_tokens": 64, "draft": False}
WATCHDOG_USEC = "300000"


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ListeningManager]:
    manager = ListeningManager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", WATCHDOG_USEC)
    yield manager
    manager.close()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[DaemonProcess]:
    """Started before anything is said of a manager."""
    with running_cloud(tmp_path, f"replay:{TRACE}", *SLOW) as daemon:
        yield daemon


def test_a_cloud_from_start_to_stop(tmp_path: Path, manager: ListeningManager) -> None:
    with running_cloud(tmp_path, f"replay:{TRACE}", *SLOW) as cloud:
        assert manager.next()["STATUS"].startswith("loading replay:")
        assert manager.until("READY") == {"READY": "1"}
        idle = "serving: 0 sessions running, 0 waiting, 0 edges connected"
        assert manager.until("WATCHDOG") == {"WATCHDOG": "1", "STATUS": idle}
        assert manager.until("WATCHDOG")
        assert cloud.process is not None
        cloud.process.send_signal(signal.SIGSTOP)
        assert manager.is_silent_for(2 * int(WATCHDOG_USEC) / 1e6)
        cloud.process.send_signal(signal.SIGCONT)
        assert manager.until("WATCHDOG")
        cloud.process.send_signal(signal.SIGHUP)
        assert manager.until("RELOADING")
        assert manager.until("READY") == {"READY": "1"}
        cloud.process.send_signal(signal.SIGINT)
        assert manager.until("STOPPING") == {"STOPPING": "1", "STATUS": "stopping"}
        assert cloud.process.wait(20) == 0


def test_an_edge_drains_and_says_so(cloud: DaemonProcess, tmp_path: Path, manager: ListeningManager) -> None:
    edge = DaemonProcess(
        "edge",
        ["--trace", TRACE, "--cloud", address_of(cloud), "--no-http"],
        tmp_path,
        module="ecd.lab.replay",
    )
    edge.start()
    try:
        assert manager.until("READY")
        edge.wait(lambda status: bool(status["link"]["state"] == "connected"))
        with BlockingClient(edge.socket) as client:
            events = client.stream(**ASK)
            assert next(events)["event"] == "started"
            assert edge.process is not None
            edge.process.send_signal(signal.SIGTERM)
            assert manager.until("STOPPING") == {"STOPPING": "1", "STATUS": "draining"}
            # It lives while it drains, and tells what it waits for.
            said = manager.until("WATCHDOG")["STATUS"]
            while not said.startswith("draining: 1 answers running, link to 127.0.0.1:"):
                said = manager.until("WATCHDOG")["STATUS"]
            (*_, done) = events
        assert len(done["token_ids"]) == 64
        assert edge.process.wait(20) == 0
    finally:
        edge.stop()


def activated(listener: socket.socket, *command: str) -> subprocess.Popen[bytes]:
    """As systemd starts a service with a socket: it is told its process id and one socket, number 3."""
    script = f"exec env LISTEN_PID=$$ LISTEN_FDS=1 {shlex.join(command)} 3<&0 </dev/null"
    return subprocess.Popen(["sh", "-c", script], stdin=listener.fileno(), env=os.environ.copy())


def test_the_control_socket_outlives_an_activated_edge(cloud: DaemonProcess, tmp_path: Path) -> None:
    path = tmp_path / "control" / "edge.sock"
    path.parent.mkdir()
    edge = [sys.executable, "-m", "ecd.lab.replay", "edge", "--trace", TRACE, "--no-http"]
    command = (*edge, "--cloud", address_of(cloud), "--socket", str(path))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        for _ in range(2):
            # The call is made before anybody serves the socket, and is answered by who then does.
            with BlockingClient(path) as client:
                process = activated(listener, *command)
                try:
                    assert client.call("status")["role"] == "edge"
                finally:
                    process.send_signal(signal.SIGINT)
                    assert process.wait(20) == 0
        assert sorted(entry.name for entry in path.parent.iterdir()) == ["edge.sock"]
