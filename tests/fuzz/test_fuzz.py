"""The kept inputs, and a few seconds of fuzzing where atheris is installed."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.corpus import kept
from tests.fuzz.targets import TARGETS, within_bounds

# All targets together, in CI.
SECONDS = 20


@pytest.mark.parametrize("target", TARGETS)
def test_the_kept_inputs_break_nothing(target: str) -> None:
    inputs = kept(target)
    assert len(inputs) > 5
    for data in inputs:
        try:
            TARGETS[target](data)
        except BaseException as e:
            e.add_note(f"input: {data.hex()}")
            raise


def test_what_takes_too_much_memory_is_noticed() -> None:
    with pytest.raises(AssertionError):
        within_bounds(lambda data: print(len(data * (256 << 20))))(b"x")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: ecd[fuzz]")
def test_fuzzing_finds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    executions = [int(line.split()[1].replace(",", "")) for line in done.stdout.splitlines()[1:]]
    assert len(executions) == len(TARGETS) + 1
    assert min(executions) > 500, "every target was really run"
