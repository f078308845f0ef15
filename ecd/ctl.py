"""`ecdctl`: talk to a running daemon over its control socket."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from ecd import __version__
from ecd.client import BlockingClient
from ecd.config import default_socket
from ecd.options import parse_bias, prompt_text, run_program, sampling_options

WATCH_S = 1.0

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ecdctl")
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    default=lambda: default_socket("edge"),
    show_default="the edge's default socket",
    help="The daemon's control socket; a cloud's works too, for all but `run` and `cancel`.",
)
@click.pass_context
def cli(context: click.Context, socket: Path) -> None:
    """Talk to a running `ecd edge` or `ecd cloud`."""
    context.obj = socket


@cli.command()
@click.argument("prompt")
@sampling_options
@click.option("--draft/--no-draft", default=True, help="Without drafts it is plain streaming from the cloud.")
@click.option(
    "--objective",
    type=click.Choice(["latency", "balanced", "cost"]),
    default=None,
    help="What to pace for.  [default: the edge's]",
)
@click.option(
    "--patience-ms", type=float, default=None, help="How long the cloud may hold a step back for hints."
)
@click.option(
    "--rounds", type=click.IntRange(1, 64), default=None, help="Strict draft-verify rounds of so many hints."
)
@click.pass_obj
def run(
    socket: Path,
    /,
    prompt: str,
    as_json: bool,
    logit_bias: tuple[str, ...],
    patience_ms: float | None,
    rounds: int | None,
    **args: Any,
) -> None:
    """Answer PROMPT, streaming the text as it comes. PROMPT `-` reads standard input."""
    args |= {"logit_bias": parse_bias(logit_bias), "stop": list(args["stop"]), "patience_ms": patience_ms}
    if rounds is not None:
        args |= {"patience_ms": "rounds", "hint_tokens": rounds, "ahead_tokens": rounds}
    with BlockingClient(socket) as client:
        for event in client.stream(prompt_text(prompt), **args):
            match event.pop("event"):
                case "started" if event["link"] != "connected":
                    click.echo("waiting for the link to the cloud; `ecdctl status` says why", err=True)
                case "text" if not as_json:
                    click.echo(event["text"], nl=False)
                    sys.stdout.flush()
                case "done":
                    click.echo(json.dumps(event, ensure_ascii=False) if as_json else "")


@cli.command()
@_json
@click.pass_obj
def status(socket: Path, as_json: bool) -> None:
    """Is the daemon well, and its link up?"""
    with BlockingClient(socket) as client:
        _print(client.call("status"), as_json)


@cli.command()
@_json
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
@click.pass_obj
def stats(socket: Path, as_json: bool, watch: bool) -> None:
    """Counters since the daemon started."""
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
    """What runs now."""
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
    """End the session with number ID."""
    with BlockingClient(socket) as client:
        _print(client.call("cancel", id=session), as_json)


@cli.command()
@_json
@click.pass_obj
def drain(socket: Path, as_json: bool) -> None:
    """Finish what runs, take nothing new, then end the daemon."""
    with BlockingClient(socket) as client:
        _print(client.call("drain"), as_json)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    for name, value in _flat(result):
        shown = f"{value:.3f}" if isinstance(value, float) else "-" if value is None else value
        click.echo(f"{name:<32} {shown}")


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
