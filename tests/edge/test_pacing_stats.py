"""What `stats` and results tell of pacing."""

import json
import math
from typing import Any

import pytest
from talk import CONDITIONS, Talk, copied

from ecd.edge.acceptance import Acceptance, DecayedRate
from ecd.edge.answer import Answer
from ecd.edge.meter import Meter
from ecd.edge.pacing import Forecast, Pace
from ecd.edge.pacing_stats import conditions_told, learned, pace_told, state
from ecd.edge.survival import GROUP_NAMES, Survival
from ecd.text import TextStream


def answer_of(talk: Talk) -> Answer:
    return Answer(7, talk.g, TextStream(), 0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "pace", "expected"),
    [
        ({}, None, "unmeasured"),
        ({}, Pace(16, forecast=Forecast(50.0, 0.5)), "drafting"),
        ({}, Pace(8, model=False), "quiet"),
        ({}, Pace(4, send=False), "probing"),
        ({"hint_tokens": 2}, None, "fixed"),
        ({"slot": None}, Pace(16), "off"),
        ({"draft": False}, None, "off"),
    ],
)
def test_the_state_of_an_answer(changes: dict[str, Any], pace: Pace | None, expected: str) -> None:
    talk = Talk(pace=pace, **changes)
    talk.open()
    assert state(talk.g) == expected


def test_an_edge_that_has_measured_nothing_says_so() -> None:
    told = conditions_told(Meter(), Survival(64.0))
    unknown = {name for name, value in told.items() if value is None}
    assert unknown == {"rtt_ms", "jitter_ms", "draft_ms", "step_ms", "slope", "acceptance"}


def test_conditions_are_in_milliseconds() -> None:
    survival = Survival(64.0)
    survival.settle(0, True)
    meter = Meter(0.05, 0.002, 0.005, 0.03, 0.0006, max_verify=8, alone=False)
    told = conditions_told(meter, survival)
    assert [told[name] for name in ("rtt_ms", "jitter_ms", "draft_ms", "step_ms")] == [50, 2, 5, 30]
    assert told["slope"] == pytest.approx(0.02)
    assert (told["max_verify"], told["alone"], told["acceptance"]) == (8, False, 1.0)
    assert tuple(told["places"]) == GROUP_NAMES


def test_the_pace_in_force_and_what_it_goes_by() -> None:
    talk = Talk(pace=Pace(12, 3, math.inf, alternate_worth=0.5, forecast=Forecast(50.0, 0.4)))
    talk.open()
    talk.done(talk.task(), *copied(1, 2))
    talk.draft(3)
    acceptance = Acceptance()
    copies = acceptance.copies[0] = DecayedRate(16.0)
    copies.add(True)
    told = pace_told(answer_of(talk), acceptance)
    assert json.loads(json.dumps(told)) == told
    assert {name: told[name] for name in ("id", "state", "ahead", "gather", "patience_ms")} == {
        "id": 7,
        "state": "drafting",
        "ahead": 12,
        "gather": 3,
        "patience_ms": None,
    }
    assert (told["alternate_worth"], told["predicted_tokens_per_s"]) == (0.5, 50.0)
    assert told["copied_share"] == pytest.approx(2 / 7, abs=0.03)
    assert (told["second_choice_right"], told["copies_right"]) == (0.4, 1.0)
    assert set(learned(talk.g)) <= set(told)


def test_the_rate_is_of_the_tokens_that_came_here_behind_the_first_piece() -> None:
    talk = Talk(committed=(5, 6, 7))
    talk.open()
    answer = answer_of(talk)
    assert pace_told(answer, Acceptance())["tokens_per_s"] is None
    talk.commit(1, 2)
    answer.first_at, answer.first_tokens, answer.last_at = 10.0, 2, 10.0
    talk.commit(3, 4, 5)
    answer.last_at = 10.5
    assert pace_told(answer, Acceptance())["tokens_per_s"] == 6


def test_how_many_tokens_came_while_it_was_quiet_or_probing() -> None:
    talk = Talk(pace=Pace(8, model=False))
    talk.open()
    talk.commit(1, 2)
    talk.pacer.says = Pace(4, send=False)
    talk.commit(3)
    talk.pacer.says = Pace(16)
    talk.commit(4)
    talk.commit(5, 6)
    tally = talk.g.tally
    assert (tally.quiet_tokens, tally.probing_tokens) == (3, 1)
    assert CONDITIONS.alone
