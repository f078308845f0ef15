"""A file of lines that runs go on with."""

from pathlib import Path

import pytest

from ecd.errors import BadRequest, EcdError
from ecd.results_file import append, results_file


def test_lines_are_in_it_at_once_and_a_later_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "results"
    for line in (b"one", b"two"):
        with results_file(path, "batch", "--output") as file:
            append(file, line)
            assert path.read_bytes().endswith(line + b"\n")
    assert path.read_bytes() == b"one\ntwo\n"


def test_two_runs_do_not_write_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "results"
    with (
        results_file(path, "batch", "--output"),
        pytest.raises(BadRequest, match=r"another batch writes .*; wait for it, or choose another --output"),
        results_file(path, "batch", "--output"),
    ):
        pass


def test_what_is_no_file_or_cannot_be_made_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "results"):
        with pytest.raises(BadRequest, match="choose another --out"), results_file(path, "run", "--out"):
            pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told() -> None:
    with (
        open("/dev/full", "ab", buffering=0) as full,
        pytest.raises(EcdError, match=r"cannot write results to .*No space left"),
    ):
        append(full, b"line")
