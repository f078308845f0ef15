"""The commands of `ecdctl` that people watch: `run`, `chat`, `batch`, `top`.

Owns their options, and when a terminal and its libraries are needed. What is on the screen is their own
modules'.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ecd.client import BlockingClient
from ecd.errors import BadRequest, ConfigError
from ecd.options import (
    EXIT_ERROR,
    mode_options,
    output_options,
    pacing_options,
    prompt_text,
    run_arguments,
    sampling_options,
    template_option,
)
from ecd.terminal.batch import read_prompts, run_batch
from ecd.terminal.colour import coloured, harmless, json_line, legend, wants_colour

_color = click.option(
    "--color",
    is_flag=True,
    help="Colour each token by its origin. Only on a terminal, and not with NO_COLOR set.",
)


@click.command()
@click.argument("prompt")
@sampling_options
@mode_options
@template_option
@output_options
@_color
@pacing_options
@click.pass_obj
def run(socket: Path, /, prompt: str, as_json: bool, color: bool, **options: Any) -> None:
    """Answer PROMPT, streaming the text as it comes. PROMPT `-` reads standard input.

    Ctrl-C cancels the answer at the edge and in the cloud. With --color, a last line on stderr is the legend:
    how many tokens were accepted drafts, the target's own, or the edge's, each in its colour.

    \b
    Examples:
      ecdctl run --temperature 0.8 --seed 7 "List five facts about the Moon."
      ecdctl run --color --objective cost "Write a binary search in C."
      ecdctl run --json --logprobs 3 --max-tokens 16 "Name a colour."
      ecdctl run --raw --no-draft - <story.txt
    """
    colour, terminal = color and wants_colour(sys.stdout), sys.stdout.isatty()
    with BlockingClient(socket) as client:
        for event in client.stream(prompt_text(prompt), **run_arguments(**options)):
            match event.pop("event"):
                case "started" if event["link"] != "connected":
                    click.echo("waiting for the link to the cloud; `ecdctl status` says why", err=True)
                case "text" if colour and not as_json:
                    click.echo(coloured(event), nl=False)
                case "text" if not as_json:
                    # A pipe gets the text as it is; click would take escape sequences out of it.
                    click.echo(harmless(event["text"]) if terminal else event["text"], nl=False, color=True)
                case "done":
                    click.echo(json_line(event) if as_json else "")
                    if colour and not as_json:
                        click.echo(legend(event["origins"]), err=True)


@click.command()
@sampling_options
@mode_options
@_color
@pacing_options
@click.pass_obj
def chat(socket: Path, /, color: bool, **settings: Any) -> None:
    """Talk with the model.

    Each turn sends the whole conversation. The options hold from the first turn on; /mode changes them. Lines
    that begin with a slash are commands: /stats, /config, /mode, /new, /help, /quit. Ctrl-C cancels the
    answer, not the program; what was said until then stays in the conversation. Ctrl-D leaves.

    \b
    Examples:
      ecdctl chat --temperature 0.7
      ecdctl chat --color --max-tokens 400 --objective latency
    """
    _check_terminal("chat", "`ecdctl run -` reads standard input")
    # What no turn could use is a wrong usage now.
    run_arguments(**settings)
    with _extra("chat"):
        from ecd.terminal.chat import chat as talk

    talk(socket, settings, colour=color and wants_colour(sys.stdout))


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Where results go.  [default: FILE with .results.jsonl in place of its suffix]",
)
@click.option(
    "--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Prompts asked at once."
)
@sampling_options
@mode_options
@template_option
@pacing_options
@click.pass_context
def batch(
    context: click.Context, /, file: Path, output: Path | None, concurrency: int, **options: Any
) -> None:
    """Answer all prompts of FILE, one JSON value a line.

    A line is a text, or an object with `prompt` (a text or a list of chat messages) and any other argument of
    `run` in docs/PROTOCOL.md. The options hold for lines that do not say.

    Results are appended to the output in the order of the prompts, one object a line: `line`, `request`, and
    `result` or, for a prompt that was refused, `error`. After an interruption or an error the same command
    goes on behind the results that are there; a last line that was cut off is made again. An output with
    results of other prompts or other options is refused.

    Exit status 1 also says that prompts were refused.

    \b
    Examples:
      ecdctl batch prompts.jsonl --concurrency 16 --max-tokens 200
      ecdctl batch prompts.jsonl --output greedy.jsonl --mode greedy
    """
    try:
        prompts = read_prompts(file.read_text(encoding="utf-8"), run_arguments(**options))
    except (BadRequest, UnicodeError) as e:
        raise BadRequest(f"{file}: {e}") from None
    path = output or file.with_suffix(".results.jsonl")
    if path.resolve() == file.resolve():
        raise click.UsageError("--output is FILE itself")
    if refused := run_batch(context.obj, prompts, path, concurrency):
        click.echo(f"{refused} of {len(prompts)} prompts were refused; {path} says why", err=True)
        context.exit(EXIT_ERROR)


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    help="Seconds between looks.",
)
@click.pass_obj
def top(socket: Path, interval: float) -> None:
    """Show what the daemon does, live: tokens per second, acceptance, the link or the load, and each session.

    Works with an edge's and with a cloud's socket. `q` leaves.
    """
    _check_terminal("top", "`ecdctl stats --watch` is for pipes")
    with _extra("top"):
        from ecd.terminal.top import top as watch

    watch(socket, interval)


def _check_terminal(command: str, instead: str) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(f"`ecdctl {command}` needs a terminal; {instead}")


@contextlib.contextmanager
def _extra(command: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as e:
        raise ConfigError(
            f"`ecdctl {command}` needs {e.name}, which is not installed: pip install 'ecd[terminal]'"
        ) from None
