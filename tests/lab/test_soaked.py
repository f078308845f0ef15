"""What a soak found, and whether it is as promised."""

import json
import traceback
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from ecd.lab.soaked import (
    JUDGED_S,
    MAX_GROWTH_BYTES,
    Answers,
    Held,
    Outcome,
    Soaked,
    exceptions_in,
    states_lost_in,
)

MIB = 1 << 20
CLOUD = Held("cloud", 2, 12, 12, 5, 5, 0, (), 3, 90 * MIB, 91 * MIB)


def soaked(held: Held = CLOUD, *ends: tuple[Outcome, str]) -> Soaked:
    answers = Answers(tokens=640, resumed=3, pauses_s=[0.5, 2.0, 1.0])
    for _ in range(10):
        answers.end(Outcome.RIGHT)
    for end in ends:
        answers.end(*end)
    return Soaked(60.0, 4, Counter({"cut": 3, "stall": 1}), answers, [held])


def test_a_good_soak_has_no_problems() -> None:
    good = soaked(CLOUD, (Outcome.ENDED, ""), (Outcome.REFUSED, ""), (Outcome.LEFT, ""))
    assert good.problems() == []
    assert "NOT AS PROMISED" not in good.table()
    assert good.table().endswith("memory flat within 12 MiB after the warm-up")
    assert "60 s, 4 sessions, 4 faults: 3 cut, 1 stall" in good.table()
    assert "10 right, 1 ended, 1 refused, 1 left, 0 wrong, 0 failed, 0 hung; 640 tokens" in good.table()
    assert good.pause_s() == {"median pause": 1.0, "p95": 1.0, "longest": 2.0}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"left_fds": 13}, "cloud: 13 fds, and 12 at its first start"),
        ({"left_tasks": 6}, "cloud: 6 tasks"),
        ({"left_sessions": 1}, "cloud: 1 sessions"),
        ({"exceptions": ("KeyError: 3", "KeyError: 3")}, "cloud: 2 times in its log: KeyError: 3"),
        ({"late_bytes": 91 * MIB + MAX_GROWTH_BYTES}, "cloud: memory grew by 13.0 MiB"),
    ],
)
def test_whatever_is_left_over_is_a_problem(changes: dict[str, Any], told: str) -> None:
    bad = soaked(replace(CLOUD, **changes))
    (problem,) = bad.problems()
    assert problem.startswith(told)
    assert f"NOT AS PROMISED: {told}" in bad.table()
    assert "\nas promised" not in bad.table()


@pytest.mark.parametrize("outcome", [Outcome.WRONG, Outcome.FAILED, Outcome.HUNG])
def test_every_bad_answer_is_a_problem_with_its_reason(outcome: Outcome) -> None:
    bad = soaked(CLOUD, (outcome, "of the moon"), (outcome, "of the moon"))
    assert bad.problems() == [f"2 answers {outcome}: of the moon"]


def test_without_one_right_answer_nothing_is_proven() -> None:
    nothing = replace(soaked(), answers=Answers())
    assert nothing.problems() == ["not one answer was completed"]
    assert nothing.pause_s() == {}


def test_a_process_that_lived_too_short_tells_nothing_of_memory() -> None:
    short = soaked(replace(CLOUD, early_bytes=None, late_bytes=None))
    assert short.problems() == []
    assert short.table().endswith("after the warm-up, not judged of cloud")


@pytest.mark.parametrize("missing", ["early_bytes", "late_bytes"])
def test_a_long_soak_that_tells_nothing_of_memory_is_no_good_one(missing: str) -> None:
    long = replace(soaked(replace(CLOUD, **{missing: None})), seconds=JUDGED_S)
    assert long.problems() == ["cloud: no figure for its memory after the warm-up"]
    assert "\nas promised" not in long.table()
    assert replace(soaked(), seconds=JUDGED_S).problems() == []


def test_the_file_has_it_all() -> None:
    told = json.loads(json.dumps(soaked(CLOUD, (Outcome.HUNG, "x")).to_map()))
    counts = {"right": 10, "ended": 0, "refused": 0, "left": 0, "wrong": 0, "failed": 0, "hung": 1}
    assert told["answers"] == counts
    assert told["daemons"][0]["growth_bytes"] == MIB
    assert told["problems"] == ["1 answers hung: x"]


def test_a_log_tells_its_exceptions() -> None:
    def fail() -> None:
        {}[3]

    log = "ready\n"
    for _ in range(2):
        try:
            fail()
        except KeyError:
            log += f"oh no\n{traceback.format_exc()}and on\n"
    assert exceptions_in(log) == ("KeyError: 3", "KeyError: 3")


def test_a_log_tells_what_found_no_room() -> None:
    line = (
        "2026-01-01 00:00:00,000 WARNING ecd.engine.state_files: a KV state could not be kept in /x: full\n"
    )
    assert states_lost_in(f"ready\n{line}and on\n{line}") == 2
