"""The service with answers that the edge commits tokens to: without a cloud, and with one that compares."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Answer, Chunk
from ecd.edge.drafter import DraftTask, Prefill
from ecd.edge.meter import Meter
from ecd.edge.request import LinkLoss, Mode, Request
from ecd.edge.results import result_of
from ecd.edge.service import EdgeService
from ecd.errors import Code, ContextOverflow, EngineError, Overloaded
from ecd.sampling import Guess, Sampling
from ecd.wire.connection import Closed, Received
from ecd.wire.messages import Audit, Commit, Finish, Open, Reset, Tokens
from tests.edge.one_cloud import MadeUpLink, attach, connect

PROMPT = (90, 91)
END = 255
LIMIT_S = 10.0


class Sure:
    """Guesses 1, 2, 3, ... and is unsure of 3 and 6."""

    slots, branches, slot_tokens = 1, 1, 40

    def __init__(self) -> None:
        self.fails = False

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        if self.fails:
            raise RuntimeError("out of cells")
        token = len(tasks[0].context) - tasks[0].prompt_len + 1
        return [(Guess(token if token < 8 else END, 0.2 if token in (3, 6) else 0.9),)]

    def release(self, slot: int) -> None: ...

    def prefill(self, slot: int) -> Prefill:
        return Prefill()

    def stats(self) -> dict[str, int]:
        return {}

    def close(self) -> None: ...


class Edge:
    """A service, the frames that it sent, and its drafting task."""

    def __init__(self, *, connected: bool = True) -> None:
        self.drafter = Sure()
        link = MadeUpLink()
        link.connection.peer.features = ("commit", "prefix")
        self.sent = link.sent
        self.service = EdgeService(
            self.drafter,
            Acceptance(),
            Meter(),
            n_vocab=256,
            piece=lambda token: bytes([token % 128]),
            link_wait_s=9,
            ends=frozenset({END}),
        )
        uplinks = attach(self.service)
        (self.uplink,) = uplinks
        if connected:
            connect(uplinks, self.uplink, link)
        else:
            self.uplink.refused = "wrong token"
        self.drafting = asyncio.create_task(self.service.drafting.forever())

    def start(self, mode: Mode, prompt: tuple[int, ...] = PROMPT, **asked: Any) -> Answer:
        given: dict[str, Any] = {"mode": mode, "threshold": 0.5} | asked
        return self.service.start(Request(prompt, Sampling(), 20, **given))

    def hear(self, message: Any) -> None:
        self.service.on_event(self.uplink, Received(message, 10))


Make = Callable[..., Edge]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes edges, and ends them."""
    made: list[Edge] = []

    def make(**changes: Any) -> Edge:
        made.append(Edge(**changes))
        return made[-1]

    yield make
    for edge in made:
        edge.drafting.cancel()
        edge.service.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


async def end_of(answer: Answer) -> tuple[list[str], Any]:
    origins: list[str] = []
    async with asyncio.timeout(LIMIT_S):
        while True:
            match await answer.chunks.get():
                case Chunk() as chunk:
                    origins += chunk.origins
                case other:
                    return origins, other


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "refused by the cloud"])
async def test_edge_only_needs_no_cloud_and_sends_it_nothing(make: Make, connected: bool) -> None:
    edge = make(connected=connected)
    answer = edge.start(Mode.EDGE_ONLY)
    origins, outcome = await end_of(answer)
    assert outcome is Finish.STOP
    assert origins == ["edge-confident"] * 8
    assert answer.generation.committed == (1, 2, 3, 4, 5, 6, 7, END)
    assert edge.sent == []
    result = result_of(answer, Finish.STOP, {})
    assert (result["mode"], result["stats"]["wire_bytes_up"], result["stats"]["target_forwards"]) == (
        "edge-only",
        0,
        0,
    )


async def test_edge_only_needs_a_slot_and_a_text_that_fits_it(make: Make) -> None:
    edge = make()
    first = edge.start(Mode.EDGE_ONLY)
    with pytest.raises(Overloaded, match="all 1 drafting slots are in use, and mode edge-only needs one"):
        edge.start(Mode.EDGE_ONLY)
    with pytest.raises(ContextOverflow, match="the edge's context of 40"):
        edge.service.start(Request(PROMPT, Sampling(), 39, mode=Mode.EDGE_ONLY))
    await end_of(first)
    await end_of(edge.start(Mode.EDGE_ONLY))


async def test_edge_only_fails_with_its_drafter_and_confident_goes_on_without(make: Make) -> None:
    edge = make()
    edge.drafter.fails = True
    _, outcome = await end_of(edge.start(Mode.EDGE_ONLY))
    assert isinstance(outcome, EngineError)
    assert "the draft model failed: out of cells" in str(outcome)
    edge.start(Mode.CONFIDENT)
    await until(lambda: any(isinstance(message, Commit) for message in edge.sent))
    assert edge.sent[-2].limit == len(PROMPT) + 20


async def test_confident_takes_turns_and_its_audits_come_behind_the_end(make: Make) -> None:
    edge = make()
    answer = edge.start(Mode.CONFIDENT, audit_share=1.0)
    await until(lambda: len(edge.sent) > 1)
    opening, commit = edge.sent[:2]
    assert isinstance(opening, Open)
    assert (opening.limit, commit.ids, commit.limit, commit.audit) == (2, (1, 2), 5, 2)
    edge.hear(Audit(1, 2, b"\x01\x00", 1))
    edge.hear(Tokens(1, 4, (3,), 0, 0, 900))
    await until(lambda: sum(isinstance(message, Commit) for message in edge.sent) == 2)
    edge.hear(Tokens(1, 7, (6,), 0, 0, 900))
    origins, outcome = await end_of(answer)
    assert outcome is Finish.STOP
    assert origins == [
        *["edge-confident"] * 2,
        "target",
        *["edge-confident"] * 2,
        "target",
        *["edge-confident"] * 2,
    ]
    stats = result_of(answer, Finish.STOP, {})["stats"]
    assert (stats["handovers"], stats["audited"], stats["agreed"], stats["threshold"]) == (2, 2, 1, 0.5)
    # The last frames: what is left to compare, and when it has been, the end of the stream.
    assert (edge.sent[-1].ids, edge.sent[-1].audit) == ((7, END), 2)
    assert edge.service.answers == {}
    before = edge.service.totals.target_forwards
    edge.hear(Audit(1, 5, b"\x01\x01", 0))
    edge.hear(Audit(1, 8, b"\x01\x01", 1))
    assert isinstance(edge.sent[-1], Reset)
    assert edge.service.totals.target_forwards == before + 1
    assert edge.service.thresholds.told()["audited"] == 6
    edge.hear(Audit(1, 8, b"\x01", 1))
    assert edge.service.thresholds.told()["audited"] == 6, "the stream is forgotten"


async def test_without_a_slot_confident_is_the_clouds_text(make: Make) -> None:
    edge = make()
    edge.start(Mode.CONFIDENT)
    second = edge.start(Mode.CONFIDENT)
    assert second.generation.turns is None
    openings = [message for message in edge.sent if isinstance(message, Open)]
    assert [opening.limit for opening in openings] == [2, None]


async def test_where_confident_is_unsure_and_no_cloud_is_left_the_draft_goes_on_if_it_may(make: Make) -> None:
    edge = make()
    answer = edge.start(Mode.CONFIDENT, link_loss=LinkLoss.DEGRADE)
    edge.uplink.link = None
    edge.service.uplinks.fleet.closed(edge.uplink.key)
    edge.service.on_event(edge.uplink, Closed(Code.UNAVAILABLE, "gone"))
    await until(lambda: answer.generation.ahead == 1)
    assert answer.generation.committed == (1, 2)
    answer.waiting_since -= 5
    edge.service.tend()
    origins, finish = await end_of(answer)
    assert origins == ["edge-confident"] * 2 + ["edge-offline"] * 6
    assert finish is Finish.STOP


LONG = tuple(range(150))


async def test_the_next_turn_sends_what_the_cloud_was_not_told_even_if_it_never_said_a_word(
    make: Make,
) -> None:
    edge = make()
    edge.drafter.slot_tokens = 400
    prompt = LONG
    for known in (0, 128, 128):
        first = len(edge.sent)
        answer = edge.start(Mode.CONFIDENT, prompt, threshold=0.0, audit_share=0.0)
        await end_of(answer)
        opened, ended = edge.sent[first:]
        assert (type(opened), type(ended)) == (Open, Reset)
        assert opened.prefix_len == known == answer.generation.tally.prefix_tokens
        prompt = (*prompt, *answer.generation.committed, 7)


async def test_of_tokens_that_are_compared_the_cloud_keeps_none_before_it_has_said_so(make: Make) -> None:
    edge = make()
    edge.drafter.slot_tokens = 400
    prompt = LONG[:120]
    answer = edge.start(Mode.CONFIDENT, prompt, threshold=0.0, audit_share=1.0)
    await end_of(answer)
    stream, said = answer.generation.stream, (*prompt, *answer.generation.committed, 7)
    assert len(said) > 128
    *_, compared = edge.sent
    assert (type(compared), compared.audit) == (Commit, 8)

    def prefix_len() -> int:
        edge.service.cancel(edge.start(Mode.CONFIDENT, said).id)
        return [message for message in edge.sent if isinstance(message, Open)][-1].prefix_len

    assert prefix_len() == 64
    edge.hear(Audit(stream, len(prompt), bytes(8), 1))
    assert prefix_len() == 128


@pytest.mark.parametrize("ended", [False, True], ids=["while it runs", "when the edge has ended it"])
async def test_a_cloud_that_forgot_the_text_of_the_edges_tokens_gets_all_of_it(
    make: Make, ended: bool
) -> None:
    edge = make()
    edge.drafter.slot_tokens = 400
    await end_of(edge.start(Mode.CONFIDENT, LONG, threshold=0.0, audit_share=0.0))
    answer = edge.start(Mode.CONFIDENT, LONG, threshold=0.0 if ended else 0.5, audit_share=0.0)
    opened = [message for message in edge.sent if isinstance(message, Open)][-1]
    assert opened.prefix_len == 128
    if ended:
        await end_of(answer)
    else:
        await until(lambda: isinstance(edge.sent[-1], Commit))
    edge.hear(Reset(opened.stream, Code.UNKNOWN_PREFIX, "gone"))
    if ended:
        answer = edge.start(Mode.CONFIDENT, LONG)
    again = [message for message in edge.sent if isinstance(message, Open)][-1]
    assert (again.prompt, again.prefix_len) == (LONG, 0)
    assert again.committed == (() if ended else (1, 2))


async def test_what_a_cloud_did_not_take_it_does_not_know(make: Make) -> None:
    edge = make()
    edge.drafter.slot_tokens = 400
    answer = edge.start(Mode.CONFIDENT, LONG, audit_share=0.0)
    await until(lambda: isinstance(edge.sent[-1], Commit))
    edge.hear(Reset(answer.generation.stream, Code.CONTEXT_OVERFLOW, "too long"))
    edge.start(Mode.CONFIDENT, LONG)
    assert edge.sent[-1].prefix_len == 0


async def test_the_prompt_is_known_from_the_first_tokens_on_also_behind_an_audit(make: Make) -> None:
    edge = make()
    edge.drafter.slot_tokens = 400
    answer = edge.start(Mode.CONFIDENT, LONG, audit_share=1.0)
    await until(lambda: isinstance(edge.sent[-1], Commit))
    stream = answer.generation.stream
    edge.hear(Audit(stream, len(LONG), bytes(2), 1))
    edge.hear(Tokens(stream, len(LONG) + 2, (3,), 0, 0, 900, Finish.NONE))
    edge.start(Mode.EXACT, LONG)
    assert edge.sent[-1].prefix_len == 128
