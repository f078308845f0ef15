"""`ecd bench overhead`: what the daemons themselves cost, beside engines that only sleep.

Owns the measurement and its table. A replayed engine takes next to no CPU time, so that what the processes
use is ours: sockets, frames, batching, pacing, text, and the notes of this measurement.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import click
import uvloop

from ecd.errors import DaemonError
from ecd.lab.commits import Commits, load_commits
from ecd.lab.host import describe_machine
from ecd.lab.load import Window, requests, watch
from ecd.lab.options import FILE, MS_ABOVE_0, SECONDS, listed
from ecd.lab.rows import publish_emulated
from ecd.lab.shipped import find_file
from ecd.lab.system import REPLAY, address_of, running_cloud, running_edge
from ecd.lab.trace import load_trace


@dataclass(frozen=True, slots=True)
class Overhead:
    """At so many sessions: CPU time of both daemons, and the time from a commit to its text at the client.

    A step serves all sessions that take part in it; `cloud_cpu_ms_per_session_step` is of one of them. For
    `gap_ms` on average the engine stood still between two steps, in `gaps_over_1ms` of the gaps (a share) for
    more than 1 ms; both are None where no step had its work there at the end of the one before.
    """

    sessions: int
    tokens_per_s: float
    steps_per_s: float
    cloud_cpu_ms_per_step: float
    cloud_cpu_ms_per_session_step: float
    cloud_cpu_us_per_token: float
    edge_cpu_us_per_token: float
    gap_ms: float | None
    gaps_over_1ms: float | None
    commit_to_client_ms: dict[str, float]


def overhead_of(sessions: int, window: Window, commits: Commits) -> Overhead:
    """The numbers of one window. Raises DaemonError when nothing was committed in it."""
    cloud = window.cloud
    # The last piece of an answer may be cut behind what the step committed, and then has no note of its own.
    waits_ms = [
        (a.at_s - commits[a.answer, a.end]) * 1000 for a in window.arrivals if (a.answer, a.end) in commits
    ]
    if len(waits_ms) < 2 or not cloud["committed"]:
        raise DaemonError(
            f"{sessions} sessions got no tokens within {window.seconds:.0f} s; give more --seconds"
        )
    gaps = cloud["gaps"]
    percentiles = quantiles(waits_ms, n=100, method="inclusive")
    return Overhead(
        sessions,
        tokens_per_s=cloud["committed"] / window.seconds,
        steps_per_s=cloud["steps"] / window.seconds,
        cloud_cpu_ms_per_step=cloud["cpu_s"] * 1e3 / cloud["steps"],
        cloud_cpu_ms_per_session_step=cloud["cpu_s"] * 1e3 / cloud["batch_sessions"],
        cloud_cpu_us_per_token=cloud["cpu_s"] * 1e6 / cloud["committed"],
        edge_cpu_us_per_token=window.edges["cpu_s"] * 1e6 / cloud["committed"],
        gap_ms=cloud["gap_s"] * 1e3 / gaps if gaps else None,
        gaps_over_1ms=cloud["gaps_over_1ms"] / gaps if gaps else None,
        commit_to_client_ms={"p50": percentiles[49], "p99": percentiles[98]},
    )


def measure_overhead(
    folder: Path, trace: Path, sessions: int, *, step_ms: float, draft_ms: float, seconds: float
) -> Overhead:
    """Starts both daemons in `folder`, keeps the sessions busy, and stops them."""
    notes = folder / "commits.json"
    model, room = f"{REPLAY}{trace}", ("--sessions", str(sessions))
    asked = requests(load_trace(trace), {})
    with (
        running_cloud(folder, model, *room, "--step-ms", str(step_ms), "--commits", str(notes)) as cloud,
        running_edge(folder, model, address_of(cloud), *room, "--draft-ms", str(draft_ms)) as edge,
    ):
        window = uvloop.run(watch(cloud, [edge], sessions, asked, seconds))
    return overhead_of(sessions, window, load_commits(notes))


HEADER = (
    "          tokens   steps      cloud CPU time, ms    us per token   between steps  commit to client, ms\n"
    "sessions     /s      /s    step  session and step  cloud    edge  gap_ms   >1 ms         p50        p99"
)


def line_of(row: Overhead) -> str:
    """One line of the table."""
    waits = row.commit_to_client_ms
    gap = "" if row.gap_ms is None else f"{row.gap_ms:.2f}"
    over = "" if row.gaps_over_1ms is None else f"{row.gaps_over_1ms:.1%}"
    return (
        f"{row.sessions:>8} {row.tokens_per_s:>6.0f} {row.steps_per_s:>7.1f} "
        f"{row.cloud_cpu_ms_per_step:>7.2f}  {row.cloud_cpu_ms_per_session_step:>16.3f}  "
        f"{row.cloud_cpu_us_per_token:>5.0f} "
        f"{row.edge_cpu_us_per_token:>7.0f} {gap:>7} {over:>7}  {waits['p50']:>10.2f} {waits['p99']:>10.2f}"
    )


@click.command()
@click.option(
    "--trace", default="qwen-coder-greedy", show_default=True, help="A trace file, or one of ecd's."
)
@click.option(
    "--sessions",
    "counts",
    callback=listed(click.IntRange(1, 256)),
    default="1,16,64",
    show_default=True,
    metavar="N[,N...]",
    help="Sessions at once.",
)
@click.option(
    "--step-ms", type=MS_ABOVE_0, default=30.0, show_default=True, help="A target step of one token."
)
@click.option("--draft-ms", type=MS_ABOVE_0, default=5.0, show_default=True, help="One drafted token.")
@click.option("--seconds", type=SECONDS, default=10.0, show_default=True, help="Of each number.")
@click.option("--json", "out", type=FILE, help="Write the numbers here.")
def overhead(
    trace: str, counts: Sequence[int], step_ms: float, draft_ms: float, seconds: float, out: Path | None
) -> None:
    """What ecd itself costs: CPU time of both daemons, and from a commit in the cloud to the client.

    Emulated engines, real daemons, loopback. The client runs on the same machine and takes its share of it.
    """
    path = find_file("traces", trace)
    click.echo(f"{describe_machine()}\nemulated engines, step {step_ms:g} ms, draft {draft_ms:g} ms\n")

    def rows() -> Iterator[Overhead]:
        for sessions in counts:
            with tempfile.TemporaryDirectory(prefix="ecd-") as folder:
                row = measure_overhead(
                    Path(folder), path, sessions, step_ms=step_ms, draft_ms=draft_ms, seconds=seconds
                )
            yield row

    publish_emulated(rows(), HEADER, line_of, out, step_ms=step_ms, draft_ms=draft_ms)
