"""What the simulation expects of each cell of a streaming benchmark.

Owns where its numbers come from: a trace's own right and wrong guesses, or what was measured in the same run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ecd.lab.runs import Mode, Objective, Run, Variant
from ecd.lab.simulate import (
    PLAIN,
    WAIT,
    Prediction,
    Regime,
    draws,
    predict,
    predict_modes,
    rounds,
)
from ecd.lab.trace import Recording

DRAWN_TOKENS = 2000  # where only a rate of acceptance is known


@dataclass(frozen=True, slots=True)
class Expectation:
    """Right or wrong guesses of answers, and the regime, both by class."""

    answers: Sequence[Sequence[bool]]
    regime: Regime

    def of(self, variant: Variant, objective: Objective) -> Prediction | None:
        """The prediction for a variant; None for what is not told to be fast."""
        match variant.mode:
            case Mode.CLOUD:
                return predict(self.answers, self.regime, PLAIN)
            case Mode.ROUNDS:
                assert variant.k is not None
                return predict(self.answers, self.regime, rounds(variant.k))
            case Mode.WAIT:
                return predict(self.answers, self.regime, WAIT)
            case Mode.ECD if objective == "latency":
                return predict_modes(self.answers, self.regime)["ecd"]
            case _:
                return None


def right_guesses(recording: Recording, tokens: int, always_wrong: bool) -> list[bool]:
    """Which of the draft's guesses along the first `tokens` of a recorded answer are the target's choice."""
    pairs = list(zip(recording.guesses, recording.target_ids, strict=True))[:tokens]
    return [guess.token == token and not always_wrong for guess, token in pairs]


def expect_measured(runs: Sequence[Run], rtt_ms: float, conditions: Mapping[str, Any]) -> Expectation | None:
    """From the runs of one RTT and class, and the edge's `conditions`; None while something is unknown.

    The step is the cloud's own time per token in `cloud` mode; acceptance is of the modes that always draft,
    where there are any, since a controller that stops drafting stops at the hard places.
    """
    plain = [run for run in runs if run.cell.variant.mode is Mode.CLOUD]
    decoded = sum(run.decoded for run in plain)
    always = [run for run in runs if run.cell.variant.mode in (Mode.ROUNDS, Mode.WAIT)]
    drafting = always or [run for run in runs if run.cell.variant.mode is Mode.ECD]
    settled = sum(run.settled for run in drafting)
    draft_ms, slope = conditions.get("draft_ms"), conditions.get("slope")
    if not decoded or not settled or draft_ms is None or slope is None:
        return None
    step_ms = sum(run.decode_ms for run in plain) / decoded
    acceptance = sum(run.right for run in drafting) / settled
    return Expectation([draws(acceptance, DRAWN_TOKENS, seed=0)], Regime(rtt_ms, draft_ms, step_ms, slope))
