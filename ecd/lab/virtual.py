"""`ecd bench virtual`: what each mode gives in virtual time, on a recorded pair of models.

Owns the order of the answers and the table. How an answer comes to be is the edge's and the cloud's own code,
put together in `exchange`: no daemon, no clock and no other work on the machine has a part in it.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import assert_never

import click

from ecd.cloud.depth import Depth
from ecd.cloud.session import Vocabulary
from ecd.edge.acceptance import Acceptance
from ecd.edge.combined_drafter import CombinedDrafter
from ecd.edge.lookup_drafter import LookupDrafter
from ecd.edge.meter import Meter
from ecd.edge.pacing import Objective
from ecd.edge.request import Request
from ecd.edge.survival import EDGE_MEMORY, Survival
from ecd.lab.exchange import BRANCHES, SESSION_TOKENS, Circumstances, Exchange
from ecd.lab.expect import right_guesses
from ecd.lab.options import FILE, MS, MS_ABOVE_0, SHARE, TOKENS, FiniteFloatRange, listed
from ecd.lab.pace import DRAFT_LINE_COST, Line
from ecd.lab.replay import ReplayDrafter, ReplayModel, ReplayVerifier
from ecd.lab.rows import publish_emulated
from ecd.lab.runs import Mode, Variant
from ecd.lab.shipped import find_file
from ecd.lab.simulate import WAIT_AHEAD, Regime, best_rounds
from ecd.lab.trace import Recording, Trace, load_trace
from ecd.wire.messages import ENDLESS_US

# What the machines wait for is said by the exchange; the recorded engines take no time of their own.
AT_ONCE = Line(0.0, 0.0)
HEADER = (
    f"{'RTT ms':>6}  {'mode':<18} {'over cloud (least - most)':<26} {'forwards per token':<22} "
    "over no alternates"
)


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the seeds: the median, the least and the most."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value per seed."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.min:.3f} - {self.max:.3f})"


@dataclass(frozen=True, slots=True)
class Sums:
    """All answers of one seed: tokens behind the first ones, the seconds that these took, and forwards."""

    decoded: int
    seconds: float
    tokens: int
    forwards: int

    @property
    def tokens_per_s(self) -> float:
        return self.decoded / self.seconds


@dataclass(frozen=True, slots=True)
class Row:
    """A mode at one RTT. Rates are tokens/s over those of `cloud`, and of `ecd` also without alternates."""

    rtt_ms: float
    mode: Mode
    k: int | None
    ratio_to_cloud: Spread
    forwards_per_token: Spread
    ratio_to_no_alternates: Spread | None


def answer_all(
    trace: Trace, variant: Variant, around: Circumstances, objective: Objective, max_tokens: int
) -> Sums:
    """The trace's answers one after the other, in an order by the seed, at an edge that is new to it all."""
    acceptance, meter, survival = Acceptance(), Meter(), Survival(EDGE_MEMORY)
    depth, model = Depth(around.max_verify), ReplayModel(trace)
    replayed = ReplayDrafter(trace, slots=1, context_tokens=SESSION_TOKENS, draft_ms=0.0)
    lookup = LookupDrafter(slots=1, branches=BRANCHES, slot_tokens=SESSION_TOKENS)
    drafter = CombinedDrafter(replayed, lookup, acceptance, meter)
    verifier = ReplayVerifier(trace, sessions=1, context_tokens=SESSION_TOKENS, step_time=AT_ONCE)
    decoded, seconds, tokens, forwards = 0, 0.0, 0, 0
    for recording in random.Random(around.seed).sample(trace.recordings, len(trace.recordings)):
        made = Exchange(
            request_of(recording, variant, objective, max_tokens),
            around,
            drafter,
            verifier,
            Vocabulary(trace.n_vocab, model.eog, model.piece),
            meter=meter,
            acceptance=acceptance,
            survival=survival,
            depth=depth,
        ).run()
        drafter.release(0)
        verifier.forget(made.stream)
        behind = sum(at > made.tokens_at[0] for at in made.tokens_at)
        decoded += behind
        seconds += made.tokens_at[-1] - made.tokens_at[0]
        tokens += len(made.tokens_at)
        forwards += made.forwards
    return Sums(decoded, seconds, tokens, forwards)


def request_of(recording: Recording, variant: Variant, objective: Objective, max_tokens: int) -> Request:
    """A recorded prompt, asked in a mode."""
    asked = Request(recording.prompt_ids, recording.sampling, max_tokens, objective=objective)
    match variant.mode:
        case Mode.CLOUD:
            return replace(asked, draft=False)
        case Mode.ROUNDS:
            return replace(asked, patience_us=ENDLESS_US, hint_tokens=variant.k, ahead=variant.k)
        case Mode.WAIT:
            return replace(asked, patience_us=ENDLESS_US, hint_tokens=1, ahead=WAIT_AHEAD)
        case Mode.ECD:
            return asked
        case Mode.ECD_NO_ALTERNATES:
            return replace(asked, alternates=False)
        case unreachable:
            assert_never(unreachable)


def rows_at(
    trace: Trace, around: Circumstances, objective: Objective, max_tokens: int, seeds: int
) -> Iterator[Row]:
    """Every mode in these circumstances, rounds with the k that the simulation predicts best."""
    regime = Regime(1000 * around.rtt_s, 1000 * around.draft_s, 1000 * around.step_s, around.slope)
    right = [right_guesses(recording, max_tokens, False) for recording in trace.recordings]
    k = best_rounds(right, regime).setting.gather
    variants = [Variant(mode, k if mode is Mode.ROUNDS else None) for mode in Mode]
    made = {
        variant: [
            answer_all(trace, variant, replace(around, seed=seed), objective, max_tokens)
            for seed in range(seeds)
        ]
        for variant in variants
    }

    def ratio(ours: Variant, theirs: Variant) -> Spread:
        pairs = zip(made[ours], made[theirs], strict=True)
        return Spread.of([one.tokens_per_s / other.tokens_per_s for one, other in pairs])

    for variant in variants:
        yield Row(
            regime.rtt_ms,
            variant.mode,
            variant.k,
            ratio(variant, Variant(Mode.CLOUD)),
            Spread.of([sums.forwards / sums.tokens for sums in made[variant]]),
            ratio(variant, Variant(Mode.ECD_NO_ALTERNATES)) if variant.mode is Mode.ECD else None,
        )


def line_of(row: Row) -> str:
    """A row for people."""
    mode = f"{row.mode} of {row.k}" if row.k else str(row.mode)
    gain = row.ratio_to_no_alternates or ""
    line = f"{row.rtt_ms:>6g}  {mode:<18} {row.ratio_to_cloud!s:<26} {row.forwards_per_token!s:<22} {gain}"
    return line.rstrip()


@click.command()
@click.option(
    "--trace", "trace_name", default="qwen-coder-greedy", show_default=True,
    help="A file of `ecd bench record`, or one of ecd's.",
)  # fmt: skip
@click.option(
    "--rtt", "rtts_ms", callback=listed(MS), default="0,20,50,100,200", show_default=True, help="In ms."
)
@click.option("--step-ms", type=MS_ABOVE_0, default=30.0, show_default=True, help="A step of one token.")
@click.option(
    "--step-slope", type=SHARE, default=0.02, show_default=True, help="Each further token, of --step-ms."
)
@click.option("--draft-ms", type=MS_ABOVE_0, default=5.0, show_default=True, help="One drafted token.")
@click.option(
    "--draft-line-cost", type=SHARE, default=DRAFT_LINE_COST, show_default=True,
    help="Each further line in a forward of the draft, of --draft-ms.",
)  # fmt: skip
@click.option(
    "--jitter", type=FiniteFloatRange(0, 1), default=0.05, show_default=True,
    help="All times vary by up to this share.",
)  # fmt: skip
@click.option(
    "--objective", type=click.Choice([str(each) for each in Objective]), default="latency",
    show_default=True, help="Of mode ecd.",
)  # fmt: skip
@click.option("--max-tokens", type=TOKENS, default=64, show_default=True, help="Of each answer.")
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Of order and jitter."
)
@click.option("--json", "out", type=FILE, help="Write the rows here.")
def virtual(
    trace_name: str,
    rtts_ms: tuple[float, ...],
    step_ms: float,
    step_slope: float,
    draft_ms: float,
    draft_line_cost: float,
    jitter: float,
    objective: str,
    max_tokens: int,
    seeds: int,
    out: Path | None,
) -> None:
    """Compare the modes in virtual time: the code of both ends on a trace, without daemons or waiting.

    What the daemons and the machine add is left out: for that there is `ecd bench stream`. Spreads are of the
    seeds.
    """
    trace = load_trace(find_file("traces", trace_name))
    around = Circumstances(
        jitter=jitter,
        draft_s=draft_ms / 1000,
        step_s=step_ms / 1000,
        slope=step_slope,
        line_cost=draft_line_cost,
    )
    rows = (
        row
        for rtt_ms in rtts_ms
        for row in rows_at(
            trace, replace(around, rtt_s=rtt_ms / 1000), Objective(objective), max_tokens, seeds
        )
    )
    publish_emulated(
        rows,
        HEADER,
        line_of,
        out,
        trace=trace_name,
        step_ms=step_ms,
        step_slope=step_slope,
        draft_ms=draft_ms,
        draft_line_cost=draft_line_cost,
        jitter=jitter,
        objective=objective,
        max_tokens=max_tokens,
        seeds=seeds,
    )
