"""`ecdctl`: talk to a running daemon over its control socket.

Owns the commands that look at a daemon and steer it. Those that people watch are in `ecd.terminal.commands`.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import yaml

from ecd import __version__
from ecd.client import BlockingClient
from ecd.config import default_socket
from ecd.options import EXIT_ERROR, EXIT_STATUS, HELP_WIDTH, run_program
from ecd.terminal.colour import harmless, json_line
from ecd.terminal.commands import batch, chat, run, top
from ecd.terminal.completion import completion
from ecd.terminal.doctor import Level, examine
from ecd.tracing import lines

WATCH_S = 1.0
# Of each half of a line of `trace`.
TRACE_WIDTH = 160

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


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


for _command in (run, chat, batch, top, completion):
    cli.add_command(_command)


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
        click.echo(harmless("  ".join(f"{name} {value}" for name, value in session.items())))


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
    patience_ms, hint_tokens, kv_cache (true or false), link_loss; `null` takes one back to none. All are
    changed, or none. Prints what holds now. Nothing is written to the file.

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
    Answers in modes confident and edge-only, where the edge commits tokens itself, are refused.

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
        # A cloud's name for its model, for one, is its own.
        click.echo(harmless(f"{name:<{width}}  {shown}"))


def _flat(result: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = []
    for name, value in result.items():
        lines += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return lines


def main() -> None:
    """Entry point of `ecdctl`."""
    run_program(cli, "ecdctl")


if __name__ == "__main__":
    main()
