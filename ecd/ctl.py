"""`ecdctl`: talk to a running daemon over its control socket.

Owns the commands, and what they print to pipes. What a terminal shows is ecd.terminal's.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import yaml

from ecd import __version__
from ecd.client import BlockingClient
from ecd.config import default_socket
from ecd.errors import BadRequest, ConfigError
from ecd.options import (
    EXIT_ERROR,
    EXIT_STATUS,
    HELP_WIDTH,
    mode_options,
    output_options,
    pacing_options,
    prompt_text,
    run_arguments,
    run_program,
    sampling_options,
    template_option,
)
from ecd.terminal.batch import read_prompts, run_batch
from ecd.terminal.colour import coloured, harmless, json_line, legend, wants_colour
from ecd.terminal.completion import completion
from ecd.terminal.doctor import Level, examine
from ecd.tracing import lines

WATCH_S = 1.0
# Of each half of a line of `trace`.
TRACE_WIDTH = 160

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_color = click.option(
    "--color",
    is_flag=True,
    help="Colour each token by its origin. Only on a terminal, and not with NO_COLOR set.",
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
    epilog=f"""\b
Examples:
  ecdctl run "Why is the sky blue?"        one answer, streamed
  ecdctl run - <question.txt >answer.txt   the same from and to files
  ecdctl chat                              a conversation
  ecdctl batch prompts.jsonl               a file of prompts; resumes
  ecdctl top                               what the edge does now
  ecdctl set mode=confident                who chooses the tokens
  ecdctl trace 17                          what happened in a session
  ecdctl doctor                            is all well, and what to do
  ecdctl --socket /run/ecd/cloud.sock top  what the cloud does now

{EXIT_STATUS}
\b
Environment:
  XDG_RUNTIME_DIR  has ecd/edge.sock and ecd/cloud.sock; without it they are
                   in /tmp/ecd-UID
  XDG_STATE_HOME   has ecd/chat_history, the lines typed in `ecdctl chat`;
                   default ~/.local/state
  NO_COLOR         set to anything: no colours

`ecdctl COMMAND --help` tells more about each command, `ecdctl completion --help` how a shell completes them.
""",
)
@click.version_option(__version__, prog_name="ecdctl")
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    default=lambda: default_socket("edge"),
    show_default="the edge's default socket",
    help="The daemon's control socket. A cloud's works too for status, stats, sessions, trace, top, drain.",
)
@click.pass_context
def cli(context: click.Context, socket: Path) -> None:
    """Talk to a running `ecd edge` or `ecd cloud` over its control socket.

    `run`, `chat` and `batch` ask an edge for the target's text. The others look at a daemon or steer it.
    """
    context.obj = socket


cli.add_command(completion)


@cli.command()
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


@cli.command()
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


@cli.command()
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


@cli.command()
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


@cli.command()
@_json
@click.pass_obj
def status(socket: Path, as_json: bool) -> None:
    """Is the daemon well, and its link up?

    An edge tells its models, the link's state and round-trip time, and the cloud's load; a cloud its model,
    where it listens, and what runs and waits. Without a link, `link.reason` says why.
    """
    with BlockingClient(socket) as client:
        _print(client.call("status"), as_json)


@cli.command()
@_json
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
@click.pass_obj
def stats(socket: Path, as_json: bool, watch: bool) -> None:
    """Counters since the daemon started.

    docs/PROTOCOL.md, section 11, has the meaning of each. An edge counts finished answers.
    """
    with BlockingClient(socket) as client:
        while True:
            counters = client.call("stats")
            if watch and not as_json and sys.stdout.isatty():
                click.clear()
            _print(counters, as_json)
            sys.stdout.flush()
            if not watch:
                return
            time.sleep(WATCH_S)


@cli.command()
@_json
@click.pass_obj
def sessions(socket: Path, as_json: bool) -> None:
    """What runs now, a line each: its number for `ecdctl cancel`, its state, its tokens."""
    with BlockingClient(socket) as client:
        result = client.call("sessions")
    if as_json:
        _print(result, as_json)
    for session in [] if as_json else result["sessions"]:
        click.echo("  ".join(f"{name} {value}" for name, value in session.items()))


@cli.command()
@click.argument("session", metavar="ID", type=int)
@_json
@click.pass_obj
def cancel(socket: Path, session: int, as_json: bool) -> None:
    """End the answer with number ID, at an edge; `ecdctl sessions` has the numbers.

    Whoever waits for the answer is told that it was cancelled.
    """
    with BlockingClient(socket) as client:
        _print(client.call("cancel", id=session), as_json)


@cli.command("set")
@click.argument("settings", metavar="NAME=VALUE", nargs=-1, required=True)
@_json
@click.pass_obj
def set_(socket: Path, settings: tuple[str, ...], as_json: bool) -> None:
    """Change settings of a running edge, for requests that come from here on.

    Names and values as in its file: mode, threshold, target_agreement, audit_share, objective, ahead_tokens,
    patience_ms, hint_tokens, kv_cache (true or false); `null` takes one back to none. All are changed, or
    none. Prints what holds now. Nothing is written to the file.

    \b
    Examples:
      ecdctl set mode=confident target_agreement=0.97
      ecdctl set mode=exact patience_ms=null
    """
    changes = dict(map(_setting, settings))
    with BlockingClient(socket) as client:
        _print(client.call("set", settings=changes), as_json)


def _setting(given: str) -> tuple[str, Any]:
    name, equals, text = given.partition("=")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise click.UsageError(f"{given!r}: the value is not YAML") from None
    if not equals or not isinstance(value, str | int | float | None):
        raise click.UsageError(f"{given!r} is not NAME=VALUE with a word, a number or null")
    return name, value


@cli.command()
@click.argument("session", metavar="ID", type=int)
@click.option(
    "--to",
    required=True,
    metavar="SOCKET|HOST[:PORT]",
    help="The other edge: its control socket, or where it listens for hand-overs.",
)
@_json
@click.pass_obj
def migrate(socket: Path, session: int, to: str, as_json: bool) -> None:
    """Hand the answer with number ID over to another edge, together with what the draft model knows of it.

    Whoever waits for the answer goes on reading it here. If the other edge fails, it is finished here.

    \b
    Example:
      ecdctl migrate 3 --to /run/user/1000/ecd/other.sock
    """
    # The daemon may run elsewhere in the file system.
    where = str(Path(to).absolute()) if "/" in to else to
    with BlockingClient(socket) as client:
        _print(client.call("migrate", id=session, to=where), as_json)


@cli.command()
@_json
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Examine an edge and its link, and say what to do.

    Looks at link, tokenizers, round trip, clocks and speeds, and says what drafting gives under them.
    An edge that has measured nothing yet is asked one prompt. Exit status 1 also says that something failed.
    """
    with BlockingClient(context.obj) as client:
        findings = examine(client, _foreseen)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings]))
    for finding in () if as_json else findings:
        click.echo(f"{finding.level:<8} {finding.about:<11} {harmless(finding.found)}")
        if finding.todo:
            click.echo(f"{'':<20} -> {finding.todo}")
    context.exit(EXIT_ERROR if any(finding.level is Level.FAILED for finding in findings) else 0)


def _foreseen(conditions: Mapping[str, Any]) -> str:
    from ecd.lab.plan import plan_for
    from ecd.lab.simulate import Regime

    regime = Regime(conditions["rtt_ms"], conditions["draft_ms"], conditions["step_ms"], conditions["slope"])
    return plan_for(regime, conditions["acceptance"]).verdict


@cli.command()
@click.argument("session", metavar="ID", type=int)
@_json
@click.pass_obj
def trace(socket: Path, session: int, as_json: bool) -> None:
    """What happened in the session with number ID, running or ended, event by event.

    Works with an edge's and with a cloud's socket; only the newest events of a daemon are kept. Each is
    shown with the seconds since the first, what the session's state machine was told, and what it answered.
    With --json it is a file for `ecd retrace`, which tells the machine the same again.

    \b
    Examples:
      ecdctl trace 17
      ecdctl --socket /run/ecd-cloud/cloud.sock trace 4 --json >trace.jsonl
    """
    entries: list[dict[str, Any]] = []
    with BlockingClient(socket) as client:
        head = client.call("trace", entries.append, id=session)
    if as_json:
        click.echo("\n".join(lines(head, entries)))
        return
    if not head["whole"]:
        click.echo("the first events are no longer kept", err=True)
    for entry in entries:
        said, answered = (_short(entry[name]) for name in ("args", "outcome"))
        click.echo(f"{entry['at'] - entries[0]['at']:10.4f}  {entry['event']:<14} {said} -> {answered}")


def _short(value: Any) -> str:
    text = json_line(value)
    return text if len(text) <= TRACE_WIDTH else text[: TRACE_WIDTH - 1] + "…"


@cli.command()
@_json
@click.pass_obj
def drain(socket: Path, as_json: bool) -> None:
    """Finish what runs, take nothing new, then end the daemon.

    Returns when the last answer is complete, however long that takes. SIGTERM does the same within `drain_s`.
    """
    with BlockingClient(socket) as client:
        _print(client.call("drain"), as_json)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json_line(result))
        return
    rows = _flat(result)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        shown = f"{value:.3f}" if isinstance(value, float) else "-" if value is None else value
        click.echo(f"{name:<{width}}  {shown}")


def _flat(result: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = []
    for name, value in result.items():
        lines += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return lines


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


def main() -> None:
    """Entry point of `ecdctl`."""
    run_program(cli, "ecdctl")


if __name__ == "__main__":
    main()
