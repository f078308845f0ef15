"""What `ecdctl` prints of what a daemon tells, where some of that is a peer's own words."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from ecd import ctl

HOSTILE, SHOWN = "\x1b]0;mine\x07\x9b2J", "\ufffd]0;mine\ufffd\ufffd2J"
ENTRY = {"at": 1.0, "event": "said", "args": [HOSTILE], "outcome": []}
TOLD: dict[str, dict[str, Any]] = {
    "status": {"target_model": {"name": HOSTILE}},
    "stats": {"model": HOSTILE},
    "sessions": {"sessions": [{"id": 1, "state": HOSTILE}]},
    "trace": {"whole": True},
}


class FakeDaemon:
    def call(self, name: str, emit: Callable[[Any], None] | None = None, **args: Any) -> dict[str, Any]:
        if emit is not None:
            emit(ENTRY)
        return TOLD[name]


@pytest.fixture(autouse=True)
def _daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def client(socket: object) -> Iterator[FakeDaemon]:
        yield FakeDaemon()

    monkeypatch.setattr(ctl, "BlockingClient", client)


@pytest.mark.parametrize("command", [["status"], ["stats"], ["sessions"], ["trace", "1"]])
def test_nothing_that_a_terminal_would_obey_is_printed(command: list[str]) -> None:
    result = CliRunner().invoke(ctl.cli, command, color=True, catch_exceptions=False)
    assert result.exit_code == 0
    assert not any(sign in result.output for sign in "\x1b\x07\x9b")
    # JSON writes the first two in ASCII itself.
    assert SHOWN in result.output or "\\u001b]0;mine\\u0007\\u009b2J" in result.output
