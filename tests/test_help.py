"""What both programs say about themselves: help for everything, completion, exit codes."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from ecd import cli, ctl
from ecd.errors import BadRequest
from ecd.lab.ablation.command import ablate
from ecd.lab.bench import bench
from ecd.lab.soak import soak
from ecd.options import EXIT_STATUS, run_program

PROGRAMS: dict[str, click.Command] = {"ecd": cli.cli, "ecdctl": ctl.cli}
README = Path(__file__).parent.parent / "README.md"


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for each, child in command.commands.items():
            yield from commands(child, f"{name} {each}")


def helped(command: click.Command, name: str) -> list[str]:
    with click.Context(command, info_name=name, terminal_width=80) as context:
        return command.get_help(context).splitlines()


# Commands of `ecd` that are handed their arguments whole, and do not know what these are.
HANDED: dict[str, click.Command] = {"ablate": ablate, "bench": bench, "soak": soak}
ALL = [
    *(each for name, program in PROGRAMS.items() for each in commands(program, name)),
    *(each for name, command in HANDED.items() for each in commands(command, f"ecd {name}")),
]


@pytest.mark.parametrize("command", [pytest.param(command, id=name) for name, command in ALL])
def test_every_command_and_option_says_what_it_does(command: click.Command) -> None:
    assert command.help
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help, option.opts


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_has_what_a_manual_page_has(name: str) -> None:
    lines = helped(PROGRAMS[name], name)
    for heading in ("Options:", "Commands:", "Examples:", "Exit status:", "Environment:"):
        assert heading in [line.strip() for line in lines]


@pytest.mark.parametrize("command", [pytest.param(command, id=name) for name, command in ALL])
def test_help_fits_a_terminal_of_80_columns(command: click.Command) -> None:
    assert [line for line in helped(command, "x") if len(line) > 80] == []


@pytest.mark.parametrize(
    ("name", "command"), [pytest.param(name.split()[0], command, id=name) for name, command in ALL]
)
def test_examples_in_the_help_are_of_commands_and_options_that_exist(
    name: str, command: click.Command
) -> None:
    text = f"{command.help}\n{command.epilog or ''}"
    for program, rest in re.findall(r"^ +(ecd|ecdctl) (.+)$", text, re.MULTILINE):
        words = rest.split("  ")[0].split(" | ")[0].split()
        known: click.Command = PROGRAMS[program]
        options = {o for option in known.params for o in (*option.opts, *option.secondary_opts)}
        for word in words:
            if isinstance(known, click.Group) and word in known.commands:
                known = HANDED.get(word, known.commands[word])
                options |= {o for option in known.params for o in (*option.opts, *option.secondary_opts)}
            elif word.startswith("--"):
                assert word in options, f"{program} {rest}: {word}"
        assert not isinstance(known, click.Group), f"{program} {rest} names no command"


def test_exit_codes_are_told_alike_in_help_and_readme() -> None:
    codes = re.findall(r"^ +(\d+) ", EXIT_STATUS, re.MULTILINE)
    table = README.read_text().split("| exit code |")[1].split("\n\n")[0]
    assert codes == ["0", "1", "2", "130"] == re.findall(r"^\| (\d+) \|", table, re.MULTILINE)


def ends_with(body: Callable[[], Any], *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    @click.command()
    @click.option("--number", type=int)
    def program(number: int | None) -> None:
        body()

    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as end:
        run_program(program, "program")
    assert isinstance(end.value.code, int)
    return end.value.code


def raising(error: BaseException) -> Callable[[], Any]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("body", "arguments", "code", "said"),
    [
        (lambda: None, [], 0, ""),
        (raising(BadRequest("the reason")), [], 1, "error: the reason\n"),
        (raising(KeyboardInterrupt()), [], 130, ""),
        (raising(click.Abort()), [], 130, ""),
        (lambda: None, ["--number", "x"], 2, "not a valid integer"),
        (lambda: None, ["--nonsense"], 2, "No such option"),
        (lambda: click.get_current_context().exit(1), [], 1, ""),
    ],
)
def test_exit_codes(
    body: Callable[[], Any],
    arguments: list[str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ends_with(body, *arguments, monkeypatch=monkeypatch) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["--socket", "/nowhere/edge.sock", "status"], 1),
        (["nonsense"], 2),
        (["chat"], 2),
        (["top"], 2),
        (["batch", "/nowhere.jsonl"], 2),
        (["completion", "tcsh"], 2),
    ],
)
def test_exit_codes_of_ecdctl(arguments: list[str], code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "ecd.ctl", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code
    assert bool(ended.stderr) == bool(code)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", ["chat", "top"])
def test_what_needs_an_extra_says_which(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rich", "rich.console", "prompt_toolkit", f"ecd.terminal.{command}"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    monkeypatch.setattr("ecd.terminal.commands._check_terminal", lambda command, instead: None)
    context = click.Context(ctl.cli, obj=Path("/nowhere"))
    with context, pytest.raises(Exception, match=re.escape("pip install 'ecd[terminal]'")):
        ctl.cli.commands[command].main([], standalone_mode=False, obj=Path("/nowhere"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_completion_scripts(name: str, shell: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", {"ecd": "ecd", "ecdctl": "ecd.ctl"}[name], "completion", shell],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"_{name.upper()}_COMPLETE={shell}_complete" in result.stdout


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("ecdctl ba", ["batch"]),
        ("ecdctl run --obj", ["--objective"]),
        ("ecdctl run --objective ", ["latency", "balanced", "cost"]),
        ("ecd ed", ["edge"]),
        ("ecd edge --model smollm2-135m-d", ["smollm2-135m-draft"]),
        ("ecd models get qwen2.5-coder-0.5b-", ["qwen2.5-coder-0.5b-q4_0"]),
    ],
)
def test_a_shell_completes(words: str, completed: list[str]) -> None:
    program, *rest = words.split(" ")
    # As bash does it on Tab: the script is read once, then its function fills COMPREPLY.
    script = (
        f'eval "$({program} completion bash)"; COMP_WORDS=({words}); COMP_CWORD={len(rest)}; '
        f'_{program}_completion {program}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == completed, result.stderr
