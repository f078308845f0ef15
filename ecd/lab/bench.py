"""`ecd bench`: measurements side by side, in one go, with real daemons.

Owns the command lines. What is measured and how it is judged is in the modules that the commands name.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ecd.lab.assist import assist
from ecd.lab.capacity import capacity
from ecd.lab.gateway import gateway
from ecd.lab.host import describe_machine, memory_gib, versions
from ecd.lab.options import (
    FILE,
    MS,
    MS_ABOVE_0,
    REPEATS,
    SEED,
    SHARE,
    THREADS,
    TOKENS,
    FiniteFloatRange,
    listed,
)
from ecd.lab.overhead import overhead
from ecd.lab.pace import DRAFT_LINE_COST, pace
from ecd.lab.page import AGAINST_BEST, COLUMNS, GAIN, check_matplotlib, page, text_table
from ecd.lab.pair import WRONG, Pair, real_pair, replayed_pair
from ecd.lab.peers import peers
from ecd.lab.record import record
from ecd.lab.report import report_of
from ecd.lab.runs import USUAL_MODES, Campaign, Cell, Mode, Objective
from ecd.lab.serving import serving
from ecd.lab.stream import measure
from ecd.lab.system import REPLAY

_listed_ks = listed(click.IntRange(1, 64))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure ecd: streaming side by side with its alternatives, recorded pairs, what it costs."""


bench.add_command(record)
bench.add_command(pace)
bench.add_command(overhead)
bench.add_command(capacity)
bench.add_command(peers)
bench.add_command(serving)
bench.add_command(assist)
bench.add_command(gateway)


def _modes(context: click.Context, option: click.Parameter, value: str) -> tuple[Mode, ...]:
    try:
        return tuple(dict.fromkeys(Mode(name) for name in value.split(",")))
    except ValueError:
        raise click.BadParameter(
            f"{value!r}: the modes are {', '.join(Mode)}, with commas between them"
        ) from None


def _ks(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    """The k to try; none means that the simulation chooses."""
    return () if value == "auto" else _listed_ks(context, option, value)


@bench.command()
@click.option("--target", required=True, help="A model of `ecd models`, a GGUF file, or replay:TRACE.")
@click.option(
    "--draft", help="Likewise; with replay: the trace's own, or `wrong` for one that never is right."
)
@click.option(
    "--rtt", "rtts_ms", callback=listed(MS), default="0,20,50,100,200", show_default=True, help="In ms."
)
@click.option(
    "--modes", default=",".join(USUAL_MODES), show_default=True, callback=_modes,
    help="Also ecd-no-alternates, to see what alternates are worth.",
)  # fmt: skip
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help='JSONL of {"class", "prompt"}.  [default: ecd\'s own 24]',
)
@click.option("--max-tokens", type=TOKENS, default=64, show_default=True, help="Of each answer.")
@click.option("--repeat", type=REPEATS, default=1, show_default=True, help="Of the whole.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of order, answers, jitter.")
@click.option("--temperature", type=FiniteFloatRange(0, 100), help="0 greedy, else coupled.  [default: 0]")
@click.option(
    "--objective", type=click.Choice(["latency", "balanced", "cost"]), default="latency", show_default=True,
    help="Of mode ecd.",
)  # fmt: skip
@click.option(
    "--rounds-k", "ks", default="auto", show_default=True, callback=_ks, help="Or N[,N...]: the best."
)
@click.option("--jitter-ms", type=MS, default=0.0, help="Added each way, from 0 to this.")
@click.option("--stalls", is_flag=True, help="The links stand still for 300 ms every 5 s.")
@click.option("--cached", is_flag=True, help="Prompts are read once, before; else by every request anew.")
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Of each engine.")
@click.option("--step-ms", type=MS_ABOVE_0, help="Replay: a step of one token.")
@click.option("--step-slope", type=SHARE, help="Replay: each further token.  [default: 0.02]")
@click.option("--draft-ms", type=MS_ABOVE_0, help="Replay: one drafted token.")
@click.option(
    "--draft-line-cost",
    type=SHARE,
    help=f"Replay: each further line in a forward of the draft, as on a CPU.  [default: {DRAFT_LINE_COST}]",
)
@click.option("--pace", metavar="PROFILE", help="Replay: a measured curve of step times.")
@click.option("--json", "json_file", type=FILE, help="Write the results here.")
@click.option("--html", "html_file", type=FILE, help="Write a report with plots here.")
def stream(
    target: str,
    draft: str | None,
    rtts_ms: tuple[float, ...],
    modes: tuple[Mode, ...],
    prompts: Path | None,
    max_tokens: int,
    repeat: int,
    seed: int,
    temperature: float | None,
    objective: Objective,
    ks: tuple[int, ...],
    jitter_ms: float,
    stalls: bool,
    cached: bool,
    threads: int,
    step_ms: float | None,
    step_slope: float | None,
    draft_ms: float | None,
    draft_line_cost: float | None,
    pace: str | None,
    json_file: Path | None,
    html_file: Path | None,
) -> None:
    """Stream the same answers in every mode over emulated links, interleaved, and compare.

    cloud: no drafts; rounds: draft k and wait; wait: hints as they come, a cloud that waits for them; ecd: as
    its controller decides; ecd-no-alternates: likewise, without hints for the case that a guess is wrong.

    Intervals are 95 %, bootstrap: of repeats within each prompt, or of prompts (within each class, if all
    have several) where one was measured only once. Ctrl-C ends it early and reports what there is.
    """
    if html_file:
        check_matplotlib()
    pair = _pair(
        target,
        draft,
        prompts,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        threads=threads,
        step_ms=step_ms,
        step_slope=step_slope,
        draft_ms=draft_ms,
        draft_line_cost=draft_line_cost,
        pace=pace,
    )
    campaign = Campaign(rtts_ms, modes, ks, max_tokens, repeat, seed, objective, jitter_ms, stalls, cached)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    click.echo("starting the daemons, and a request to each edge to warm up", err=True)
    measured = measure(pair, campaign, _progress)
    report = {
        "machine": {"cpu": describe_machine(), "memory_gib": memory_gib()},
        "versions": versions(),
        "command": shlex.join(["ecd", *sys.argv[1:]]),
        "started": started,
        **report_of(measured, campaign, pair.expect, emulated=pair.emulated),
    }
    if json_file:
        json_file.write_text(json.dumps(report, ensure_ascii=False))
    click.echo(text_table(report["results"], COLUMNS[:10]))
    for name, columns in (("ratio_to_best", AGAINST_BEST), ("ratio_to_no_alternates", GAIN)):
        if lines := [line for line in report["results"] if line.get(name)]:
            click.echo(f"\n{text_table(lines, columns)}")
    click.echo(f"\nintervals: {report['intervals']}")
    if html_file:
        html_file.write_text(page(report))
    if measured.interrupted or report["failed"] or report["differing"]:
        click.echo(
            f"{len(measured.runs)} of {measured.planned} requests made, {report['failed']} failed; "
            f"{report['differing']} of {report['answers']} answers differ from the most common to the prompt",
            err=True,
        )


def _progress(cells: Sequence[Cell]) -> Any:
    return click.progressbar(cells, label="requests", show_pos=True, file=sys.stderr)


def _pair(
    target: str,
    draft: str | None,
    prompts: Path | None,
    *,
    max_tokens: int,
    temperature: float | None,
    seed: int,
    threads: int,
    step_ms: float | None,
    step_slope: float | None,
    draft_ms: float | None,
    draft_line_cost: float | None,
    pace: str | None,
) -> Pair:
    """The models that the options name. Raises UsageError for options that do not go together."""
    if not target.startswith(REPLAY):
        of_replay = {
            "--step-ms": step_ms,
            "--step-slope": step_slope,
            "--draft-ms": draft_ms,
            "--draft-line-cost": draft_line_cost,
            "--pace": pace,
        }
        given = [name for name, value in of_replay.items() if value is not None]
        if given:
            raise click.UsageError(f"{', '.join(given)}: only with --target replay:TRACE")
        if draft is None:
            raise click.UsageError("--draft is missing: the model that guesses")
        return real_pair(target, draft, prompts, temperature=temperature or 0.0, seed=seed, threads=threads)
    if draft not in (None, WRONG):
        raise click.UsageError("with --target replay:TRACE the draft is in the trace; --draft may be `wrong`")
    if temperature is not None:
        raise click.UsageError("--temperature: with --target replay:TRACE it is the trace's own")
    if pace and (step_ms or step_slope is not None):
        raise click.UsageError("--pace says how long steps take; leave out --step-ms and --step-slope")
    return replayed_pair(
        target.removeprefix(REPLAY),
        prompts,
        max_tokens=max_tokens,
        step_ms=step_ms,
        step_slope=0.02 if step_slope is None else step_slope,
        draft_ms=draft_ms,
        draft_line_cost=DRAFT_LINE_COST if draft_line_cost is None else draft_line_cost,
        pace=pace,
        always_wrong=draft == WRONG,
    )
