"""Sessions told again from their traces: both real state machines, in a world with any link and faults."""

import asyncio
import itertools
import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings

from ecd.cloud.overheard import begun as session_begun
from ecd.cloud.session import Session
from ecd.edge.acceptance import Acceptance
from ecd.edge.generation import Generation
from ecd.edge.overheard import begun as generation_begun
from ecd.edge.request import Request
from ecd.edge.survival import EDGE_MEMORY, Survival
from ecd.errors import BadRequest, ProtocolError
from ecd.journal import Journal, Ring
from ecd.sampling import Rule, Sampling
from ecd.tracing import GENERATION, SESSION, lines, retrace, tell_trace
from ecd.wire.messages import Alternate, Draft, Open, Pace, Tokens
from tests.edge.test_exchange import AROUND, LONG, REQUESTS, Circumstances, World
from tests.toy import VOCABULARY

# What machines are asked that changes nothing, or is done to them by their owners' hands.
READS = {
    # Where the edge commits, nothing is noted.
    Generation: {"next_timer", "audited", "go_on_alone"},
    Session: {"of", "ready_at", "hinted", "may_verify", "begin"},
}


@dataclass
class Noted(World):
    """An answer whose machines keep journals, at an edge where others learn at the same time."""

    ring: Ring = field(default_factory=lambda: Ring(itertools.count().__next__))
    arrived: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        slot = 0 if self.request.draft else None
        self.g = generation_begun(Journal(self.ring, 0), self.request, slot, self.acceptance, self.survival)

    def happen(self, event: str, *what: Any) -> None:
        right = self.rng.random() < 0.5
        self.acceptance.settle("model", self.rng.random(), right)
        self.survival.settle(self.rng.randrange(8), right)
        super().happen(event, *what)

    def arrive(self, message: Open | Draft) -> None:
        if isinstance(message, Open):
            self.arrived.append(message.stream)
            journal = Journal(self.ring, message.stream)
            self.batcher.add(
                message.stream,
                session_begun(journal, message, VOCABULARY, self.around.max_ahead, self.now),
            )
        else:
            super().arrive(message)


def traced(ring: Ring, session: int, machine: str) -> str:
    """The file of `ecdctl trace --json`."""
    entries: list[dict[str, Any]] = []

    async def emit(entry: dict[str, Any]) -> None:
        entries.append(entry)

    head = asyncio.run(tell_trace(ring, machine, {"id": session}, emit))
    return "\n".join(lines(head, entries))


@settings(max_examples=25, deadline=None)
@given(REQUESTS, AROUND)
def test_the_same_events_bring_the_same_commands(asked: Request, around: Circumstances) -> None:
    for sampling in (asked.sampling, Sampling(Rule.REJECTION, 4, 0.9, top_k=4)):
        world = Noted(replace(asked, sampling=sampling), around).run()
        for session in (0, *world.arrived):
            events, difference = retrace(traced(world.ring, session, SESSION if session else GENERATION))
            assert difference is None
            assert events >= 1


@pytest.fixture
def world() -> Noted:
    asked = Request((1, 2), LONG.sampling, 24, stop=("zz",))
    return Noted(asked, Circumstances(cuts=(0.2,))).run()


def changed(trace: str, event: str, change: Any) -> str:
    """The same with the first such event changed."""
    head, *entries = [json.loads(line) for line in trace.splitlines()]
    change(next(entry for entry in entries if entry["event"] == event))
    return "\n".join(lines(head, entries))


@pytest.mark.parametrize(
    ("session", "event", "change"),
    [
        (0, "receive", lambda entry: entry["outcome"][0]["Emit"].update(ids=[5])),
        (0, "receive", lambda entry: entry["args"]["message"].update(base=77)),
        (0, "drafted", lambda entry: entry["args"].update(results=[])),
        (0, "steer", lambda entry: entry["heard"].append(0.5)),
        (1, "judged", lambda entry: entry["args"]["verdict"].update(tokens=[3, 3, 3])),
        (1, "turn_to", lambda entry: entry["outcome"].append({})),
    ],
)
def test_what_is_not_the_same_is_found(world: Noted, session: int, event: str, change: Any) -> None:
    trace = traced(world.ring, session, SESSION if session else GENERATION)
    _, difference = retrace(changed(trace, event, change))
    assert difference is not None
    assert difference.event == event
    assert difference.recorded != difference.replayed or event == "steer"


def test_a_mistake_is_noted_with_its_words(world: Noted) -> None:
    asked = Request((1, 2), Sampling(), 4)
    ring = Ring(itertools.count().__next__)
    generation = generation_begun(Journal(ring, 0), asked, None, Acceptance(), Survival(EDGE_MEMORY))
    generation.open(1, 8, alternates=False, conditions=None, now=0.0)
    with pytest.raises(ProtocolError):
        generation.receive(Tokens(1, 9, (3,), 0, 0, 100), 1.0)
    trace = traced(ring, 0, GENERATION)
    assert json.loads(trace.splitlines()[-1])["outcome"]["error"] == "PROTOCOL"
    assert retrace(trace) == (3, None)


def test_only_the_newest_events_are_kept() -> None:
    asked = replace(LONG, max_tokens=24)
    ring = Ring(itertools.count().__next__, size=40)
    Noted(asked, Circumstances(), ring=ring).run()
    trace = traced(ring, 0, GENERATION)
    assert json.loads(trace.splitlines()[0])["whole"] is False
    with pytest.raises(BadRequest, match="no longer kept"):
        retrace(trace)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda head, entries: head.update(machine="other"), "no machine 'other'"),
        (lambda head, entries: head.update(events=3), "3 events, and has"),
        (lambda head, entries: head.pop("whole"), "no trace"),
        (lambda head, entries: entries[1].update(event="__init__"), "'__init__' is none of Generation's"),
        (lambda head, entries: entries[1].update(event="committed"), "'committed' is none"),
        (lambda head, entries: entries[1]["args"].update(now="soon"), "now of open is not what it takes"),
        (lambda head, entries: entries[1]["args"].update(extra=1), "open takes no extra"),
        (lambda head, entries: entries[1].pop("heard"), "no entry of a trace"),
    ],
)
def test_what_is_no_trace_is_refused(world: Noted, change: Any, said: str) -> None:
    head, *entries = [json.loads(line) for line in traced(world.ring, 0, GENERATION).splitlines()]
    change(head, entries)
    with pytest.raises(BadRequest, match=said):
        retrace("\n".join(lines(head, entries)))


def test_an_unknown_session_is_said(world: Noted) -> None:
    with pytest.raises(BadRequest, match="nothing is kept of session 99"):
        traced(world.ring, 99, SESSION)
    with pytest.raises(BadRequest, match="no trace"):
        retrace("{")


def test_token_ids_weigh_too() -> None:
    """Long prompts, and frames stuffed with ids, push out others as the memory they take."""
    ring = Ring(itertools.count().__next__, size=1000)
    for number in range(3):
        asked = Request(tuple(range(6400)), Sampling(), 4)
        generation_begun(Journal(ring, number), asked, None, Acceptance(), Survival(EDGE_MEMORY))
    assert [len(ring.entries(number)) for number in range(3)] == [0, 1, 1]
    opened = Open(1, None, 0, (1, 2), (), {"rule": "greedy"}, 16, (), Pace(0, 1))
    session = session_begun(Journal(ring, 9), opened, VOCABULARY, 8, 0.0)
    for _ in range(4):
        session.hint(Draft(1, 2, 2, (3,) * 3200, alternates=(Alternate(2, (1,) * 3200),)))
    assert len(ring.entries(9)) == 2


@pytest.mark.parametrize("machine", [Generation, Session])
def test_whatever_may_change_a_machine_is_noted(machine: type) -> None:
    """A method that is not would make its traces lie."""
    methods = {
        name: value
        for name, value in vars(machine).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, classmethod))
    }
    assert {name for name, value in methods.items() if not hasattr(value, "untold")} == READS[machine]
