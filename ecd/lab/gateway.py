"""`ecd bench gateway`: what the HTTP gateway adds to waiting, and what a long mixed load leaves behind.

Owns the measurement and its table: the same load through the gateway and on the control socket, slice by
slice in turn. Engines are replayed, so that nearly all that is measured is ours.
"""

import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import uvloop

from ecd.client import Client
from ecd.errors import DaemonError
from ecd.lab.commits import Commits, load_commits
from ecd.lab.errands import Errand, OnControlSocket, ThroughGateway, Visits, Way, errands, run_errands
from ecd.lab.footprint import Footprints, footprint, leaks, told_of_footprints
from ecd.lab.host import describe_machine
from ecd.lab.options import FILE, MS_ABOVE_0, SECONDS, SEED
from ecd.lab.rows import publish_emulated
from ecd.lab.shipped import find_file
from ecd.lab.system import REPLAY, DaemonProcess, address_of, running_cloud, running_edge, url_of
from ecd.lab.trace import Trace, load_trace

GATEWAY, CONTROL = "gateway", "control socket"
# Answers of one session on each way, whose pieces are held against the cloud's notes.
ANSWERS = 48
# The edge and the cloud are to be rid of a client that left within this time.
GONE_S = 1.0
POLL_S = 0.02
# Connections and tasks have ended by then.
REST_S = 1.0

Percentiles = dict[str, float]


def percentiles(values: Sequence[float]) -> Percentiles:
    """The median and the 99th. Raises DaemonError when there are none."""
    if not values:
        raise DaemonError("nothing came in the time that was measured; give more --seconds")
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50": float(p50), "p99": float(p99)}


@dataclass(frozen=True, slots=True)
class System:
    """A running cloud and edge, and the port of its gateway."""

    cloud: DaemonProcess
    edge: DaemonProcess
    port: int

    def sessions(self) -> int:
        """Those that the edge or the cloud still has."""
        of_cloud = self.cloud.call("stats")
        return int(self.edge.call("stats")["running"] + of_cloud["running"] + of_cloud["queued"])

    def footprints(self) -> Footprints:
        """By the daemon's role."""
        return {daemon.role: footprint(daemon) for daemon in (self.edge, self.cloud)}

    @contextlib.asynccontextmanager
    async def ways(self, clients: int) -> AsyncIterator[dict[str, list[Way]]]:
        """So many clients on either way."""
        async with AsyncExitStack() as stack:
            control: list[Way] = [
                OnControlSocket(await stack.enter_async_context(Client(self.edge.socket)))
                for _ in range(clients)
            ]
            yield {GATEWAY: [ThroughGateway(self.port)] * clients, CONTROL: control}


@contextlib.contextmanager
def running_system(
    folder: Path, trace: Path, clients: int, *, step_ms: float, draft_ms: float, notes: Path | None = None
) -> Iterator[System]:
    """Both daemons with room for so many sessions; `notes`: where the cloud's commits are noted."""
    model, room, http = f"{REPLAY}{trace}", ("--sessions", str(clients)), ("--http", "127.0.0.1:0")
    noting = ("--commits", str(notes)) if notes else ()
    with (
        running_cloud(folder, model, *room, "--step-ms", str(step_ms), *noting) as cloud,
        running_edge(folder, model, address_of(cloud), *room, *http, "--draft-ms", str(draft_ms)) as edge,
    ):
        yield System(cloud, edge, int(url_of(edge).rpartition(":")[2]))


# -- one session, against the cloud's notes


@dataclass(frozen=True, slots=True)
class Delay:
    """From a commit in the cloud to the client of one session, ms: of first pieces, and of all of them.

    So it is an upper bound of the time from the commit at the edge.
    """

    way: str
    first_ms: Percentiles
    all_ms: Percentiles


@dataclass(slots=True)
class Waits:
    """Milliseconds, of first pieces and of all."""

    first: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)


async def one_session(system: System, own: Iterator[Errand]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Answers on both ways in turn, one at a time: the way, and (tokens so far, when) for each piece."""
    answers = []
    async with system.ways(1) as ways:
        for _, errand in zip(range(ANSWERS), own, strict=False):
            for name, (way,) in ways.items():
                tokens, came = 0, []
                async with contextlib.aclosing(way.pieces(errand)) as pieces:
                    async for new in pieces:
                        tokens += new
                        came.append((tokens, time.monotonic()))
                answers.append((name, came))
    return answers


def delays_of(answers: Sequence[tuple[str, Sequence[tuple[int, float]]]], commits: Commits) -> list[Delay]:
    """Each way's delays; `answers` are numbered from 1 in the cloud's notes."""
    waits: dict[str, Waits] = {}
    for number, (way, came) in enumerate(answers, start=1):
        # The last piece of an answer may be cut behind what the step committed, and has no note of its own.
        own = [(at_s - commits[number, n]) * 1000 for n, at_s in came if (number, n) in commits]
        of_way = waits.setdefault(way, Waits())
        of_way.first += own[:1]
        of_way.all += own
    return [Delay(way, percentiles(each.first), percentiles(each.all)) for way, each in waits.items()]


def measure_delays(folder: Path, trace: Path, *, step_ms: float, draft_ms: float, seed: int) -> list[Delay]:
    """Starts a system of its own, whose cloud takes notes, and asks it."""
    notes = folder / "commits.json"
    own = errands(load_trace(trace), random.Random(seed), leaving=0.0)
    with running_system(folder, trace, 1, step_ms=step_ms, draft_ms=draft_ms, notes=notes) as system:
        answers = uvloop.run(one_session(system, own))
    return delays_of(answers, load_commits(notes))


# -- many clients


@dataclass(frozen=True, slots=True)
class Slice:
    """What clients saw on one way for a while, and what was left when they had gone.

    `emptied_s`: until neither daemon had a session any more.
    """

    way: str
    seconds: float
    visits: Visits
    emptied_s: float
    footprints: Footprints


@dataclass(frozen=True, slots=True)
class Load:
    """All slices of a way. `left` clients went away early; `emptied_ms` is the longest of all slices.

    `ttft_ms` is the time to the first piece, `itl_ms` that from a piece to the next; with drafts a piece may
    have several tokens.
    """

    way: str
    seconds: float
    answers: int
    left: int
    tokens_per_s: float
    ttft_ms: Percentiles
    itl_ms: Percentiles
    emptied_ms: float


async def slices(
    system: System, trace: Trace, clients: int, count: int, seconds: float, seed: int
) -> AsyncIterator[Slice]:
    """So many slices of each way in turn, the same errands for both; those before them warm up."""
    at_first: Footprints | None = None
    async with system.ways(clients) as ways:
        for number in range(-1, count):
            order = random.Random(f"{seed} {number}").sample(list(ways), len(ways))
            for name in order:
                each = [
                    errands(trace, random.Random(f"{seed} {number} {client}")) for client in range(clients)
                ]
                start = time.monotonic()
                visits = await run_errands(ways[name], each, seconds)
                end = time.monotonic()
                emptied_s = await _emptied(system)
                held = await asyncio.to_thread(_at_rest, system, at_first)
                yield Slice(name, end - start, visits, emptied_s, held)
            at_first = at_first or held


async def _emptied(system: System) -> float:
    start = time.monotonic()
    while sessions := await asyncio.to_thread(system.sessions):
        if time.monotonic() > start + GONE_S:
            raise DaemonError(f"{sessions} sessions are left {GONE_S:g} s after the last client went away")
        await asyncio.sleep(POLL_S)
    return time.monotonic() - start


def _at_rest(system: System, at_first: Footprints | None) -> Footprints:
    """What the daemons hold as soon as it is no more than at first, or else what they never get rid of."""
    deadline = time.monotonic() + REST_S
    while True:
        held = system.footprints()
        if time.monotonic() > deadline or (
            at_first is not None and all(held[role].within(first) for role, first in at_first.items())
        ):
            return held
        time.sleep(POLL_S)


def load_of(way: str, made: Sequence[Slice]) -> Load:
    """The numbers of a way."""
    own = [each for each in made if each.way == way]
    seconds = sum(each.seconds for each in own)
    receptions = [reception for each in own for reception in each.visits.receptions]
    seen = [reception.numbers() for reception in receptions]
    return Load(
        way,
        seconds,
        answers=sum(each.visits.complete for each in own),
        left=sum(each.visits.left for each in own),
        tokens_per_s=sum(sum(reception.tokens) for reception in receptions) / seconds,
        ttft_ms=percentiles([numbers["ttft_ms"] for numbers in seen]),
        itl_ms=percentiles([gap for numbers in seen for gap in numbers["gaps_ms"]]),
        emptied_ms=max(each.emptied_s for each in own) * 1000,
    )


HEADER = (
    "                                                      TTFT, ms    next piece, ms  emptied\n"
    "way             seconds  answers   left  tokens/s    p50     p99    p50      p99       ms"
)


def line_of(row: Load) -> str:
    """One line of the table."""
    return (
        f"{row.way:<14}  {row.seconds:>7.0f} {row.answers:>8} {row.left:>6} {row.tokens_per_s:>9.0f} "
        f"{row.ttft_ms['p50']:>6.1f} {row.ttft_ms['p99']:>7.1f} "
        f"{row.itl_ms['p50']:>6.1f} {row.itl_ms['p99']:>8.1f} {row.emptied_ms:>8.0f}"
    )


def told_of_delays(delays: Sequence[Delay]) -> str:
    """Sentences for people."""
    return "\n".join(
        f"one session, commit in the cloud to client, {each.way}: "
        f"first piece {each.first_ms['p50']:.2f} ms (p99 {each.first_ms['p99']:.2f}), "
        f"all pieces {each.all_ms['p50']:.2f} (p99 {each.all_ms['p99']:.2f})"
        for each in delays
    )


@click.command()
@click.option(
    "--trace", default="qwen-coder-greedy", show_default=True, help="A trace file, or one of ecd's."
)
@click.option("--clients", type=click.IntRange(1, 256), default=64, show_default=True, help="At once.")
@click.option("--seconds", type=SECONDS, default=600.0, show_default=True, help="Of load on each way.")
@click.option("--slice", "slice_s", type=SECONDS, default=30.0, show_default=True, help="Seconds in turn.")
@click.option(
    "--step-ms", type=MS_ABOVE_0, default=30.0, show_default=True, help="A target step of one token."
)
@click.option("--draft-ms", type=MS_ABOVE_0, default=5.0, show_default=True, help="One drafted token.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of what clients ask and when they go.")
@click.option("--json", "out", type=FILE, help="Write the numbers here.")
def gateway(
    trace: str,
    clients: int,
    seconds: float,
    slice_s: float,
    step_ms: float,
    draft_ms: float,
    seed: int,
    out: Path | None,
) -> None:
    """What the HTTP gateway costs beside the control socket, and whether a mixed load leaves anything behind.

    Clients stream conversations and completions, with drafts and without; a quarter of them leave within 2 s.
    Emulated engines, real daemons, loopback. The clients run on the same machine and take their share of it.
    Exit status 1 also says that a session, a file descriptor, a task or memory was left behind.
    """
    path = find_file("traces", trace)
    click.echo(f"{describe_machine()}\nemulated engines, step {step_ms:g} ms, draft {draft_ms:g} ms\n")
    with tempfile.TemporaryDirectory(prefix="ecd-") as folder:
        delays = measure_delays(Path(folder), path, step_ms=step_ms, draft_ms=draft_ms, seed=seed)
    click.echo(told_of_delays(delays) + "\n")
    count = max(1, round(seconds / slice_s))

    async def measured(system: System) -> list[Slice]:
        made = []
        with click.progressbar(length=2 * (count + 1), label="slices", file=sys.stderr) as bar:
            async for each in slices(system, load_trace(path), clients, count, slice_s, seed):
                made.append(each)
                bar.update(1)
        return made

    with (
        tempfile.TemporaryDirectory(prefix="ecd-") as folder,
        running_system(Path(folder), path, clients, step_ms=step_ms, draft_ms=draft_ms) as system,
    ):
        made = uvloop.run(measured(system))
    # The first slice of each way warms up; what the daemons held then is what the rest is held against.
    held, counted = [each.footprints for each in made[1:]], made[2:]
    facts: dict[str, Any] = {
        "clients": clients,
        "step_ms": step_ms,
        "draft_ms": draft_ms,
        "delays": [asdict(each) for each in delays],
        "footprints": [{role: asdict(each) for role, each in of_all.items()} for of_all in held],
    }
    publish_emulated([load_of(way, counted) for way in (GATEWAY, CONTROL)], HEADER, line_of, out, **facts)
    click.echo(f"\n{told_of_footprints(held)}")
    if found := list(leaks(held)):
        raise DaemonError("something is left behind: " + "; ".join(found))
    click.echo("nothing is left behind")
