"""`ecdctl chat`: a conversation over the edge's control socket, on a terminal.

Owns the line editor, what is printed, and Ctrl-C. What a line means and what the conversation becomes is
ecd.terminal.conversation's, what is asked for is ecd.terminal.settings'.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from ecd.client import BlockingClient
from ecd.errors import BadRequest, EcdError
from ecd.options import run_arguments
from ecd.terminal.colour import coloured, harmless, key
from ecd.terminal.conversation import Broken, Command, Conversation, Say, Verb, understood
from ecd.terminal.settings import Settings, changed, told
from ecd.terminal.summary import answer_rows, broken_rows, table

HELP = """\
  /stats               what the last answer took, complete or not
  /config              the daemons, and what is asked of them
  /mode NAME=VALUE...  changes that for the answers to come: temperature=0.8 seed=7
                       max-tokens=400 objective=cost draft=off rounds=4, or short:
                       cost, greedy, no-draft; NAME= is the default again
  /new                 forgets the conversation
  /help                this
  /quit                leaves, as Ctrl-D does

  Ctrl-C cancels an answer; what was said of it stays in the conversation.
  Alt-Enter begins a new line. Up and down go through what was typed before,
  Ctrl-R searches it. //TEXT sends /TEXT."""


def history_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where typed lines are kept: under XDG_STATE_HOME, by default ~/.local/state."""
    state = environment.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "ecd" / "chat_history"


def chat(socket: Path, settings: Settings, *, colour: bool) -> None:
    """Talks until /quit or Ctrl-D. Raises DaemonError, or BadRequest for a daemon that is not an edge."""
    click.echo(harmless(_greeting(_status(socket))))
    if colour:
        click.echo(key())
    editor: PromptSession[str] = PromptSession(history=_history(history_file()), key_bindings=_keys())
    session = _Chat(socket, settings, colour)
    while not session.over:
        try:
            session.hear(editor.prompt("> "))
        except EOFError:
            return
        except KeyboardInterrupt:
            click.echo("(/quit or Ctrl-D leaves)")
        except EcdError as e:
            click.echo(f"error: {e}", err=True)
        except click.UsageError as e:
            click.echo(f"error: {e.format_message()}", err=True)


@dataclass(slots=True)
class _Chat:
    """What the next line is heard with: settings and conversation, which lines change."""

    socket: Path
    settings: Settings
    colour: bool
    talk: Conversation = field(default_factory=Conversation)
    over: bool = False

    def hear(self, line: str) -> None:
        """Does what a line asks for. Raises EcdError or click's usage error, and then nothing has changed."""
        match understood(line):
            case None:
                pass
            case Say(question):
                self._ask(question)
            case Command(verb, rest):
                self._obey(verb, rest)
            case never:
                assert_never(never)

    def _obey(self, verb: Verb, rest: str) -> None:
        match verb:
            case Verb.CONFIG:
                click.echo(harmless(table([*_daemons(self.socket), *told(self.settings)])))
            case Verb.HELP:
                click.echo(HELP)
            case Verb.MODE:
                self.settings = changed(self.settings, rest)
                click.echo(table(told(self.settings)))
            case Verb.NEW:
                self.talk = Conversation()
                click.echo("(a new conversation)")
            case Verb.QUIT:
                self.over = True
            case Verb.STATS:
                click.echo(_took(self.talk.last))
            case never:
                assert_never(never)

    def _ask(self, question: str) -> None:
        """Asks, and prints the answer as it comes. Ctrl-C or an error ends it; what was said of it stays."""
        pieces: list[str] = []
        origins: list[str] = []
        result: dict[str, Any] | None = None
        # Of an answer without a result, unless there is an error.
        reason = "Ctrl-C"
        try:
            # A connection for each answer: closing it cancels the answer, whatever Ctrl-C interrupted.
            with BlockingClient(self.socket) as client:
                for event in client.stream(self.talk.asking(question), **run_arguments(**self.settings)):
                    match event["event"]:
                        case "started" if event["link"] != "connected":
                            click.echo("(waiting for the link to the cloud)", err=True)
                        case "text":
                            pieces.append(event["text"])
                            origins += event["origins"]
                            shown = coloured(event) if self.colour else harmless(event["text"])
                            click.echo(shown, nl=False)
                        case "done":
                            result = event
            click.echo()
            if result and result["finish_reason"] == "length":
                click.echo(f"(cut at max-tokens {result['max_tokens']}; /mode max-tokens=N allows more)")
        except EcdError as e:
            reason = f"an error: {e}"
            click.echo(f"\nerror: {e}", err=True)
        except KeyboardInterrupt:
            click.echo("\n(cancelled)")
        click.echo()
        took = result or Broken(reason, tuple(origins))
        self.talk = self.talk.answered(question, "".join(pieces), took)


def _took(last: dict[str, Any] | Broken | None) -> str:
    match last:
        case None:
            return "(no answer yet)"
        case Broken(reason, origins):
            return harmless(table(broken_rows(origins, reason)))
        case result:
            return table(answer_rows(result))


def _status(socket: Path) -> dict[str, Any]:
    with BlockingClient(socket) as client:
        status = client.call("status")
    if status["role"] != "edge":
        raise BadRequest(f"{socket} is a cloud's socket; chat needs an edge's, name that with --socket")
    return status


def _greeting(status: Mapping[str, Any]) -> str:
    link, target = status["link"], status["target_model"].get("name", "the model")
    state = "" if link["state"] == "connected" else f" ({link['state']}: {link['reason'] or 'not told why'})"
    return f"{target} at {link['cloud']}{state}, {status['draft_model']} drafts for it. /help for help."


def _daemons(socket: Path) -> list[tuple[str, str]]:
    status = _status(socket)
    link = status["link"]
    return [
        ("socket", str(socket)),
        ("target", str(status["target_model"].get("name", "not known yet"))),
        ("draft", status["draft_model"]),
        ("link", f"{link['state']} to {link['cloud']}"),
    ]


def _history(file: Path) -> History:
    """Lines typed before, for this user alone; of this session only where the file cannot be written."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(file)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
