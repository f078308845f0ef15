"""`ecd calibrate`: how a draft model's confidence relates to a target's choices, by strategy.

Owns the order of work, the report and its picture. The target answers alone, as the oracle does; the draft
reads the same text and guesses every token of it. What is reckoned from that is in `calibration`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ecd.edge.confidence import PURE, Confidence, Strategy
from ecd.lab.calibration import (
    TEMPERATURES,
    Bools,
    Floats,
    area_of_risk,
    calibration_error,
    fitted,
    reliability,
    risk_coverage,
    tempered,
    thinned,
    threshold_for,
)
from ecd.lab.host import describe_machine, versions
from ecd.lab.options import FILE, THREADS, TOKENS, FiniteFloatRange
from ecd.lab.page import check_matplotlib
from ecd.lab.shipped import find_file
from ecd.lab.trace import Prompt, load_prompts
from ecd.prompt import prompt_tokens
from ecd.sampling import Sampling, guess

# llama.cpp is imported by what runs a model, so that `ecd --help` answers at once.
if TYPE_CHECKING:
    from ecd.engine.llama import LlamaModel

ROWS = 32


@dataclass(frozen=True, slots=True)
class Observed:
    """All tokens of all answers: confidence by strategy float64[n], whether the draft's guess was the
    target's token, losses and largest probabilities at each temperature float64[n, temperatures], and the
    half of the prompts that each is of.
    """

    confidence: dict[Strategy, Floats]
    agreed: Bools
    losses: Floats
    largest: Floats
    half: Bools


def observe(
    target: "LlamaModel",
    draft: "LlamaModel",
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    max_tokens: int,
    threads: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Observed:
    """Runs both models over all prompts; `on_progress` gets how many are done."""
    from ecd.oracle import generate

    told: dict[Strategy, list[float]] = {strategy: [] for strategy in PURE}
    agreed: list[bool] = []
    half: list[bool] = []
    at_temperatures: list[tuple[Floats, Floats]] = []
    for number, prompt in enumerate(prompts):
        ids = prompt_tokens(target, prompt.text, chat=True)
        answer = generate(target, ids, sampling, max_tokens=max_tokens, stop=(), threads=threads).token_ids
        tokens = [*ids, *answer]
        for position, row in zip(
            range(len(ids), len(tokens)), _rows(draft, tokens, len(ids), threads), strict=True
        ):
            made = guess(row, sampling, position, tokens[:position], len(ids))
            for strategy, value in Confidence().all_of(row).items():
                told[strategy].append(value)
            agreed.append(made.token == tokens[position])
            half.append(number % 2 == 0)
            at_temperatures.append(tempered(row, tokens[position]))
        on_progress(number + 1)
    return Observed(
        {strategy: np.array(values) for strategy, values in told.items()},
        np.array(agreed),
        np.array([losses for losses, _ in at_temperatures]),
        np.array([largest for _, largest in at_temperatures]),
        np.array(half),
    )


def _rows(draft: "LlamaModel", tokens: Sequence[int], prompt_len: int, threads: int) -> Any:
    """The draft's logits for each position behind the prompt, one after another."""
    from ecd.engine.llama import LlamaContext, Segment

    context = LlamaContext(draft, n_ctx=len(tokens), n_seq=1, n_batch=ROWS, threads=threads, exact=False)
    try:
        for start in range(0, len(tokens) - 1, ROWS):
            end = min(start + ROWS, len(tokens) - 1)
            wanted = max(0, end - max(start, prompt_len - 1))
            (rows,) = context.decode([Segment(0, start, tokens[start:end], wanted)])
            yield from rows
    finally:
        context.close()


def calibration_report(
    observed: Observed, weights: dict[Strategy, float], agreement: float
) -> dict[str, Any]:
    """What follows from it, for each strategy.

    The temperature of a token is fitted on the prompts of the other half, so that no token has a part in its
    own; the one that is told is fitted on all.
    """
    # A single prompt has no other half.
    others = [observed.losses[observed.half != half] for half in (False, True)]
    halves = [fitted(losses if len(losses) else observed.losses) for losses in others]
    at = np.where(observed.half, halves[1], halves[0])
    confidence = observed.confidence | {
        Strategy.TEMPERATURE: observed.largest[np.arange(len(at)), at],
    }
    total = sum(weights.values())
    confidence[Strategy.ENSEMBLE] = sum(
        (confidence[name] * (weight / total) for name, weight in weights.items()), np.zeros(len(at))
    )
    best = fitted(observed.losses)
    plain = int(np.abs(TEMPERATURES - 1).argmin())
    return {
        "tokens": len(observed.agreed),
        "agreement": float(observed.agreed.mean()),
        "temperature": {
            "fitted": round(float(TEMPERATURES[best]), 4),
            "loss_at_1": float(observed.losses[:, plain].mean()),
            "loss_fitted": float(observed.losses[:, best].mean()),
        },
        "strategies": {
            str(strategy): _strategy_report(np.clip(values, 0.0, 1.0), observed.agreed, agreement)
            for strategy, values in confidence.items()
        },
    }


def _strategy_report(confidence: Floats, agreed: Bools, agreement: float) -> dict[str, Any]:
    bins, curve = reliability(confidence, agreed), risk_coverage(confidence, agreed)
    chosen = threshold_for(curve, agreement)
    return {
        "calibration_error": calibration_error(bins),
        "area_of_risk": area_of_risk(curve),
        "reliability": [asdict(each) for each in bins],
        "risk_coverage": [asdict(point) for point in thinned(curve)],
        "for_agreement": {"agreement": agreement, "kept": None if chosen is None else asdict(chosen)},
    }


def draw(report: dict[str, Any], path: Path) -> None:
    """The picture: reliability at the left, agreement over coverage at the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    for name, told in report["strategies"].items():
        bins, curve = told["reliability"], told["risk_coverage"]
        label = f"{name}, ECE {told['calibration_error']:.3f}"
        left.plot([b["confidence"] for b in bins], [b["agreement"] for b in bins], marker="o", label=label)
        right.plot([p["coverage"] for p in curve], [p["agreement"] for p in curve], label=name)
    left.set(xlabel="confidence", ylabel="share that agrees with the target", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="share of tokens kept at the edge", ylabel="agreement of those kept", xlim=(0, 1))
    right.axhline(report["agreement"], color="grey", linestyle=":", linewidth=1)
    left.legend(fontsize="small")
    right.legend(fontsize="small")
    figure.suptitle(f"{report['draft']} for {report['target']}, {report['tokens']} tokens")
    figure.savefig(path, dpi=120)


@click.command()
@click.option("--target", required=True, help="Path of a GGUF file, or a name from `ecd models list`.")
@click.option("--draft", required=True, help="Likewise; of the same vocabulary.")
@click.option(
    "--prompts",
    default="mixed",
    show_default=True,
    help='JSONL of {"class", "prompt"}: a file, or one of ecd\'s.',
)
@click.option("--max-tokens", type=TOKENS, default=64, show_default=True, help="Of each answer.")
@click.option(
    "--temperature",
    type=FiniteFloatRange(0, 100),
    default=0.0,
    show_default=True,
    help="0 greedy, else coupled.",
)
@click.option(
    "--seed", type=click.IntRange(0, (1 << 64) - 1), default=0, show_default=True, help="Of all answers."
)
@click.option(
    "--agreement",
    type=FiniteFloatRange(0, 1),
    default=0.95,
    show_default=True,
    help="Tell the threshold from which on so many agree.",
)
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Of each engine.")
@click.option(
    "--out",
    type=FILE,
    default="calibration.json",
    show_default=True,
    help="The report; its picture lies beside it.",
)
def calibrate(
    target: str,
    draft: str,
    prompts: str,
    max_tokens: int,
    temperature: float,
    seed: int,
    agreement: float,
    threads: int,
    out: Path,
) -> None:
    """Find out how far a draft model's confidence can be trusted.

    The target answers the prompts, and the draft guesses every token of these answers. The report has for
    each strategy of confidence a reliability diagram, the expected calibration error, and the share of tokens
    that a threshold keeps at the edge against how many of those agree with the target; also the temperature
    that fits best. docs/CONFIDENCE.md explains how to use it.

    \b
    Example:
      ecd calibrate --target smollm2-135m --draft smollm2-135m-draft
    """
    check_matplotlib("ecd calibrate")
    picture = out.with_suffix(".png")
    if out == picture:
        raise click.UsageError(f"--out {out} is where the picture goes; name the report *.json")
    from ecd.engine.llama import LlamaModel
    from ecd.models.forms import gguf_file

    wanted = load_prompts(find_file("prompts", prompts))
    sampling = Sampling.of("exact", temperature, seed=seed)
    with click.progressbar(length=len(wanted), label="calibrating", show_pos=True) as bar:
        observed = observe(
            LlamaModel(gguf_file(target)),
            LlamaModel(gguf_file(draft)),
            wanted,
            sampling,
            max_tokens=max_tokens,
            threads=threads,
            on_progress=lambda done: bar.update(done - bar.pos),
        )
    report = {
        "target": target,
        "draft": draft,
        "prompts": len(wanted),
        "max_tokens": max_tokens,
        "sampling": sampling.to_map(),
        **calibration_report(observed, dict(Confidence().weights), agreement),
        "machine": describe_machine(),
        "versions": versions(),
        "date": date.today().isoformat(),
    }
    out.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, picture)
    click.echo(summary(report))
    click.echo(f"{out}, {picture}")


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    lines = [
        f"{report['tokens']} tokens, {report['agreement']:.1%} agree; fitted temperature "
        f"{report['temperature']['fitted']:g}"
    ]
    for name, told in report["strategies"].items():
        kept = told["for_agreement"]["kept"]
        of = told["for_agreement"]["agreement"]
        keeps = "none" if kept is None else f"{kept['coverage']:.0%} from {kept['threshold']:.4f} on"
        lines.append(
            f"{name:<12} ECE {told['calibration_error']:.3f}, area of risk {told['area_of_risk']:.4f}, "
            f"kept at {of:g}: {keeps}"
        )
    return "\n".join(lines)
