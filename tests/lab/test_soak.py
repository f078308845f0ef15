"""`ecd soak` on real daemons, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ecd.lab.fault_plan import Kind
from ecd.lab.soak import soak


def soaked(out: Path, *flags: str) -> dict[str, Any]:
    result = CliRunner().invoke(soak, ["--json", str(out), *flags], catch_exceptions=False)
    print(result.output)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["problems"] == []
    assert found["resumed"] > 0
    return found


@pytest.mark.slow
def test_every_answer_is_right_while_links_and_daemons_fail(tmp_path: Path) -> None:
    found = soaked(tmp_path / "soak.json", "--seconds", "45", "--every", "2.5", "--seed", "0")
    assert found["answers"]["right"] > 50
    assert set(found["emulated_faults"]) == set(Kind), "of every kind"
    assert found["daemons"][0]["starts"] > 1


@pytest.mark.large
@pytest.mark.parametrize(
    "models",
    [
        ("--target", "replay:qwen-coder-greedy"),
        ("--target", "smollm2-135m", "--draft", "smollm2-135m-draft", "--sessions", "8"),
    ],
    ids=["recorded", "small pair"],
)
def test_three_minutes_of_it(tmp_path: Path, models: tuple[str, ...]) -> None:
    soaked(tmp_path / "soak.json", "--seconds", "180", *models)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--draft", "x"), "the draft is in the trace"),
        (("--target", "smollm2-135m"), "--draft is missing"),
        (("--seconds", "nan"), "not a finite number"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(flags: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(soak, flags)
    assert result.exit_code == 2
    assert message in result.output
