"""`ecd bench capacity`: how many sessions one cloud serves at a given rate each, by way of drafting.

Owns the search and its table. The cloud is replayed at a given pace: a step takes longer the more tokens are
in its batch, whosever they are. Every few sessions have an edge of their own, as users would.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

import click
import uvloop

from ecd.addresses import split_address
from ecd.lab.host import describe_machine
from ecd.lab.load import Window, requests, watch
from ecd.lab.options import FILE, MS, MS_ABOVE_0, SECONDS, SHARE, FiniteFloatRange, listed
from ecd.lab.pace import Line, Point, Profile, save_profile
from ecd.lab.rig import running_links
from ecd.lab.rows import publish_emulated
from ecd.lab.runs import Campaign, Mode, Objective, Variant
from ecd.lab.shipped import find_file
from ecd.lab.system import REPLAY, DaemonProcess, address_of, running_cloud, running_edge
from ecd.lab.trace import load_trace

SESSIONS_PER_EDGE = 8
# Where the search begins.
FIRST = 8
# The search ends when the largest number that holds and the smallest that does not are this near.
PRECISION = 1 / 16
# A daemon that is busy for more than this share of the time is what limits, and not the engine's pace.
BUSY = 0.8


@dataclass(frozen=True, slots=True)
class Level:
    """What so many sessions got: the median session's rate, and what the cloud did for it.

    `cloud_cpu`: the share of the time that the cloud's process was computing; not the engine, which sleeps.
    """

    sessions: int
    session_tokens_per_s: float
    tokens_per_s: float
    forwards_per_token: float
    batch_tokens: float
    cloud_cpu: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """The most sessions that hold the rate, None where not even one does, and all that was tried."""

    mode: str
    rtt_ms: float
    level: Level | None
    at_the_limit: bool
    tried: tuple[Level, ...]


def largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that holds, or less by up to PRECISION; 0 if 1 does not.

    Doubles until one fails, then halves the gap: O(log most) calls. `holds` is true up to some number.
    """
    good, bad = 0, min(FIRST, most)
    while holds(bad):
        good, bad = bad, min(2 * bad, most)
        if good == most:
            return most
    while bad - good > max(1, PRECISION * bad):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good


def level_of(sessions: int, window: Window) -> Level:
    """The numbers of one window; a session that got nothing counts as 0."""
    tokens = dict.fromkeys(range(sessions), 0)
    for arrival in window.arrivals:
        tokens[arrival.session] += arrival.new
    cloud = window.cloud
    return Level(
        sessions,
        session_tokens_per_s=median(tokens.values()) / window.seconds,
        tokens_per_s=sum(tokens.values()) / window.seconds,
        forwards_per_token=cloud["forwards"] / max(1, cloud["committed"]),
        batch_tokens=cloud["batch_tokens"] / max(1, cloud["steps"]),
        cloud_cpu=cloud["cpu_s"] / window.seconds,
    )


def straight_pace(step_ms: float, slope: float) -> Profile:
    """A pace at which each token of a batch but the first costs `slope` of a step, whosever it is.

    The four points span a surface that is linear in the number of tokens, sessions times tokens of each.
    """
    line = Line(step_ms, slope)
    points = tuple(
        Point(sessions, each, line.step_ms(1, sessions * each)) for sessions, each in product((1, 2), (1, 2))
    )
    return Profile({"step_ms": step_ms, "slope": slope}, points)


@dataclass(frozen=True, slots=True)
class Emulation:
    """What is emulated: a trace, a profile of step times, the draft's time, and the link."""

    trace: Path
    pace: Path
    draft_ms: float
    rtt_ms: float


@contextlib.contextmanager
def running_system(
    folder: Path, emulation: Emulation, most: int
) -> Iterator[tuple[DaemonProcess, list[DaemonProcess]]]:
    """A cloud for `most` sessions, the link, and edges enough for them."""
    model = f"{REPLAY}{emulation.trace}"
    with contextlib.ExitStack() as stack:
        cloud = stack.enter_context(
            running_cloud(folder, model, "--sessions", str(most), "--pace", str(emulation.pace))
        )
        (address,) = stack.enter_context(
            running_links(split_address(address_of(cloud)), Campaign((emulation.rtt_ms,)))
        )
        edges = []
        for number in range(-(-most // SESSIONS_PER_EDGE)):
            place = folder / f"edge-{number}"
            place.mkdir()
            flags = ("--sessions", str(SESSIONS_PER_EDGE), "--draft-ms", str(emulation.draft_ms))
            edges.append(stack.enter_context(running_edge(place, model, address, *flags)))
        yield cloud, edges


def measure_capacity(
    system: tuple[DaemonProcess, list[DaemonProcess]],
    emulation: Emulation,
    variant: Variant,
    objective: Objective,
    *,
    rate: float,
    most: int,
    seconds: float,
) -> Capacity:
    """The most sessions of a variant whose median one still gets `rate` tokens a second."""
    cloud, edges = system
    asked = requests(load_trace(emulation.trace), variant.arguments(objective))
    tried: dict[int, Level] = {}

    def holds(sessions: int) -> bool:
        window = uvloop.run(watch(cloud, edges, sessions, asked, seconds))
        tried[sessions] = level_of(sessions, window)
        return tried[sessions].session_tokens_per_s >= rate

    found = largest(holds, most)
    name = f"{variant.mode} {variant.k}" if variant.k else str(variant.mode)
    return Capacity(name, emulation.rtt_ms, tried.get(found), found == most, tuple(tried.values()))


HEADER = "mode        sessions  each t/s  all t/s  forwards/token  tokens/step  cloud CPU"


def line_of(row: Capacity) -> str:
    """One line of the table."""
    level = row.level
    if level is None:
        best = row.tried[0].session_tokens_per_s
        return f"{row.mode:<10}         0  {best:>8.1f}  one session alone is below the rate"
    notes = ["the most that was tried"] * row.at_the_limit
    notes += ["limited by the daemon, not by the pace"] * (level.cloud_cpu > BUSY)
    return (
        f"{row.mode:<10}  {level.sessions:>8}  {level.session_tokens_per_s:>8.1f}  "
        f"{level.tokens_per_s:>7.0f}  {level.forwards_per_token:>14.2f}  {level.batch_tokens:>11.1f}  "
        f"{level.cloud_cpu:>9.0%}  {', '.join(notes)}"
    ).rstrip()


@click.command()
@click.option(
    "--trace", default="qwen-coder-greedy", show_default=True, help="A trace file, or one of ecd's."
)
@click.option(
    "--rate", type=FiniteFloatRange(0, min_open=True), default=20.0, show_default=True, help="Tokens/s."
)
@click.option("--rtt", "rtt_ms", type=MS, default=20.0, show_default=True, help="In ms.")
@click.option(
    "--rounds-k", "ks", callback=listed(click.IntRange(1, 64)), default="2,4,8", show_default=True,
    help="Drafts in a round.",
)  # fmt: skip
@click.option(
    "--objective", type=click.Choice(["latency", "balanced", "cost"]), default="balanced", show_default=True,
    help="Of mode ecd.",
)  # fmt: skip
@click.option(
    "--step-ms", type=MS_ABOVE_0, default=30.0, show_default=True, help="A target step of one token."
)
@click.option("--step-slope", type=SHARE, default=0.02, show_default=True, help="Per further token.")
@click.option("--pace", metavar="PROFILE", help="Measured step times instead: a file, or one of ecd's.")
@click.option("--draft-ms", type=MS_ABOVE_0, default=5.0, show_default=True, help="One drafted token.")
@click.option("--most", type=click.IntRange(1, 256), default=128, show_default=True, help="Sessions to try.")
@click.option("--seconds", type=SECONDS, default=10.0, show_default=True, help="Of each number.")
@click.option("--json", "out", type=FILE, help="Write the numbers here.")
def capacity(
    trace: str,
    rate: float,
    rtt_ms: float,
    ks: Sequence[int],
    objective: Objective,
    step_ms: float,
    step_slope: float,
    pace: str | None,
    draft_ms: float,
    most: int,
    seconds: float,
    out: Path | None,
) -> None:
    """How many sessions one cloud serves at --rate tokens/s each: without drafts, in rounds, and with ecd.

    Emulated engines, real daemons. The median session counts, prompts and waiting included.
    """
    variants = [Variant(Mode.CLOUD), *(Variant(Mode.ROUNDS, k) for k in ks), Variant(Mode.ECD)]
    with tempfile.TemporaryDirectory(prefix="ecd-") as name:
        folder = Path(name)
        profile = folder / "pace.json"
        save_profile(profile, straight_pace(step_ms, step_slope))
        emulation = Emulation(
            find_file("traces", trace), find_file("profiles", pace) if pace else profile, draft_ms, rtt_ms
        )
        told = pace or f"{step_ms:g} ms a step, and {step_slope:g} of it for each further token"
        click.echo(
            f"{describe_machine()}\nemulated engines: {told}; draft {draft_ms:g} ms; RTT {rtt_ms:g} ms\n"
            f"sessions that get {rate:g} tokens/s each:\n"
        )
        with running_system(folder, emulation, most) as system:
            rows = (
                measure_capacity(system, emulation, variant, objective, rate=rate, most=most, seconds=seconds)
                for variant in variants
            )
            publish_emulated(rows, HEADER, line_of, out, pace=told, draft_ms=draft_ms, rate=rate)
