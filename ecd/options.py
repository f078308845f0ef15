"""Command-line options that `ecdctl run` and `ecd oracle` share, and how both programs end on an error."""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click

from ecd.errors import EcdError

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

_SAMPLING: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--temperature", type=float, default=0.0, show_default=True, help="0 takes the most likely token."
    ),
    click.option("--top-p", type=float, default=1.0, show_default=True, help="Nucleus sampling; 1 is off."),
    click.option("--top-k", type=int, default=0, show_default=True, help="Only the k most likely; 0 is off."),
    click.option(
        "--min-p", type=float, default=0.0, show_default=True, help="Share of the most likely; 0 is off."
    ),
    click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="1 is off."),
    click.option("--presence-penalty", type=float, default=0.0, show_default=True, help="0 is off."),
    click.option("--frequency-penalty", type=float, default=0.0, show_default=True, help="0 is off."),
    click.option(
        "--logit-bias", metavar="ID=BIAS", multiple=True, help="Adds to a token id's logit; repeatable."
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, (1 << 64) - 1),
        default=None,
        help="Same seed, same text. Drawn and told when not given.",
    ),
    click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True),
    click.option("--stop", metavar="TEXT", multiple=True, help="End before this text; repeatable."),
    click.option(
        "--mode",
        type=click.Choice(["exact", "greedy", "coupled", "rejection"]),
        default="exact",
        show_default=True,
        help="exact: greedy at temperature 0, coupled above it.",
    ),
    click.option(
        "--chat/--raw", "chat", default=True, help="Use the model's chat template, or the text as it is."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of text."),
)


def sampling_options(command: Command) -> Command:
    """Adds the options that decide the answer and how it is printed."""
    for option in reversed(_SAMPLING):
        command = option(command)
    return command


def parse_bias(pairs: tuple[str, ...]) -> list[tuple[int, float]]:
    """`ID=BIAS` options as numbers; raises click's usage error."""
    biases = []
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            biases.append((int(token), float(bias)))
        except ValueError:
            raise click.BadParameter(f"{pair!r} is not ID=BIAS", param_hint="--logit-bias") from None
    return biases


def prompt_text(prompt: str) -> str:
    """The prompt argument; `-` stands for standard input."""
    return sys.stdin.read() if prompt == "-" else prompt


def run_program(command: click.Command, name: str) -> NoReturn:
    """Runs a command line and ends the process: an error is one line on stderr, whatever raised it."""
    try:
        sys.exit(command.main(prog_name=name, standalone_mode=False) or 0)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except EcdError as e:
        click.echo(f"error: {e}", err=True)
        sys.exit(EXIT_ERROR)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_ERROR)
