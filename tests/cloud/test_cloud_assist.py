"""The cloud's side of an assist: what is refused, whose turn it is, and what is forgotten."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ecd.cloud.assist import MAX_WAITING, MOST_BACKLOG, Assist
from ecd.pages import RUN_TOKENS, Encoding, unpack
from ecd.wire.link import Link
from ecd.wire.messages import Credit, Kv, KvOp
from ecd.wire.transfer import CHUNK_BYTES, Wanted
from tests.pages_talk import SHAPE, Reader, cells_of

TOKENS = tuple(range(1, 1001))
EVERYTHING = 1 << 20


class Edge:
    """A link to an edge that is the test."""

    peername = "an edge"
    connection = SimpleNamespace(tenant="berlin")

    def __init__(self) -> None:
        self.frames: asyncio.Queue[Kv] = asyncio.Queue()

    def send(self, message: Any) -> int:
        self.frames.put_nowait(message)
        return 1

    @property
    def link(self) -> Link:
        return cast(Link, self)


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
async def assist(reader: Reader) -> AsyncIterator[Assist]:
    assist = Assist(reader)
    task = asyncio.create_task(assist.run_forever())
    async with asyncio.timeout(10):
        yield assist
    task.cancel()
    assist.close()


def want(last: int = len(TOKENS), **changes: Any) -> Kv:
    wanted = Wanted(SHAPE.model, last, Encoding.F16, lambda first, last: 1 << 30)
    return replace(wanted.ask(1), **({"chunks": EVERYTHING} | changes))


async def test_the_pages_are_those_of_the_prompt(assist: Assist, reader: Reader) -> None:
    edge = Edge()
    wanted = Wanted(SHAPE.model, 1000, Encoding.F16, lambda a, b: SHAPE.most_bytes(Encoding.F16, a, b))
    assist.on_message(edge.link, wanted.ask(1), TOKENS)
    while not wanted.complete:
        if run := wanted.receive(await edge.frames.get(), 0.0):
            cells = unpack(SHAPE, Encoding.F16, run.first, run.last, run.data)
            assert (cells == cells_of(TOKENS, run.first, run.last)).all()
        if credit := wanted.grant(1):
            assist.on_message(edge.link, credit, TOKENS)
    assert assist.load()["assist_waiting"] == 0
    assert set(reader.tenants) == {"berlin"}


@pytest.mark.parametrize(
    "bad",
    [
        {"model": b"x" * 16},
        {"encoding": "f32"},
        {"first": 1000},
        {"last": 1001},
        {"last": (1 << 32) - 1},
    ],
    ids=str,
)
async def test_what_it_does_not_have_is_refused_with_a_drop(
    assist: Assist, reader: Reader, bad: dict[str, Any]
) -> None:
    edge = Edge()
    assist.on_message(edge.link, want(**bad), TOKENS)
    assert (await edge.frames.get()).op is KvOp.DROP
    assert reader.asked == []


async def test_more_than_a_model_holds_is_refused(assist: Assist) -> None:
    edge = Edge()
    assist.on_message(edge.link, want(last=Reader.context_tokens + 1), range(1, 6000))
    assert (await edge.frames.get()).op is KvOp.DROP


async def test_a_second_question_on_a_stream_is_refused(assist: Assist) -> None:
    edge = Edge()
    assist.on_message(edge.link, want(), TOKENS)
    assist.on_message(edge.link, want(), TOKENS)
    assert edge.frames.get_nowait().op is KvOp.DROP


async def test_so_many_may_wait_and_no_more(assist: Assist) -> None:
    edges = [Edge() for _ in range(MAX_WAITING + 1)]
    for edge in edges:
        assist.on_message(edge.link, want(), TOKENS)
    assert [edge.frames.qsize() for edge in edges] == [0] * MAX_WAITING + [1]
    assert assist.load()["assist_waiting"] == MAX_WAITING * len(TOKENS)
    assert edges[-1].frames.get_nowait().op is KvOp.DROP


async def test_turns_are_taken_and_places_are_given_on(assist: Assist, reader: Reader) -> None:
    edges = [Edge() for _ in range(3)]
    for edge in edges:
        assist.on_message(edge.link, want(last=2 * RUN_TOKENS), TOKENS)
    for edge in edges:
        while (frame := await edge.frames.get()).last < 2 * RUN_TOKENS or frame.chunk + 1 < frame.chunks:
            assert frame.op is KvOp.PAGES
    first, second = (0, RUN_TOKENS), (RUN_TOKENS, 2 * RUN_TOKENS)
    # Two places: the third waits until one of them is free, and is next then.
    assert reader.asked == [first, first, second, first, second, second]


async def test_without_credit_little_is_made(assist: Assist, reader: Reader) -> None:
    edge, other = Edge(), Edge()
    assist.on_message(edge.link, want(chunks=0), TOKENS)
    assist.on_message(other.link, want(last=RUN_TOKENS), TOKENS)
    while (frame := await other.frames.get()).chunk + 1 < frame.chunks:
        pass
    run_chunks = -(-SHAPE.most_bytes(Encoding.F16, 0, RUN_TOKENS) // CHUNK_BYTES)
    assert len(reader.asked) <= 2 + MOST_BACKLOG // run_chunks + 1
    assert edge.frames.empty()
    assist.on_message(edge.link, Credit(1, CHUNK_BYTES), TOKENS)
    assert edge.frames.qsize() == 1


async def test_what_is_not_wanted_any_more_is_not_made(assist: Assist, reader: Reader) -> None:
    edge = Edge()
    question = want()
    assist.on_message(edge.link, question, TOKENS)
    await edge.frames.get()
    assist.on_message(edge.link, replace(question, op=KvOp.DROP), TOKENS)
    assert assist.load()["assist_waiting"] == 0
    # Its place is another's now, on the same stream too.
    assist.on_message(edge.link, question, TOKENS)
    while (frame := await edge.frames.get()).last < len(TOKENS):
        assert frame.op is KvOp.PAGES


async def test_a_reader_that_breaks_ends_one_job(assist: Assist, reader: Reader) -> None:
    reader.fails_from = RUN_TOKENS
    edge, other = Edge(), Edge()
    assist.on_message(edge.link, want(), TOKENS)
    assist.on_message(other.link, want(last=100), TOKENS)
    while (await edge.frames.get()).op is not KvOp.DROP:
        pass
    assert (await other.frames.get()).op is KvOp.PAGES
