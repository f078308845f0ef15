"""What a chat tells of answers that were not completed; tests/test_terminal.py has whole chats."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecd.errors import Code, RemoteError
from ecd.terminal import chat as chat_module
from ecd.terminal.chat import _Chat

SETTINGS: dict[str, Any] = {"logit_bias": (), "stop": (), "patience_ms": None, "rounds": None}
TEXT = {"event": "text", "text": "1, 2", "origins": ["target", "draft-accepted"], "ids": [1, 2]}


class BrokenClient:
    """An edge whose answers end as the test wants."""

    ending: BaseException

    def __init__(self, socket: Path):
        pass

    def __enter__(self) -> "BrokenClient":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stream(self, *_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        yield {"event": "started", "link": "connected"}
        yield TEXT
        raise self.ending


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        (KeyboardInterrupt(), "ended by  Ctrl-C"),
        (RemoteError(Code.ENGINE, "it\x1b broke"), "ended by  an error: it\N{REPLACEMENT CHARACTER} broke"),
    ],
)
def test_stats_of_an_answer_that_was_not_completed(
    ending: BaseException, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chat_module, "BlockingClient", BrokenClient)
    monkeypatch.setattr(BrokenClient, "ending", ending, raising=False)
    chat = _Chat(Path("edge.sock"), SETTINGS, colour=False)
    chat.hear("/stats")
    assert capsys.readouterr().out == "(no answer yet)\n"
    chat.hear("Count.")
    capsys.readouterr()
    chat.hear("/stats")
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert rows[:3] == ["tokens 2", " ".join(told.split()), "origins target 1, draft-accepted 1"]
