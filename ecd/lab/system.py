"""A system on loopback: `ecd cloud` and `ecd edge` as real processes, for the demo, tests and benchmarks.

Owns starting, waiting, killing and stopping them. What is asked of them goes through `ecd.client`.
"""

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecd.client import BlockingClient
from ecd.errors import DaemonError

# Loading a large model, and vLLM's compiling it, takes minutes.
READY_S = 600.0
STOP_S = 20.0
POLL_S = 0.02
# Of a slowed daemon; short beside what it is asked to do.
SLICE_S = 0.02
# Before a trace's path or name: it is replayed in place of a model.
REPLAY = "replay:"


@dataclass(slots=True)
class DaemonProcess:
    """One daemon: its command line, and the folder of its control socket and log.

    `module` is the program that is run: `ecd`, or one that starts the same daemons with another engine.
    """

    role: str
    flags: list[str]
    folder: Path
    module: str = "ecd"
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.role}.sock"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.role}.log"

    def start(self) -> None:
        """Starts the process; `wait` says when it is ready."""
        command = [sys.executable, "-m", self.module, self.role, "--socket", str(self.socket), *self.flags]
        with self.log.open("ab") as log:
            # A session of its own, so that Ctrl-C at a terminal reaches whoever started it and not the daemon
            # too.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def wait(self, ready: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The daemon's status once `ready` holds of it; DaemonError with the log's end if it never does."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            self.check_runs()
            with contextlib.suppress(DaemonError):
                status = self.call("status")
                if ready(status):
                    return status
            time.sleep(POLL_S)
        raise DaemonError(f"`ecd {self.role}` was not ready within {READY_S:g} s: {self._last_words()}")

    def check_runs(self) -> None:
        """Raises DaemonError with the log's end if the process has ended."""
        if self.process is not None and self.process.poll() is not None:
            raise DaemonError(
                f"`ecd {self.role}` ended with code {self.process.returncode}: {self._last_words()}"
            )

    def call(self, verb: str, **args: Any) -> dict[str, Any]:
        """One call on the control socket."""
        with BlockingClient(self.socket) as client:
            return client.call(verb, **args)

    def signal(self, number: int) -> int:
        """Sends a signal and waits for the end; the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def stop(self) -> int:
        """Stops it, by force if it will not; the exit code."""
        if self.process is None or self.process.poll() is not None:
            return 0
        try:
            return self.signal(signal.SIGINT)
        except subprocess.TimeoutExpired:
            return self.signal(signal.SIGKILL)

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) or "it said nothing"


@contextlib.contextmanager
def running_cloud(
    folder: Path, target: str, *flags: str, listen: str = "127.0.0.1:0"
) -> Iterator[DaemonProcess]:
    """A cloud that runs while the context lasts; `address_of` says where. `target` may be `replay:TRACE`."""
    daemon = _daemon("cloud", target, ["--listen", listen, *flags], folder)
    with _running(daemon, lambda status: True):
        yield daemon


@contextlib.contextmanager
def running_edge(folder: Path, draft: str, cloud: str, *flags: str) -> Iterator[DaemonProcess]:
    """An edge that runs while the context lasts, connected when it begins. `draft` may be `replay:TRACE`.

    It serves HTTP only if the flags say so: the default address may be in use.
    """
    http = () if "--http" in flags else ("--no-http",)
    daemon = _daemon("edge", draft, ["--cloud", cloud, *http, *flags], folder)
    with _running(daemon, lambda status: bool(status["link"]["state"] == "connected")):
        yield daemon


def _daemon(role: str, model: str, flags: list[str], folder: Path) -> DaemonProcess:
    if model.startswith(REPLAY):
        trace = model.removeprefix(REPLAY)
        return DaemonProcess(role, ["--trace", trace, *flags], folder, module="ecd.lab.replay")
    return DaemonProcess(role, ["--model", model, *flags], folder)


@contextlib.contextmanager
def _running(daemon: DaemonProcess, ready: Callable[[dict[str, Any]], bool]) -> Iterator[None]:
    try:
        daemon.start()
        daemon.wait(ready)
        yield
    finally:
        daemon.stop()


@contextlib.contextmanager
def slowed(daemon: DaemonProcess, share: float) -> Iterator[None]:
    """The daemon runs for this share of the time only while the context lasts, a slice at a time."""
    over = threading.Event()

    def slice_forever() -> None:
        assert daemon.process is not None
        while not over.wait(SLICE_S * share):
            daemon.process.send_signal(signal.SIGSTOP)
            over.wait(SLICE_S * (1 - share))
            daemon.process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=slice_forever, name="slowed")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def address_of(cloud: DaemonProcess) -> str:
    """Where a running cloud listens."""
    return str(cloud.call("status")["listen"])


def url_of(edge: DaemonProcess) -> str:
    """Where a running edge serves HTTP, as it logs when it is ready. Raises DaemonError when it does not."""
    found = re.findall(r"ready: .* HTTP (http://[^\s,]+)", edge.log.read_text())
    if not found:
        raise DaemonError(f"the edge that logs to {edge.log} serves no HTTP; start it with --http")
    return str(found[-1])
