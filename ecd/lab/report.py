"""From the runs of a streaming benchmark to its results, as `--json` has them.

Owns the statistics and the names of the JSON. Pure: knows no process, no file and no plot.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecd.lab.bootstrap import Amounts, Interval, describe, ratio_interval
from ecd.lab.expect import Expectation
from ecd.lab.runs import ALL, OURS, Campaign, Measured, Mode, Run, Variant

RATIOS = ("ratio_to_cloud", "ratio_to_best", "ratio_to_no_alternates")

Expect = Callable[[float, Sequence[Run], Mapping[str, Any]], Expectation | None]


def report_of(measured: Measured, campaign: Campaign, expect: Expect, *, emulated: bool) -> dict[str, Any]:
    """All of the report that follows from the runs.

    `expect` gives the simulation's expectation for an RTT, from the runs of a class there and the edge's
    conditions.
    """
    runs = measured.runs
    different, answers = differing(runs)
    lines = [line | {"emulated": emulated} for line in results(measured, campaign, expect)]
    resampled = {ratio["resampled"] for line in lines for name in RATIOS if (ratio := line.get(name))}
    return {
        "emulated": emulated,
        "interrupted": measured.interrupted,
        "planned": measured.planned,
        "failed": sum(run.error is not None for run in runs),
        "differing": different,
        "answers": answers,
        "intervals": describe(resampled),
        "conditions": {f"{rtt_ms:g}": conditions for rtt_ms, conditions in measured.conditions.items()},
        "results": lines,
        "runs": [run_to_map(run) for run in runs],
    }


def results(measured: Measured, campaign: Campaign, expect: Expect) -> list[dict[str, Any]]:
    """One map per RTT, class and mode; rounds with the k that was fastest over all prompts at that RTT.

    Failed runs are counted and else left out.
    """
    runs = measured.runs
    kinds = [ALL, *sorted({run.cell.kind for run in runs})]
    shape = (
        1 + max((run.cell.prompt for run in runs), default=0),
        1 + max((run.cell.repeat for run in runs), default=0),
    )
    classes = np.zeros(shape[0], np.intp)
    for run in runs:
        classes[run.cell.prompt] = kinds.index(run.cell.kind)
    lines = []
    for rtt_ms in sorted({run.cell.rtt_ms for run in runs}):
        here = [run for run in runs if run.cell.rtt_ms == rtt_ms]
        variants = _fastest(here)
        for kind in kinds:
            of_kind = [run for run in here if kind in (ALL, run.cell.kind)]
            expectation = expect(
                rtt_ms,
                [run for run in of_kind if run.error is None],
                measured.conditions.get(rtt_ms, {}),
            )
            amounts = {variant: _amounts(_of(variant, of_kind), shape, classes) for variant in variants}
            lines += [
                {"rtt_ms": rtt_ms, "class": kind} | _line(variant, of_kind, amounts, campaign, expectation)
                for variant in variants
            ]
    return lines


def differing(runs: Sequence[Run]) -> tuple[int, int]:
    """How many answers differ from the most common one to the same prompt, and how many there are."""
    by_prompt: dict[int, Counter[tuple[int, ...]]] = {}
    for run in runs:
        if run.error is None:
            by_prompt.setdefault(run.cell.prompt, Counter())[run.ids] += 1
    answers = sum(counts.total() for counts in by_prompt.values())
    return answers - sum(max(counts.values()) for counts in by_prompt.values()), answers


def run_to_map(run: Run) -> dict[str, Any]:
    """A single run as JSON, flat."""
    cell, fields = run.cell, asdict(run)
    del fields["cell"]
    return {
        "mode": cell.variant.mode,
        "k": cell.variant.k,
        "rtt_ms": cell.rtt_ms,
        "class": cell.kind,
        "prompt": cell.prompt,
        "repeat": cell.repeat,
        "tokens_per_s": run.tokens_per_s,
        **fields,
    }


def _fastest(runs: Sequence[Run]) -> list[Variant]:
    """The variants of one RTT, each mode once, in the order of the modes."""

    asked_for = sorted({run.cell.variant for run in runs}, key=lambda v: (list(Mode).index(v.mode), v.k or 0))
    groups = itertools.groupby(asked_for, key=lambda v: v.mode)
    return [max(group, key=lambda v: _rate(_of(v, runs))) for _, group in groups]


def _of(variant: Variant, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.cell.variant == variant and run.error is None]


def _amounts(runs: Sequence[Run], shape: tuple[int, int], classes: NDArray[np.intp]) -> Amounts:
    work = np.full(shape, np.nan)
    time = work.copy()
    for run in runs:
        work[run.cell.prompt, run.cell.repeat] = run.decoded
        time[run.cell.prompt, run.cell.repeat] = run.decode_ms
    return Amounts(work, time, classes)


def _line(
    variant: Variant,
    runs: Sequence[Run],
    amounts: Mapping[Variant, Amounts],
    campaign: Campaign,
    expectation: Expectation | None,
) -> dict[str, Any]:
    made = _of(variant, runs)
    cloud = next((v for v in amounts if v.mode is Mode.CLOUD), None)
    to_cloud = None if cloud is None else ratio_interval(amounts[variant], amounts[cloud], campaign.seed)
    prediction = expectation.of(variant, campaign.objective) if expectation else None
    rates = [run.tokens_per_s for run in made if run.decode_ms]
    gaps_ms = [gap for run in made for gap in run.gaps_ms]
    total: Counter[str] = Counter()
    for run in made:
        total.update(
            tokens=len(run.ids), forwards=run.forwards, drafted=run.drafted, verified=run.verified,
            accepted=run.accepted, settled=run.settled, right=run.right, up=run.bytes_up, down=run.bytes_down,
            packets=run.packet_bytes,
        )  # fmt: skip
    line = {
        "mode": variant.mode,
        "k": variant.k,
        "runs": len(made),
        "failed": sum(run.cell.variant == variant and run.error is not None for run in runs),
        "tokens_per_s": _spread(rates),
        "ratio_to_cloud": _interval(to_cloud),
        "predicted_ratio": None if prediction is None else prediction.ratio,
        "predicted_forwards_per_token": None if prediction is None else prediction.forwards_per_token,
        "ttft_ms": median(run.ttft_ms for run in made) if made else None,
        "itl_ms": _percentiles(gaps_ms),
        "forwards_per_token": _share(total["forwards"], total["tokens"]),
        "acceptance_rate": _share(total["accepted"], total["verified"]),
        "guesses_right": _share(total["right"], total["settled"]),
        "wasted_drafts_per_token": _share(total["drafted"] - total["accepted"], total["tokens"]),
        "bytes_up_per_token": _share(total["up"], total["tokens"]),
        "bytes_down_per_token": _share(total["down"], total["tokens"]),
        "packet_bytes_per_token": _share(total["packets"], total["tokens"]),
        "cpu_s": {
            "edge": sum(run.cpu_edge_s for run in made),
            "cloud": sum(run.cpu_cloud_s for run in made),
        },
    }
    others = [v for v in amounts if v.mode not in OURS and _of(v, runs)]
    if variant.mode in OURS and others:
        best = max(others, key=lambda v: _rate(_of(v, runs)))
        line["ratio_to_best"] = _interval(ratio_interval(amounts[variant], amounts[best], campaign.seed))
        line["best_other"] = best.mode
    without = next((v for v in amounts if v.mode is Mode.ECD_NO_ALTERNATES), None)
    if variant.mode is Mode.ECD and without:
        gain = ratio_interval(amounts[variant], amounts[without], campaign.seed)
        line["ratio_to_no_alternates"] = _interval(gain)
    return line


def _rate(made: Sequence[Run]) -> float:
    time_ms = sum(run.decode_ms for run in made)
    return sum(run.decoded for run in made) / time_ms if time_ms else 0.0


def _share(part: float, of: float) -> float | None:
    return part / of if of else None


def _spread(rates: Sequence[float]) -> dict[str, float] | None:
    return {"median": median(rates), "min": min(rates), "max": max(rates)} if rates else None


def _percentiles(gaps_ms: Sequence[float]) -> dict[str, float] | None:
    if not gaps_ms:
        return None
    p50, p99 = np.percentile(gaps_ms, (50, 99))
    return {"p50": float(p50), "p99": float(p99)}


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else asdict(interval)
