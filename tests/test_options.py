"""Options that `ecdctl run` and `ecd oracle` share: what is refused before anything is asked of a daemon."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ecd.cli import oracle
from ecd.ctl import set_
from ecd.terminal.commands import run


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


@pytest.mark.parametrize("given", ["mode", "mode=[a", "mode=[a, b]", "since=2026-01-01"])
def test_what_is_no_setting_is_a_wrong_usage(given: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(set_, [given], obj=tmp_path / "no.sock")
    assert result.exit_code == 2
    assert given in result.output


@pytest.mark.parametrize("given", ["0.8", "0", "adaptive"])
def test_a_threshold_is_a_number_or_a_word(given: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(run, ["x", "--threshold", given], obj=tmp_path / "no.sock")
    assert "no daemon answers" in str(result.exception)
    wrong = CliRunner().invoke(run, ["x", "--threshold", f"{given}x"], obj=tmp_path / "no.sock")
    assert wrong.exit_code == 2


def test_the_oracle_knows_no_modes_that_need_an_edge() -> None:
    result = CliRunner().invoke(oracle, ["x", "--model", "m", "--mode", "confident"])
    assert result.exit_code == 2
    assert "'confident' is not one of 'exact', 'greedy', 'coupled', 'rejection'" in result.output
