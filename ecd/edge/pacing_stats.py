"""What pacing goes by and what it does now, as `stats` and an answer's result tell it.

Owns names and units only, those of docs/PACING.md. Decides and measures nothing.
"""

import math
from typing import Any

from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Answer
from ecd.edge.generation import Generation
from ecd.edge.meter import Meter
from ecd.edge.survival import Survival


def conditions_told(meter: Meter, survival: Survival) -> dict[str, Any]:
    """What all answers of the edge share; None where it is not measured yet."""
    return {
        "rtt_ms": _ms(meter.rtt_s),
        "jitter_ms": None if meter.rtt_s is None else _ms(meter.jitter_s),
        "draft_ms": _ms(meter.draft_s),
        "step_ms": _ms(meter.step_s),
        "slope": None if meter.token_s is None or not meter.step_s else meter.token_s / meter.step_s,
        "max_verify": meter.max_verify,
        "alone": meter.alone,
        "acceptance": survival.total.mean,
        "places": survival.told(None),
    }


def pace_told(answer: Answer, acceptance: Acceptance) -> dict[str, Any]:
    """What a running answer does, what it goes by, and what is predicted beside what it gives."""
    generation = answer.generation
    pace, forecast = generation.pace, generation.pace.forecast
    elapsed = (answer.last_at or 0.0) - (answer.first_at or 0.0)
    copies = None if generation.slot is None else acceptance.copies.get(generation.slot)
    return {
        "id": answer.id,
        "state": state(generation),
        "quiet_for": generation.pacer.quiet_for(len(generation.origins)),
        "ahead": pace.ahead,
        "gather": pace.gather,
        # Of no end in a strict round, which JSON cannot say.
        "patience_ms": _ms(pace.patience_s) if math.isfinite(pace.patience_s) else None,
        "alternate_worth": pace.alternate_worth,
        **learned(generation),
        "copies_right": None if copies is None else copies.mean,
        "predicted_tokens_per_s": forecast.tokens_per_s if forecast else pace.plain_tokens_per_s,
        "plain_tokens_per_s": pace.plain_tokens_per_s,
        "tokens_per_s": answer.later_tokens / elapsed if elapsed > 0 else None,
    }


def learned(generation: Generation) -> dict[str, Any]:
    """What one answer has learned for itself."""
    return {
        "copied_share": generation.lessons.copied_share,
        "second_choice_right": generation.lines.second_rate,
        "places": generation.pacer.session.told(generation.pacer.edge),
    }


def state(generation: Generation) -> str:
    """What becomes of the draft model's guesses just now."""
    pace = generation.pace
    if generation.alone:
        return "alone"
    if generation.slot is None or not pace.ahead:
        return "off"
    if generation.request.fixed_pace is not None:
        return "fixed"
    if not pace.model:
        return "quiet"
    if not pace.send:
        return "probing"
    return "drafting" if pace.forecast is not None else "unmeasured"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
