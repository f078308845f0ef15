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
def test_three_minutes_of_every_fault_with_the_small_pair(tmp_path: Path) -> None:
    pair = ("--target", "smollm2-135m", "--draft", "smollm2-135m-draft", "--sessions", "8")
    found = soaked(tmp_path / "soak.json", "--minutes", "3", "--seed", "0", *pair)
    assert set(found["emulated_faults"]) == set(Kind)
    assert found["answers"]["refused"] > 0
    assert found["daemons"][0]["starts"] > 1


@pytest.mark.large
def test_an_hour_with_recorded_models(tmp_path: Path) -> None:
    found = soaked(tmp_path / "soak.json", "--minutes", "60")
    assert set(found["emulated_faults"]) == set(Kind) - {Kind.FULL_DISK}
    assert found["answers"]["right"] > 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--draft", "x"), "the draft is in the trace"),
        (("--target", "smollm2-135m"), "--draft is missing"),
        (("--minutes", "nan"), "not a finite number"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(flags: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(soak, flags)
    assert result.exit_code == 2
    assert message in result.output
