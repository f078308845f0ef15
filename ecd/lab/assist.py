"""`ecd bench assist`: when an edge's draft is ready behind a long prompt, with and without the cloud's help.

Owns the measurement and its table. Real daemons, real models, an emulated link; the edge gets a share of its
processor time only.
"""

import contextlib
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from ecd.client import BlockingClient
from ecd.lab.host import describe_machine
from ecd.lab.lane import Conditions
from ecd.lab.options import FILE, REPEATS, THREADS, FiniteFloatRange, listed
from ecd.lab.rig import relaying
from ecd.lab.rows import save
from ecd.lab.system import DaemonProcess, address_of, running_cloud, running_edge, slowed

WORDS = ("river", "stone", "window", "market", "letter", "garden", "engine", "harbour", "winter", "copper")


@dataclass(frozen=True, slots=True)
class Ready:
    """One answer. `ready_s`: until the draft model made its first guess; None: it never did.

    `joined`: whether by the cloud's pages; `page_bytes` of them came.
    """

    mbit: float
    assist: str
    prompt_tokens: int
    ready_s: float | None
    joined: bool
    page_bytes: int


def a_prompt(words: int, seed: int) -> str:
    """A text that no other prompt begins with, of so many words; a token or a little more each."""
    rng = random.Random(seed)
    return f"Story {seed}. " + " ".join(rng.choice(WORDS) for _ in range(words))


@contextlib.contextmanager
def running_pair(
    folder: Path, target: str, draft: str, mbits: Sequence[float], rtt_ms: float, flags: Sequence[str]
) -> Iterator[dict[tuple[float, str], DaemonProcess]]:
    """A cloud that holds both models, and edges by bandwidth of their link and by how pages travel."""
    with contextlib.ExitStack() as stack:
        flags = ("--sessions", "1", *flags)
        cloud = stack.enter_context(running_cloud(folder, target, "--assist", draft, *flags))
        host, _, port = address_of(cloud).rpartition(":")
        conditions = [Conditions(rtt_ms / 2000, 0.0, mbit * 1e6) for mbit in mbits]
        addresses = stack.enter_context(relaying((host, int(port)), conditions))
        edges = {}
        for mbit, address in zip(mbits, addresses, strict=True):
            for assist in ("null", "q8_0"):
                place = folder / f"{mbit:g}-{assist}"
                place.mkdir()
                settings = place / "edge.yaml"
                settings.write_text(f"assist: {assist}\n")
                edges[mbit, assist] = stack.enter_context(
                    running_edge(place, draft, address, "--config", str(settings), *flags)
                )
        yield edges


def measure(
    edge: DaemonProcess, mbit: float, assist: str, prompt: str, *, share: float, asked: dict[str, Any]
) -> Ready:
    """One answer of a slowed edge; `asked`: arguments of `run`. Raises RemoteError for what does not fit."""
    before = edge.call("stats")
    with slowed(edge, share), BlockingClient(edge.socket) as client:
        *_, result = client.stream(prompt, chat=False, **asked)
    after = edge.call("stats")
    ready_ms = result["stats"]["draft_ready_ms"]
    return Ready(
        mbit,
        assist,
        result["usage"]["prompt_tokens"],
        None if ready_ms is None else ready_ms / 1000,
        after["assisted"] > before["assisted"],
        after["page_bytes"] - before["page_bytes"],
    )


HEADER = "Mbit/s  pages   prompt  draft ready, s  joined by pages  page MB"


def line_of(row: Ready) -> str:
    """One line of the table."""
    ready = "never" if row.ready_s is None else f"{row.ready_s:.2f}"
    joined = "yes" if row.joined else "no"
    return (
        f"{row.mbit:>6g}  {row.assist:<5}  {row.prompt_tokens:>7}  {ready:>14}  {joined:>15}  "
        f"{row.page_bytes / 1e6:>7.2f}"
    )


@click.command()
@click.option("--target", required=True, help="The target: a GGUF file, or a model's name.")
@click.option("--draft", required=True, help="The draft model, at both ends.")
@click.option(
    "--mbit",
    "mbits",
    callback=listed(FiniteFloatRange(0.1, 100_000)),
    default="10,1000",
    show_default=True,
    metavar="X[,X...]",
    help="Bandwidth of the link.",
)
@click.option(
    "--rtt-ms", type=FiniteFloatRange(0, 1000), default=20.0, show_default=True, help="Of the link."
)
@click.option(
    "--words", type=click.IntRange(300, 3000), default=1450, show_default=True, help="Of the prompt."
)
@click.option(
    "--share",
    type=FiniteFloatRange(0.05, 1),
    default=0.25,
    show_default=True,
    help="Of its time that the edge may compute.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(16, 2000),
    default=800,
    show_default=True,
    help="Of an answer; they must last until the draft is ready.",
)
@click.option("--repeat", type=REPEATS, default=2, show_default=True, help="Answers of each kind.")
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Of each engine.")
@click.option("--json", "out", type=FILE, help="Write the numbers here.")
def assist(
    target: str,
    draft: str,
    mbits: Sequence[float],
    rtt_ms: float,
    words: int,
    share: float,
    max_tokens: int,
    repeat: int,
    threads: int,
    out: Path | None,
) -> None:
    """When a slow edge can draft behind a long prompt, with and without pages from the cloud.

    Real models and daemons on this machine, interleaved; each prompt is a new one.
    """
    from ecd.engine.llama import LlamaModel
    from ecd.models.forms import gguf_file

    # An answer that ended early would leave nothing to draft for.
    ends = LlamaModel(gguf_file(target), vocab_only=True).eog
    asked = {"max_tokens": max_tokens, "logit_bias": [[end, -1000.0] for end in sorted(ends)]}
    flags = ("--threads", str(threads))
    click.echo(f"{describe_machine()}\n{share:g} of the edge's time, RTT {rtt_ms:g} ms\n\n{HEADER}")
    rows: list[Ready] = []
    with (
        tempfile.TemporaryDirectory(prefix="ecd-") as folder,
        running_pair(Path(folder), target, draft, mbits, rtt_ms, flags) as edges,
    ):
        for seed in range(repeat):
            for number, ((mbit, pages), edge) in enumerate(edges.items()):
                prompt = a_prompt(words, seed * len(edges) + number)
                rows.append(measure(edge, mbit, pages, prompt, share=share, asked=asked))
                click.echo(line_of(rows[-1]))
    if out:
        save(out, [asdict(row) for row in rows], share=share, rtt_ms=rtt_ms)
