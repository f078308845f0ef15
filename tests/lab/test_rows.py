"""Rows of emulated benchmarks say so wherever they are shown."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from ecd.lab.rows import publish_emulated


@dataclass(frozen=True)
class Row:
    sessions: int


def test_every_row_says_emulated_on_the_terminal_and_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    publish_emulated(iter([Row(1), Row(16)]), "sessions", lambda row: f"{row.sessions:>8}", out, step_ms=30.0)
    header, *lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["emulated", "1"], ["emulated", "16"]]
    # The columns stand below their names.
    assert {len(line) for line in lines} == {len(header)}
    report = json.loads(out.read_text())
    assert report["results"] == [{"emulated": True, "sessions": 1}, {"emulated": True, "sessions": 16}]
    assert (report["emulated"], report["step_ms"]) == (True, 30.0)
    assert {"machine", "versions"} <= report.keys()


def test_rows_are_shown_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> object:
        yield Row(1)
        assert "emulated" in capsys.readouterr().out
        yield Row(2)

    publish_emulated(rows(), "", lambda row: str(row.sessions), None)  # type: ignore[arg-type]
    assert capsys.readouterr().out.split() == ["emulated", "2"]
