"""`ecd ablate`: the command line, and the files that it writes.

Owns what is asked for and the order of work. What is measured and how it is judged is in the modules beside.
"""

import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ecd.errors import BadRequest, DaemonError, EcdError
from ecd.lab.ablation.conditions import Condition, Settings, built_in, conditions_of, read_file
from ecd.lab.ablation.conversations import Conversation, digest, load_conversations
from ecd.lab.ablation.judging import Target
from ecd.lab.ablation.page import page, pictures, text_table
from ecd.lab.ablation.records import Records, left, open_records, schedule
from ecd.lab.ablation.running import Agreed, converse, running_pairs
from ecd.lab.ablation.summary import experiments_of
from ecd.lab.bootstrap import Resampled, describe
from ecd.lab.host import describe_machine, versions
from ecd.lab.interrupt import interruptible
from ecd.lab.options import MS, REPEATS, SEED, TOKENS, FiniteFloatRange, listed
from ecd.lab.page import check_matplotlib
from ecd.lab.shipped import find_file

MAX_TOKENS = 128
NO_THRESHOLDS = "none"
_listed_thresholds = listed(FiniteFloatRange(0, 1))


def _thresholds(context: click.Context, option: click.Parameter, value: str) -> tuple[float, ...]:
    return () if value == NO_THRESHOLDS else tuple(_listed_thresholds(context, option, value))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", "file", type=click.Path(path_type=Path),
    help="YAML with `cloud`, `edge`, `request` and `experiments.ablations`.",
)  # fmt: skip
@click.option("--target", help="Without --config: the target, a GGUF file or a model's name.")
@click.option("--draft", help="Likewise, the draft model.")
@click.option(
    "--prompts", default="tasks", show_default=True,
    help="JSONL of prompts and conversations: a file, or one of ecd's.",
)  # fmt: skip
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path),
    help="The folder for reports and plots, and what a run goes on from.",
)  # fmt: skip
@click.option("--repeat", type=REPEATS, default=1, show_default=True, help="Of the whole.")
@click.option("--max-tokens", type=TOKENS, help=f"Of each answer.  [default: --config's, {MAX_TOKENS}]")
@click.option(
    "--thresholds", default="0.5,0.7,0.8,0.9,0.95,0.99", show_default=True, callback=_thresholds,
    metavar="X[,X...]|none", help="Also mode `confident` at each of these.",
)  # fmt: skip
@click.option("--rtt-ms", type=MS, default=20.0, show_default=True, help="Of the emulated link.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the order.")
def ablate(
    file: Path | None,
    target: str | None,
    draft: str | None,
    prompts: str,
    out: Path,
    repeat: int,
    max_tokens: int | None,
    thresholds: tuple[float, ...],
    rtt_ms: float,
    seed: int,
) -> None:
    """Find out what each part contributes, by leaving it out.

    Real daemons answer the same conversations under every condition, interleaved: baseline, no_confidence,
    no_draft_verify, no_kv_cache, edge_only, cloud_only, mode confident at thresholds, and those of
    `experiments.ablations`. docs/ABLATIONS.md explains them and the report. The same command goes on where an
    earlier one with this --out was interrupted.

    \b
    Examples:
      ecd ablate --target smollm2-135m --draft smollm2-135m-draft --out ablation
      ecd ablate --config ablation.yaml --prompts mine.jsonl --out ablation
    """
    check_matplotlib("ecd ablate")
    base, conditions = _conditions(file, target, draft, max_tokens, thresholds)
    prompts_file = find_file("prompts", prompts)
    conversations = load_conversations(prompts_file)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BadRequest(f"cannot make the folder {out}: {e.strerror}; choose another --out") from None
    plan = {
        "conditions": {condition.name: condition.resolved for condition in conditions},
        "prompts": digest(conversations),
        "rtt_ms": rtt_ms,
        "seed": seed,
        "versions": versions(),
        "machine": describe_machine(),
    }
    with open_records(out / "rows.jsonl", plan) as records:
        _have_all(records, conditions, conversations, _agreed(base["cloud"]), repeat, rtt_ms, seed)
        had = [exchange for exchange in records.exchanges if exchange.asked.repeat < repeat]
    experiments = experiments_of(conditions, conversations, had, seed)
    report = {
        "target": str(base["cloud"].get("model")),
        "draft": str(base["edge"].get("model")),
        "machine": describe_machine(),
        "versions": versions(),
        "command": shlex.join(["ecd", *sys.argv[1:]]),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "rtt_ms": rtt_ms,
        "seed": seed,
        "prompts_file": str(prompts),
        "conversations": len(conversations),
        "repeats": repeat,
        "failed": sum(answer.error is not None for exchange in had for answer in exchange.answers),
        "intervals": describe(_resampled(experiments)),
        "experiments": experiments,
    }
    _write(out, report)
    click.echo(text_table(experiments))
    click.echo(f"\nintervals in the report: {report['intervals']}\n{out / 'report.html'}")


def _conditions(
    file: Path | None,
    target: str | None,
    draft: str | None,
    max_tokens: int | None,
    thresholds: Sequence[float],
) -> tuple[dict[str, Settings], list[Condition]]:
    """The settings that all have, and the conditions. Raises UsageError and ConfigError."""
    if file is None:
        if target is None or draft is None:
            raise click.UsageError("give --target and --draft, or --config with both daemons' settings")
        base: dict[str, Settings] = {"cloud": {"model": target}, "edge": {"model": draft}, "request": {}}
        further, where = [], ""
    else:
        if target is not None or draft is not None:
            raise click.UsageError("--target and --draft: with --config the models stand there")
        read = read_file(file)
        base = {"cloud": dict(read.cloud), "edge": dict(read.edge), "request": dict(read.request)}
        further, where = read.experiments.ablations, f" in {file}"
    for role in ("cloud", "edge"):
        # Cells are taken at the start, and there is a pair of daemons for each condition.
        base[role].setdefault("sessions", 1)
    request = base["request"]
    request.setdefault("max_tokens", MAX_TOKENS)
    # Drawn anew for each request, texts could not be compared.
    request.setdefault("seed", 0)
    if max_tokens is not None:
        request["max_tokens"] = max_tokens
    engine = str(base["cloud"].get("engine", "llama"))
    ours = built_in(engine, thresholds)
    return base, conditions_of(base, ours, further, where)


def _agreed(cloud: Settings) -> Agreed:
    """Asks the target alone. vLLM's is not asked: its numbers are not llama.cpp's."""
    if cloud.get("engine", "llama") != "llama":
        return lambda result: None
    from ecd.engine.llama import LlamaModel
    from ecd.models.forms import gguf_file

    model = gguf_file(str(cloud["model"]))
    return Target(lambda: LlamaModel(model), int(cloud.get("threads", 1))).agreed


def _have_all(
    records: Records,
    conditions: Sequence[Condition],
    conversations: Sequence[Conversation],
    agreed: Agreed,
    repeats: int,
    rtt_ms: float,
    seed: int,
) -> None:
    """Has all conversations that are not in the records yet.

    One that Ctrl-C, SIGTERM or the end of a daemon (DaemonError) breaks off is not kept, and had again by the
    next run.
    """
    names = [condition.name for condition in conditions]
    orders = [
        left(schedule(names, len(conversations), number, seed), records.exchanges)
        for number in range(repeats)
    ]
    missing = sum(map(len, orders))
    total = repeats * len(names) * len(conversations)
    label = "conversations" if missing == total else f"{total - missing} of {total} there already"
    try:
        with (
            interruptible(),
            click.progressbar(length=missing, label=label, show_pos=True, file=sys.stderr) as bar,
        ):
            for order in filter(None, orders):
                asked_for = {asked.condition for asked in order}
                wanted = [condition for condition in conditions if condition.name in asked_for]
                with (
                    tempfile.TemporaryDirectory(prefix="ecd-ablate-") as folder,
                    running_pairs(Path(folder), wanted, rtt_ms) as pairs,
                ):
                    for asked in order:
                        conversation = conversations[asked.conversation]
                        records.add(converse(pairs[asked.condition], asked, conversation, agreed))
                        bar.update(1)
    except (KeyboardInterrupt, DaemonError):
        there = total - sum(len(left(order, records.exchanges)) for order in orders)
        click.echo(
            f"{there} of {total} conversations are in {records.file.name!s}; the same command goes on from "
            "there",
            err=True,
        )
        raise


def _resampled(experiments: Sequence[Mapping[str, Any]]) -> set[Resampled]:
    return {
        interval["resampled"]
        for experiment in experiments
        for interval in experiment["intervals"].values()
        if interval
    }


def _write(out: Path, report: dict[str, Any]) -> None:
    """The report, its page and its plots."""
    drawn = pictures(report["experiments"])
    contents: dict[str, bytes] = {
        "ablation_report.json": json.dumps(report, ensure_ascii=False, indent=1).encode(),
        "report.html": page(report, drawn).encode(),
        **drawn,
    }
    try:
        for name, content in contents.items():
            (out / name).write_bytes(content)
    except OSError as e:
        raise EcdError(
            f"cannot write {e.filename}: {e.strerror}; the answers are kept, and the same command writes the "
            "report once it can"
        ) from None
