"""`ecd bench overhead`: what the daemons themselves cost, beside engines that only sleep.

Owns the measurement and its table. A replayed engine takes next to no CPU time, so that what the processes
use is ours: sockets, frames, batching, pacing, text, and the notes of this measurement.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles

import click
import uvloop

from ecd.errors import DaemonError
from ecd.lab.commits import Commits, load_commits
from ecd.lab.host import describe_machine, versions
from ecd.lab.load import Window, requests, watch
from ecd.lab.plan import numbers
from ecd.lab.shipped import find_file
from ecd.lab.system import REPLAY, address_of, running_cloud, running_edge
from ecd.lab.trace import load_trace


@dataclass(frozen=True, slots=True)
class Overhead:
    """At so many sessions: CPU time of both daemons, and the time from a commit to its text at the client.

    A step serves all sessions that take part in it; `cloud_cpu_ms_per_session_step` is of one of them.
    """

    sessions: int
    tokens_per_s: float
    steps_per_s: float
    cloud_cpu_ms_per_step: float
    cloud_cpu_ms_per_session_step: float
    cloud_cpu_us_per_token: float
    edge_cpu_us_per_token: float
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
    percentiles = quantiles(waits_ms, n=100, method="inclusive")
    return Overhead(
        sessions,
        tokens_per_s=cloud["committed"] / window.seconds,
        steps_per_s=cloud["steps"] / window.seconds,
        cloud_cpu_ms_per_step=cloud["cpu_s"] * 1e3 / cloud["steps"],
        cloud_cpu_ms_per_session_step=cloud["cpu_s"] * 1e3 / cloud["batch_sessions"],
        cloud_cpu_us_per_token=cloud["cpu_s"] * 1e6 / cloud["committed"],
        edge_cpu_us_per_token=window.edges["cpu_s"] * 1e6 / cloud["committed"],
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
    "          tokens   steps      cloud CPU time, ms      us per token   commit to client, ms\n"
    "sessions     /s      /s    step  session and step    cloud    edge         p50        p99"
)


def line_of(row: Overhead) -> str:
    """One line of the table."""
    waits = row.commit_to_client_ms
    return (
        f"{row.sessions:>8} {row.tokens_per_s:>6.0f} {row.steps_per_s:>7.1f} "
        f"{row.cloud_cpu_ms_per_step:>7.2f}  {row.cloud_cpu_ms_per_session_step:>16.3f}  "
        f"{row.cloud_cpu_us_per_token:>7.0f} "
        f"{row.edge_cpu_us_per_token:>7.0f}  {waits['p50']:>10.2f} {waits['p99']:>10.2f}"
    )


def whole_numbers(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    """Click callback for whole numbers from 1 to 256 with commas between them."""
    given = numbers(context, option, value) or ()
    if not all(number.is_integer() and 1 <= number <= 256 for number in given):
        raise click.BadParameter(f"{value!r} is not a list of whole numbers from 1 to 256, like 1,16")
    return tuple(int(number) for number in given)


@click.command()
@click.option(
    "--trace", default="qwen-coder-greedy", show_default=True, help="A trace file, or one of ecd's."
)
@click.option("--sessions", "counts", default="1,16,64", show_default=True, callback=whole_numbers)
@click.option("--step-ms", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True)
@click.option("--draft-ms", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=10.0, show_default=True, help="Of each number.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the numbers here.")
def overhead(
    trace: str, counts: Sequence[int], step_ms: float, draft_ms: float, seconds: float, out: Path | None
) -> None:
    """What ecd itself costs: CPU time of both daemons, and from a commit in the cloud to the client.

    Emulated engines, real daemons, loopback. The client runs on the same machine and takes its share of it.
    """
    path = find_file("traces", trace)
    click.echo(
        f"{describe_machine()}\nemulated engines, step {step_ms:g} ms, draft {draft_ms:g} ms\n\n{HEADER}"
    )
    rows = []
    for sessions in counts:
        with tempfile.TemporaryDirectory(prefix="ecd-") as folder:
            row = measure_overhead(
                Path(folder), path, sessions, step_ms=step_ms, draft_ms=draft_ms, seconds=seconds
            )
        rows.append(row)
        click.echo(line_of(row))
    if out:
        report = {
            "machine": describe_machine(),
            "versions": versions(),
            "emulated": True,
            "step_ms": step_ms,
            "draft_ms": draft_ms,
            "results": [asdict(row) for row in rows],
        }
        out.write_text(json.dumps(report, indent=1))
