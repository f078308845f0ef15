"""What is counted of an answer, with daemons that only tell their counters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ecd.lab.ablation import running
from ecd.lab.ablation.conversations import Conversation, Turn
from ecd.lab.ablation.records import Answer, Asked
from ecd.lab.ablation.running import Counts, Pair, converse, wait_until_idle
from ecd.lab.system import DaemonProcess

ASKED = Asked("mine", 0, 0)


class Telling(DaemonProcess):
    """Tells one state after another, and at last the same again and again."""

    def __init__(self, role: str, states: Sequence[dict[str, Any]]):
        super().__init__(role, [], Path("/nowhere"))
        self.states = list(states)

    def call(self, verb: str, **args: Any) -> dict[str, Any]:
        assert verb == "stats"
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


def cloud(sessions: int, forwards: int, idle: bool = True) -> dict[str, Any]:
    return {"sessions": sessions, "forwards": forwards, "idle": idle}


def edge(audited: int = 0, agreed: int = 0, running: int = 0) -> dict[str, Any]:
    return {"confident": {"audited": audited, "agreed": agreed}, "running": running}


def test_the_pair_is_idle_when_what_was_opened_has_come_and_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "POLL_S", 0.0)
    clouds = [cloud(3, 40), cloud(4, 40, idle=False), cloud(4, 42, idle=False), cloud(4, 43)]
    edges = [edge(running=1), edge(), edge(8, 6)]
    pair = Pair(Telling("cloud", clouds), Telling("edge", edges), {})
    assert wait_until_idle(pair, sessions=4) == Counts(4, 43, 8, 6)


@pytest.mark.parametrize(("wire_bytes", "forwards", "audited"), [(90, 7, 16), (0, 0, 0)])
def test_an_answer_has_what_was_done_for_it_after_its_end_too(
    wire_bytes: int, forwards: int, audited: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "POLL_S", 0.0)
    monkeypatch.setattr(
        running, "_answered", lambda pair, messages: (Answer(text="x", wire_bytes=wire_bytes), {})
    )
    sessions = 1 + (wire_bytes > 0)
    clouds = [cloud(1, 5), cloud(sessions, 9, idle=False), cloud(sessions, 5 + forwards)]
    edges = [edge(4, 3), edge(4, 3), edge(4 + audited, 3 + audited // 2)]
    pair = Pair(Telling("cloud", clouds), Telling("edge", edges), {})
    exchange = converse(pair, ASKED, Conversation("", (Turn("Why?"),)), lambda result: None)
    assert exchange.answers == (
        Answer(
            text="x", wire_bytes=wire_bytes, forwards=forwards, audited=audited, audits_agreed=audited // 2
        ),
    )
