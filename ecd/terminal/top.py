"""`ecdctl top`: what a daemon does now, drawn again and again.

Owns the readings, the rates that follow from two of them, the picture and the keys. Knows of a daemon what
its calls `status`, `stats` and `sessions` tell.
"""

import contextlib
import os
import select
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ecd.client import BlockingClient
from ecd.terminal.colour import harmless

# As many of the last rates as are drawn.
HISTORY = 60
BARS = "▁▂▃▄▅▆▇█"
# The key, and a keyboard that is gone.
QUIT = (b"q", b"Q", b"")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a daemon told at `at_s`, monotonic."""

    at_s: float
    status: Mapping[str, Any]
    stats: Mapping[str, Any]
    sessions: Sequence[Mapping[str, Any]]

    @property
    def committed(self) -> int:
        """Tokens since the daemon started; an edge counts those of finished answers only."""
        running = sum(s["completion_tokens"] for s in self.sessions) if self.status["role"] == "edge" else 0
        return int(self.stats["committed"]) + running


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second between two readings, in all and by session."""

    total: float
    sessions: Mapping[int, float]


def rates(before: Reading, now: Reading) -> Rates:
    """What was committed between two readings; nothing is told of a session that only one of them has."""
    passed = now.at_s - before.at_s
    if passed <= 0:
        return Rates(0.0, {})
    then = {session["id"]: session["completion_tokens"] for session in before.sessions}
    return Rates(
        # A daemon that was started again counts from nothing.
        max(0, now.committed - before.committed) / passed,
        {
            session["id"]: (session["completion_tokens"] - then[session["id"]]) / passed
            for session in now.sessions
            if session["id"] in then
        },
    )


def sparkline(values: Sequence[float]) -> str:
    """Values as bars, the largest as high as a line is."""
    top = max(values, default=0.0)
    return "".join(BARS[round(value / top * (len(BARS) - 1))] if top else BARS[0] for value in values)


def view(now: Reading, rate: Rates, history: Sequence[float]) -> RenderableType:
    """The picture of one moment. `history`: the last total rates, oldest first."""
    gauges = Table.grid(padding=(0, 2))
    for name, value in [("tokens/s", f"{rate.total:.1f}  {sparkline(history)}"), *_gauges(now)]:
        gauges.add_row(Text(name, "dim"), Text(harmless(value)))
    return Group(
        Text(f"ecd {now.status['role']}, {now.status['state']}", "bold"), gauges, "", _sessions(now, rate)
    )


def _gauges(now: Reading) -> list[tuple[str, str]]:
    status, stats = now.status, now.stats
    shared = [
        ("acceptance", f"{stats['acceptance_rate']:.0%} of {stats['verified']} verified hints"),
        ("target forwards", f"{stats['forwards_per_token']:.2f} per token"),
    ]
    if status["role"] == "cloud":
        return [
            ("model", f"{status['model']['name']} on {status['listen']}"),
            (
                "load",
                f"{status['running']} running, {status['queued']} queued, {status['connections']} edges",
            ),
            ("a step", f"{_ms(stats['step_ms'])}, {stats['mean_batch_sessions']:.1f} sessions in it"),
            *shared,
        ]
    link, load = status["link"], status["link"]["cloud_load"]
    target = status["target_model"].get("name", "a model not known yet")
    return [
        ("models", f"{status['draft_model']} drafts for {target}"),
        ("link", f"{link['state']} to {link['cloud']}{': ' + link['reason'] if link['reason'] else ''}"),
        ("round trip", f"{_ms(link['rtt_ms'])}, varies by {_ms(link['rtt_variation_ms'])}"),
        ("cloud", f"{load['running']} running, {load['queued']} queued" if load else "no load told yet"),
        *shared,
        ("on the wire", f"{stats['wire_bytes_per_token']:.0f} bytes per token"),
        (
            "answers",
            f"{stats['running']} running, {stats['finished']} finished, {stats['failed']} failed, "
            f"{stats['cancelled']} cancelled",
        ),
    ]


def _sessions(now: Reading, rate: Rates) -> RenderableType:
    if not now.sessions:
        return Text("nothing runs", "dim")
    ahead = "ahead" if now.status["role"] == "edge" else "hints_waiting"
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("id", "state", "prompt", "tokens", "tokens/s", "ahead", "accepted"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for session in now.sessions:
        per_s = rate.sessions.get(session["id"])
        table.add_row(
            str(session["id"]),
            Text(session["state"]),
            str(session["prompt_tokens"]),
            str(session["completion_tokens"]),
            "-" if per_s is None else f"{per_s:.1f}",
            str(session[ahead]),
            f"{session['accepted']} of {session['verified']}",
        )
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def top(socket: Path, interval_s: float) -> None:
    """Draws until `q` is pressed. Raises DaemonError when the daemon is not there, or goes."""
    history: deque[float] = deque(maxlen=HISTORY)
    with (
        BlockingClient(socket) as client,
        _keys(),
        Live(console=Console(), screen=True, auto_refresh=False) as live,
    ):
        now = _read(client)
        rate = Rates(0.0, {})
        while True:
            live.update(view(now, rate, history), refresh=True)
            if _pressed(interval_s) in QUIT:
                return
            before, now = now, _read(client)
            rate = rates(before, now)
            history.append(rate.total)


def _read(client: BlockingClient) -> Reading:
    status, stats = client.call("status"), client.call("stats")
    sessions = client.call("sessions")["sessions"]
    return Reading(monotonic(), status, stats, sessions)


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys come one by one and unseen while the context lasts; Ctrl-C stays what it is."""
    keyboard = sys.stdin.fileno()
    was = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, was)


def _pressed(wait_s: float) -> bytes | None:
    ready, _, _ = select.select([sys.stdin], [], [], wait_s)
    return os.read(sys.stdin.fileno(), 1) if ready else None
