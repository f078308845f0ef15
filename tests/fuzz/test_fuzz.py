"""The kept inputs, and a few seconds of fuzzing where atheris is installed."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.corpus import kept
from tests.fuzz.targets import TARGETS

# All targets together, in CI.
SECONDS = 20
ROOT = Path(__file__).parents[2]


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


def test_a_call_that_takes_too_much_is_noticed() -> None:
    """In a process of its own, of a shell's: from this one it would inherit a peak that may be higher."""
    call = "from tests.fuzz.targets import within_bounds; within_bounds(lambda data: data * (256 << 20))"
    for size, ends in (("b''", 0), ("b'x'", 1)):
        done = subprocess.run(
            ["/bin/sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, f"{call}({size})"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, "AssertionError" in done.stderr) == (ends, bool(ends)), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: ecd[fuzz]")
def test_fuzzing_finds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    executions = [int(line.split()[1].replace(",", "")) for line in done.stdout.splitlines()[1:]]
    assert len(executions) == len(TARGETS) + 1
    assert min(executions) > 500, "every target was really run"
