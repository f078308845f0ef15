"""`ecd soak`: the command, and the system that it starts: a cloud, a faulty link and two edges.

What is done to them is in `soaking`.
"""

import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import uvloop
import yaml

from ecd.addresses import split_address
from ecd.lab.fault_plan import Kind, draw_faults
from ecd.lab.hardship import EdgeToken
from ecd.lab.host import describe_machine, versions
from ecd.lab.lane import Conditions
from ecd.lab.link import EmulatedLink
from ecd.lab.options import FILE, SEED, FiniteFloatRange
from ecd.lab.questions import Question, real_questions, recorded_questions
from ecd.lab.soaked import Soaked
from ecd.lab.soaking import Soak, Watched
from ecd.lab.system import REPLAY, address_of, running_cloud, running_edge

EDGES = 2
# A recorded target's pace; the machine has to bear all sessions' steps, clients and links beside them.
CLOUD_PACE, EDGE_PACE = ("--step-ms", "20"), ("--draft-ms", "4")
ROOM = ("--context-tokens", "2048")
# Every cell of a model takes memory, and its prompts are short.
MODEL_ROOM = ("--context-tokens", "512")
LINK = Conditions(delay_s=0.01, jitter_s=0.005)
IMPATIENT = {"ping_interval_s": 0.5, "silence_s": 2.0}
RECONNECT = {"first_s": 0.05, "longest_s": 0.5}
# Too little memory for the states of a few answers, so that they go to the disk, whose files go again too.
CACHE_BYTES, DISK_BYTES = 8 << 20, 32 << 20
# Not the address that connections are made from: the link, which dials while there is no cloud, could else
# take the cloud's own port, and even be answered by itself.
CLOUD_HOST = "127.0.0.2"


async def run_soak(
    folder: Path,
    models: tuple[str, str],
    questions: Sequence[Question],
    *,
    sessions: int,
    seconds: float,
    every_s: float,
    seed: int,
) -> Soaked:
    """Starts all of it in `folder`, with the target and the draft of `models`.

    Raises EcdError when a daemon does not start, or ends by itself.
    """
    target, draft = models
    recorded = target.startswith(REPLAY)
    places = [folder / name for name in ("cloud", *(f"edge-{number}" for number in range(EDGES)))]
    for place in places:
        place.mkdir()
    token = EdgeToken.create(folder / "tokens.json")
    of_cloud, of_edge = ((*CLOUD_PACE, *ROOM), (*EDGE_PACE, *ROOM)) if recorded else (MODEL_ROOM, MODEL_ROOM)
    of_cloud = (*of_cloud, *_settings(places[0], tokens=str(token.file)))
    with ExitStack() as stack:
        cloud = stack.enter_context(
            running_cloud(places[0], target, "--sessions", str(sessions), *of_cloud, listen=f"{CLOUD_HOST}:0")
        )
        address = address_of(cloud)
        # The next process listens where the first one did.
        cloud.flags[cloud.flags.index("--listen") + 1] = address
        async with EmulatedLink(*split_address(address), LINK, seed=seed) as link:
            share = ("--sessions", str(-(-sessions // EDGES)))
            starting = [
                running_edge(
                    place,
                    draft,
                    f"{link.host}:{link.port}",
                    *(*share, *of_edge, *_settings(place, token=token.secret, reconnect=RECONNECT)),
                )
                for place in places[1:]
            ]
            # In a thread: they are ready when they have connected, which takes this loop.
            edges = [await asyncio.to_thread(stack.enter_context, edge) for edge in starting]
            soak = Soak(Watched(cloud), [Watched(edge) for edge in edges], link, token, questions, sessions)
            # What is recorded has no KV states to keep.
            kinds = [kind for kind in Kind if kind is not Kind.FULL_DISK or not recorded]
            return await soak.run(draw_faults(kinds, seed, seconds, every_s), seconds, seed)


def _settings(place: Path, **settings: Any) -> tuple[str, str]:
    """The flags that give a daemon these settings, and those that all have."""
    disk = {"path": str(place / "kv"), "max_bytes": DISK_BYTES}
    cache = {"max_bytes": CACHE_BYTES, "disk": disk}
    file = place / "settings.yaml"
    file.write_text(yaml.safe_dump({"keepalive": IMPATIENT, "kv_cache": cache, **settings}))
    return "--config", str(file)


@click.command()
@click.option(
    "--target", default="replay:qwen-coder-greedy", show_default=True,
    help="A model of `ecd models`, a GGUF file, or replay:TRACE.",
)  # fmt: skip
@click.option("--draft", help="Likewise; with replay: the trace's own.")
@click.option(
    "--minutes", type=FiniteFloatRange(0.1, 1440), default=3.0, show_default=True, help="Of asking."
)
@click.option("--sessions", type=click.IntRange(1, 256), default=32, show_default=True, help="At once.")
@click.option(
    "--every", "every_s", type=FiniteFloatRange(0.1, 3600), default=5.0, show_default=True,
    help="Seconds between faults, on average.",
)  # fmt: skip
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of faults and requests.")
@click.option("--json", "out", type=FILE, help="Write what was found here.")
@click.pass_context
def soak(
    context: click.Context,
    target: str,
    draft: str | None,
    minutes: float,
    sessions: int,
    every_s: float,
    seed: int,
    out: Path | None,
) -> None:
    """Ask and ask while links, disks and tokens fail and the daemons are killed.

    A cloud, two edges and the link between them, on this machine. The link is cut, stalled and spoilt, the
    disk of the KV caches is full (with models; what is recorded has none), the edges' token expires and is
    renewed. Every answer is compared with what the target alone says, and in the end nothing may be left
    over: no session, task or file descriptor, and no more memory. Daemons are killed in the first two thirds
    of the time; memory is judged in the last. Exit status 1 also says that something was not as promised.
    """
    if target.startswith(REPLAY):
        if draft is not None:
            raise click.UsageError("--draft: with --target replay:TRACE the draft is in the trace")
        questions, draft = recorded_questions(target.removeprefix(REPLAY)), target
    else:
        if draft is None:
            raise click.UsageError("--draft is missing: the model that guesses")
        click.echo("asking the target alone", err=True)
        questions = real_questions(target)
    click.echo(f"{describe_machine()}\n", err=True)
    with tempfile.TemporaryDirectory(prefix="ecd-") as name:
        found = uvloop.run(
            run_soak(
                Path(name),
                (target, draft),
                questions,
                sessions=sessions,
                seconds=60 * minutes,
                every_s=every_s,
                seed=seed,
            )
        )
    click.echo(found.table())
    if out:
        report = {"machine": describe_machine(), "versions": versions(), "target": target} | found.to_map()
        out.write_text(json.dumps(report, indent=1))
    context.exit(1 if found.problems() else 0)
