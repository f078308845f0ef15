"""What the laboratory's commands refuse before anything is started."""

import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ecd.lab.bench import bench
from ecd.lab.options import FILE, FiniteFloatRange, listed
from ecd.lab.replay import replay


@given(st.floats())
def test_a_finite_range_has_what_lies_in_it_and_nothing_else(number: float) -> None:
    accepts = FiniteFloatRange(0)
    if 0 <= number < float("inf"):
        assert accepts.convert(repr(number), None, None) == number
    else:
        with pytest.raises(click.BadParameter):
            accepts.convert(repr(number), None, None)


def in_list(value: str) -> Any:
    context = click.Context(bench)
    return listed(click.IntRange(1, 9))(context, click.Option(["--many"]), value)


def test_a_list_is_sorted_and_has_each_value_once() -> None:
    assert in_list("7,1,7") == (1, 7)


@pytest.mark.parametrize("value", ["", "1,", "1,10", "1;2", "x"])
def test_a_list_with_something_else_in_it_is_none(value: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a list like"):
        in_list(value)


def test_a_file_to_write_needs_a_folder_that_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "out.json"
    assert FILE.convert(str(there), None, None) == there
    assert not there.exists()
    with pytest.raises(click.BadParameter, match=r"there is no folder .*missing"):
        FILE.convert(str(tmp_path / "missing" / "out.json"), None, None)
    with pytest.raises(click.BadParameter, match="is a directory"):
        FILE.convert(str(tmp_path), None, None)
    # The superuser may write anywhere, so that the answer is given here.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(click.BadParameter, match="is not writable"):
        FILE.convert(str(there), None, None)


REQUIRED = {
    "stream": ["--target", "replay:qwen-coder-greedy"],
    "record": ["--target", "big", "--draft", "small", "--prompts", "mixed"],
    "pace": ["--model", "big"],
    "overhead": [],
    "capacity": [],
    "peers": ["--target", "big", "--draft", "small"],
}
FILES = [
    ("stream", "--json"), ("stream", "--html"), ("record", "--out"), ("pace", "--json"),
    ("overhead", "--json"), ("capacity", "--json"), ("peers", "--json"),
]  # fmt: skip


def refused(command: str, *arguments: str) -> str:
    """What the command says. It has nothing to start with: a folder that is not there, models of no name."""
    result = CliRunner().invoke(bench, [command, *REQUIRED[command], *arguments])
    assert result.exit_code == 2, result.output
    return result.output


@pytest.mark.parametrize(("command", "option"), FILES)
def test_every_command_that_writes_a_file_looks_at_its_folder_first(command: str, option: str) -> None:
    assert "there is no folder '/nowhere'" in refused(command, option, "/nowhere/file")


def test_no_command_takes_a_file_or_a_number_any_other_way() -> None:
    for command in [*bench.commands.values(), *replay.commands.values()]:
        for option in command.params:
            assert type(option.type) not in (click.FloatRange, click.types.FloatParamType), option
            if option.name in ("out", "json_file", "html_file"):
                assert option.type is FILE, option


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("peers", "--seed", "-1"),
        ("peers", "--seed", str(1 << 63)),
        ("peers", "--threads", "0"),
        ("peers", "--threads", "100000"),
        ("peers", "--repeat", "0"),
        ("peers", "--max-tokens", "100000"),
        ("stream", "--max-tokens", "100000"),
        ("record", "--temperature", "nan"),
        ("overhead", "--seconds", "inf"),
        ("capacity", "--rate", "nan"),
        ("capacity", "--rtt", "-1"),
    ],
)
def test_what_is_out_of_range_is_named(command: str, option: str, value: str) -> None:
    assert option in refused(command, option, value)
