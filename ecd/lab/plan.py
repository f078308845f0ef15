"""`ecd plan`: what each way of drafting would give over a link, and whether drafting is worth it.

Owns the words. The physics is `simulate`'s, the measured conditions are a live edge's.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from ecd.edge.pacing import WORTH_IT
from ecd.errors import BadRequest
from ecd.lab.options import MS, MS_ABOVE_0, SHARE, FiniteFloatRange, listed
from ecd.lab.simulate import ROUNDS_K, Prediction, Regime, Setting, draws, predict_modes

TOKENS = 2000


@dataclass(frozen=True, slots=True)
class Colocated:
    """Speculation with the draft beside the target: its best k, and tokens/s over the target alone."""

    k: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The modes of the bench at one RTT, and the verdict in words."""

    regime: Regime
    acceptance: float
    modes: dict[str, Prediction]
    colocated: Colocated
    verdict: str


def colocated(draft_ms: float, step_ms: float, slope: float, acceptance: float) -> Colocated:
    """The best of synchronous rounds without a link, by Leviathan et al. (ICML 2023), section 3.3.

    A round of k drafts commits (1 - a^(k+1)) / (1 - a) tokens on average and costs k draft_ms and a step;
    here the step costs `slope` more for each of the k hints.
    """

    def ratio(k: int) -> float:
        committed = sum(acceptance**i for i in range(k + 1))
        return committed * step_ms / (k * draft_ms + step_ms * (1 + slope * k))

    best = max(ROUNDS_K, key=ratio)
    return Colocated(best, ratio(best))


def plan_for(regime: Regime, acceptance: float) -> Plan:
    """Simulates an answer of 2,000 tokens in each mode."""
    modes = predict_modes([draws(acceptance, TOKENS, seed=0)], regime)
    beside = colocated(regime.draft_ms, regime.step_ms, regime.slope, acceptance)
    return Plan(regime, acceptance, modes, beside, _verdict(modes, beside))


def _verdict(modes: dict[str, Prediction], beside: Colocated) -> str:
    ecd = modes["ecd"]
    others = max(("rounds", "wait"), key=lambda mode: modes[mode].ratio)
    if ecd.ratio < WORTH_IT:
        words = (
            "drafting does not pay in tokens/s here; ecd then streams from the cloud, as fast as without it"
        )
    else:
        words = (
            f"drafting is worth it: {ecd.ratio:.2f} x with {describe(ecd.setting)}, at "
            f"{ecd.forwards_per_token:.2f} target forwards per token"
        )
        if modes[others].ratio < 1:
            words += "; waiting for drafts would be slower than no drafts"
    if beside.ratio > max(ecd.ratio, WORTH_IT):
        words += f"; a draft beside the target would give more, {beside.ratio:.2f} x"
    return words


def describe(setting: Setting) -> str:
    """A setting in words."""
    if setting.ahead == 0:
        return "no drafts"
    if setting.patience_ms == 0:
        words = "a cloud that never waits"
    elif setting.patience_ms == math.inf:
        words = f"a cloud that waits for {_hints(setting.gather)}"
    else:
        words = f"a cloud that waits up to {setting.patience_ms:.0f} ms for {_hints(setting.gather)}"
    return f"{words} and verifies up to {setting.max_verify} at once"


def _hints(number: int) -> str:
    return "1 hint" if number == 1 else f"{number} hints"


@click.command()
@click.option(
    "--rtt", "rtts_ms", callback=listed(MS), metavar="MS[,MS...]", help="Round-trip times of the link."
)
@click.option("--draft-ms", type=MS_ABOVE_0, help="Per drafted token.")
@click.option("--target-ms", type=MS_ABOVE_0, help="Per step of the target.")
@click.option("--slope", type=SHARE, help="Cost of each further token in a step, of 1.")
@click.option("--acceptance", type=FiniteFloatRange(0, 1), help="Chance that a drafted token is right.")
@click.option("--socket", type=click.Path(path_type=Path), help="An edge to ask for what is not given.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    rtts_ms: tuple[float, ...] | None,
    draft_ms: float | None,
    target_ms: float | None,
    slope: float | None,
    acceptance: float | None,
    socket: Path | None,
    as_json: bool,
) -> None:
    """Say what drafting would give over a link, simulated.

    Everything can be given, or measured by a running edge that has answered some prompts.
    """
    given = {
        "--rtt": rtts_ms,
        "--draft-ms": draft_ms,
        "--target-ms": target_ms,
        "--slope": slope,
        "--acceptance": acceptance,
    }
    found = _completed(given, {} if socket is None else _conditions(socket), socket)
    plans = [
        plan_for(
            Regime(rtt_ms, found["--draft-ms"], found["--target-ms"], found["--slope"]),
            found["--acceptance"],
        )
        for rtt_ms in found["--rtt"]
    ]
    click.echo(json.dumps([to_map(p) for p in plans], indent=1) if as_json else _table(plans))


def _conditions(socket: Path) -> dict[str, Any]:
    from ecd.client import BlockingClient

    with BlockingClient(socket) as client:
        measured: dict[str, Any] = client.call("stats").get("conditions", {})
    if measured.get("rtt_ms") is not None:
        measured["rtt_ms"] = (measured["rtt_ms"],)
    return measured


def _completed(given: dict[str, Any], measured: dict[str, Any], socket: Path | None) -> dict[str, Any]:
    names = {
        "--rtt": "rtt_ms",
        "--draft-ms": "draft_ms",
        "--target-ms": "step_ms",
        "--slope": "slope",
        "--acceptance": "acceptance",
    }
    found = {flag: measured.get(name) if given[flag] is None else given[flag] for flag, name in names.items()}
    missing = ", ".join(flag for flag, number in found.items() if number is None)
    if missing and socket is None:
        raise BadRequest(f"missing: {missing}; give them, or name the --socket of an edge that measured them")
    if missing:
        raise BadRequest(
            f"the edge on {socket} has not measured these: {missing}; give them, or let it answer some "
            "prompts with drafting first"
        )
    return found


def to_map(made: Plan) -> dict[str, Any]:
    """A plan as JSON; a patience without end is null."""

    def setting(of: Setting) -> dict[str, Any]:
        return asdict(of) | {"patience_ms": None if of.patience_ms == math.inf else of.patience_ms}

    return {
        **asdict(made.regime),
        "acceptance": made.acceptance,
        "modes": {name: asdict(p) | {"setting": setting(p.setting)} for name, p in made.modes.items()},
        "colocated": asdict(made.colocated),
        "verdict": made.verdict,
    }


def _table(plans: Sequence[Plan]) -> str:
    regime = plans[0].regime
    lines = [
        f"draft {regime.draft_ms:g} ms, target {regime.step_ms:g} ms per step, slope {regime.slope:g}, "
        f"acceptance {plans[0].acceptance:.2f}; simulated",
        "x: tokens/s over plain streaming from the cloud, f: target forwards per token",
        "",
        f"{'RTT ms':>7}  {'cloud':>11}  {'rounds, best k':>22}  {'wait':>15}  {'ecd':>15}  co-located",
    ]
    for made in plans:
        modes = made.modes
        cells = {name: f"{p.ratio:.2f} x f {p.forwards_per_token:.2f}" for name, p in modes.items()}
        lines.append(
            f"{made.regime.rtt_ms:>7g}  {modes['cloud'].tokens_per_s:>7.1f} t/s  "
            f"{'k ' + str(modes['rounds'].setting.gather):>6} {cells['rounds']:>15}  {cells['wait']:>15}  "
            f"{cells['ecd']:>15}  {made.colocated.ratio:.2f} x k {made.colocated.k}"
        )
    lines += ["", *(f"RTT {made.regime.rtt_ms:g} ms: {made.verdict}." for made in plans)]
    lines += [
        "",
        "co-located: rounds without a link, the draft beside the target and as fast there as here (Leviathan",
        "et al. 2023, section 3.3). It takes memory and time of the target's machine, and no RTT changes it:",
        "where that machine has room for the draft and the ratio is higher, run it there.",
    ]
    return "\n".join(lines)
