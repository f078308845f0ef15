"""Options that `ecdctl run` and `ecd oracle` share: what is refused before anything is asked of a daemon."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ecd.cli import oracle
from ecd.ctl import run


@pytest.mark.parametrize(
    ("command", "model"), [(oracle, ["--model", "m"]), (run, [])], ids=["ecd oracle", "ecdctl run"]
)
def test_logprobs_are_not_asked_for_where_they_would_not_be_printed(
    command: click.Command, model: list[str]
) -> None:
    result = CliRunner().invoke(command, ["x", *model, "--logprobs", "2"])
    assert result.exit_code == 2
    assert "--logprobs are printed with --json only" in result.output


@pytest.mark.parametrize("flags", [["--json", "--logprobs", "2"], ["--logprobs", "2", "--json"]])
def test_json_counts_wherever_it_stands(flags: list[str], tmp_path: Path) -> None:
    # It gets as far as looking for a daemon.
    result = CliRunner().invoke(run, ["x", *flags], obj=tmp_path / "no.sock")
    assert "no daemon answers" in str(result.exception)
