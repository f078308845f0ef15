"""What the simulation expects of each cell of a streaming benchmark.

Owns where its numbers come from: a trace's own right and wrong guesses, or what was measured in the same run;
and how the edge's controller would pace there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from ecd.edge import pacing
from ecd.edge.request import UNSURE
from ecd.edge.survival import Survival
from ecd.lab.runs import OURS, Mode, Objective, Run, Variant
from ecd.lab.simulate import (
    MAX_AHEAD,
    MAX_VERIFY,
    PLAIN,
    WAIT,
    Prediction,
    Regime,
    Setting,
    draws,
    predict,
    predict_at_best_depth,
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

    def of(self, variant: Variant, objective: Objective) -> Prediction:
        """The prediction for a variant. The simulation knows no alternates.

        For ecd the fastest setting there is when only speed counts, since that is what it promises; else that
        of the controller, where the cloud chooses how many hints to verify unless its patience has no end.
        """
        match variant.mode:
            case Mode.CLOUD:
                return predict(self.answers, self.regime, PLAIN)
            case Mode.ROUNDS:
                assert variant.k is not None
                return predict(self.answers, self.regime, rounds(variant.k))
            case Mode.WAIT:
                return predict(self.answers, self.regime, WAIT)
            case Mode.ECD | Mode.ECD_NO_ALTERNATES if objective == "latency":
                return predict_modes(self.answers, self.regime)["ecd"]
            case Mode.ECD | Mode.ECD_NO_ALTERNATES:
                setting = controllers_setting(self.answers, self.regime, objective)
                strict = setting.patience_ms == math.inf
                return (predict if strict else predict_at_best_depth)(self.answers, self.regime, setting)
            case unreachable:
                assert_never(unreachable)


def controllers_setting(answers: Sequence[Sequence[bool]], regime: Regime, objective: Objective) -> Setting:
    """What the edge's pacing controller chooses once it knows the regime and how often guesses come true."""
    seen = Survival(math.inf)
    for right in answers:
        place = 0
        for is_right in right:
            seen.settle(place, is_right)
            place = place + 1 if is_right else 0
    conditions = pacing.Conditions(
        rtt_s=regime.rtt_ms / 1000,
        jitter_s=0.0,
        draft_s=regime.draft_ms / 1000,
        step_s=regime.step_ms / 1000,
        token_s=regime.slope * regime.step_ms / 1000,
    )
    pacer = pacing.Pacer(pacing.Objective(objective), edge=seen, max_verify=MAX_VERIFY, session=seen)
    pace = pacer.pace(conditions, committed=0, max_ahead=MAX_AHEAD, unsure=UNSURE)
    return Setting(pace.patience_s * 1000, pace.gather, pace.ahead) if pace.model else PLAIN


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
    drafting = always or [run for run in runs if run.cell.variant.mode in OURS]
    settled = sum(run.settled for run in drafting)
    draft_ms, slope = conditions.get("draft_ms"), conditions.get("slope")
    if not decoded or not settled or draft_ms is None or slope is None:
        return None
    step_ms = sum(run.decode_ms for run in plain) / decoded
    acceptance = sum(run.right for run in drafting) / settled
    return Expectation([draws(acceptance, DRAWN_TOKENS, seed=0)], Regime(rtt_ms, draft_ms, step_ms, slope))
