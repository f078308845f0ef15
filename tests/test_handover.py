"""Answers that move from one edge to another in the middle: real sockets, engines without models."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ecd.config import EdgeConfig
from ecd.edge.answer import Answer, Chunk, OtherEdge
from ecd.edge.handing import Handing, socket_of
from ecd.edge.request import Request
from ecd.edge.run_args import AnswerSettings
from ecd.edge.service import EdgeService
from ecd.edge.taking import Taking, handover, showing
from ecd.errors import BadRequest, Code, EcdError, LinkError, RemoteError
from ecd.sampling import Sampling
from ecd.wire.connection import Role
from ecd.wire.link import Link
from ecd.wire.messages import Kv
from tests.pages_talk import EDGE, SHAPE, SlowDrafter, a_cloud, an_edge, connected, running, text_behind

PROMPT = tuple(n % 250 + 1 for n in range(700))
TOKENS = 120
BEFORE = 20


@dataclass
class Pair:
    """Two edges of one cloud; an answer begins at `here`."""

    here: EdgeService
    there: EdgeService
    here_drafts: SlowDrafter
    there_drafts: SlowDrafter
    handing: Handing
    taking: Taking
    socket: str
    port: int

    def start(self, max_tokens: int = TOKENS) -> Answer:
        return self.here.start(Request(PROMPT, Sampling(), max_tokens))

    def taken(self) -> Answer:
        (answer,) = self.there.answers.values()
        return answer


@contextlib.asynccontextmanager
async def pair(folder: Path, **other: Any) -> AsyncIterator[Pair]:
    cloud = a_cloud()
    server = await asyncio.get_running_loop().create_server(cloud.protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    drafters = SlowDrafter(0.001), SlowDrafter(0.001)
    here, there = (an_edge(drafter, port) for drafter in drafters)
    taking = Taking(there, replace(EDGE, role=Role.CLOUD, **other), AnswerSettings())
    handing = Handing(here, EDGE, insecure=False)
    config = EdgeConfig(model="m", socket=folder / "there.sock", handover="127.0.0.1:0")
    jobs = [
        job for edge in (here, there) for job in (edge.drafting.forever, edge.tend_forever, edge.uplinks.keep)
    ]
    async with running(cloud.step_forever, *jobs), handover(config, taking) as listening:
        await connected(here)
        await connected(there)
        yield Pair(here, there, *drafters, handing, taking, str(config.socket), listening)
        for service in (here, there, cloud):
            service.stop()
    for service in (here, there, cloud):
        service.close()
    server.close()


class Reading:
    """A client that reads an answer; what it gets must be the target's text, no token lost, none twice."""

    def __init__(self, answer: Answer):
        self.answer = answer
        self.ids: list[int] = []

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20.0):
            while len(self.ids) < count:
                chunk = await self.answer.chunks.get()
                assert isinstance(chunk, Chunk), chunk
                self.ids += chunk.ids

    async def to_the_end(self) -> None:
        await self.until(self.answer.generation.request.max_tokens)
        assert tuple(self.ids) == text_behind(PROMPT, self.answer.generation.request.max_tokens)


@pytest.mark.parametrize("by_socket", [True, False], ids=["socket", "address"])
async def test_the_stream_goes_on_and_the_draft_with_it(tmp_path: Path, by_socket: bool) -> None:
    async with pair(tmp_path) as p:
        reading = Reading(p.start())
        await reading.until(BEFORE)
        to = p.socket if by_socket else f"127.0.0.1:{p.port}"
        assert await p.handing.migrate(reading.answer.id, to) == {"migrated": reading.answer.id, "to": to}
        taken = p.taken()
        assert p.here.answers == {reading.answer.id: reading.answer}
        await reading.to_the_end()
        # All but a few tokens came as pages, and guesses were made behind them.
        (pages,) = p.there_drafts.puts
        assert pages >= len(PROMPT)
        assert p.there_drafts.read_here < TOKENS + 200
        assert taken.generation.tally.accepted
        assert p.here.answers == {}
        assert p.here.totals.finished == 1
        assert p.there.totals.failed == 0


async def test_an_edge_that_dies_gives_the_answer_back(tmp_path: Path) -> None:
    async with pair(tmp_path) as p:
        reading = Reading(p.start())
        await reading.until(BEFORE)
        await p.handing.migrate(reading.answer.id, p.socket)
        await reading.until(2 * BEFORE)
        assert isinstance(reading.answer.at, OtherEdge)
        reading.answer.link.abort()
        await reading.to_the_end()
        assert reading.answer.cloud is not None
        assert reading.answer.generation.tally.resumed == 2
        assert p.there.totals.cancelled == 1


async def test_there_and_further(tmp_path: Path) -> None:
    """An answer that has come back moves a second time."""
    async with pair(tmp_path) as p:
        reading = Reading(p.start())
        for count in (BEFORE, 2 * BEFORE):
            await reading.until(count)
            await p.handing.migrate(reading.answer.id, p.socket)
            assert isinstance(reading.answer.at, OtherEdge)
            await reading.until(count + 5)
            reading.answer.link.abort()
            async with asyncio.timeout(5):
                while isinstance(reading.answer.at, OtherEdge) or p.there.answers:
                    await asyncio.sleep(0.005)
        await reading.to_the_end()


async def test_who_takes_nothing_new_is_not_handed_anything(tmp_path: Path) -> None:
    async with pair(tmp_path) as p:
        reading = Reading(p.start())
        await reading.until(BEFORE)
        p.there.draining = True
        with pytest.raises(RemoteError, match="draining") as told:
            await p.handing.migrate(reading.answer.id, p.socket)
        assert told.value.code is Code.UNAVAILABLE
        await reading.to_the_end()


async def test_who_speaks_another_language_is_not_handed_anything(tmp_path: Path) -> None:
    other = replace(EDGE.fingerprint, n_vocab=999)
    async with pair(tmp_path, fingerprint=other) as p:
        reading = Reading(p.start())
        await reading.until(BEFORE)
        with pytest.raises(EcdError, match="tokenizer"):
            await p.handing.migrate(reading.answer.id, p.socket)
        assert reading.answer.cloud is not None
        await reading.to_the_end()
        assert reading.answer.generation.tally.resumed == 0


async def test_who_does_not_show_the_same_token_is_not_let_in(tmp_path: Path) -> None:
    async with pair(tmp_path, identify=showing("another")) as p:
        reading = Reading(p.start())
        await reading.until(BEFORE)
        with pytest.raises(EcdError, match="set the same at both"):
            await p.handing.migrate(reading.answer.id, p.socket)
        await reading.to_the_end()


def test_a_token_is_compared_as_it_is() -> None:
    assert showing("t")(b"t") == showing(None)(None) == showing(None)(b"t") == ""
    for shown in (None, b"", b"T", b"t "):
        with pytest.raises(EcdError, match="its own `token`"):
            showing("t")(shown)


@pytest.mark.parametrize("to", ["/nowhere/edge.sock", "127.0.0.1:1"])
async def test_where_there_is_no_edge(tmp_path: Path, to: str) -> None:
    async with pair(tmp_path) as p:
        reading = Reading(p.start())
        await reading.until(BEFORE)
        with pytest.raises(LinkError, match="cannot reach"):
            await p.handing.migrate(reading.answer.id, to)
        await reading.to_the_end()


async def test_what_cannot_be_asked(tmp_path: Path) -> None:
    async with pair(tmp_path) as p:
        answer = p.start()
        with pytest.raises(BadRequest, match="no session"):
            await p.handing.migrate(99, p.socket)
        for to, reason in (("example.org:7041", "insecure"), ("host:port", "HOST:PORT")):
            with pytest.raises(BadRequest, match=reason):
                await p.handing.migrate(answer.id, to)
        await p.handing.migrate(answer.id, p.socket)
        with pytest.raises(BadRequest, match="already"):
            await p.handing.migrate(answer.id, p.socket)


async def test_damaged_pages_are_found_and_the_text_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Link.send

    def spoiled(link: Link, message: Any) -> int:
        if isinstance(message, Kv) and message.payload and message.first >= 512:
            message = replace(message, payload=message.payload[:-1] + bytes([message.payload[-1] ^ 1]))
        return send(link, message)

    monkeypatch.setattr(Link, "send", spoiled)
    async with pair(tmp_path) as p:
        reading = Reading(p.start())
        await reading.until(BEFORE)
        await p.handing.migrate(reading.answer.id, p.socket)
        taken = p.taken()
        await reading.to_the_end()
        assert p.there.totals.assists_failed == 1
        assert p.there_drafts.puts == [512]
        assert taken.generation.tally.accepted


async def test_an_edge_with_another_draft_model_reads_the_text_anew(tmp_path: Path) -> None:
    async with pair(tmp_path) as p:
        p.there_drafts.shape = replace(SHAPE, model=b"e" * 16)
        reading = Reading(p.start())
        await reading.until(BEFORE)
        await p.handing.migrate(reading.answer.id, p.socket)
        taken = p.taken()
        await reading.to_the_end()
        assert p.there_drafts.puts == []
        assert p.there_drafts.read_here >= len(PROMPT)
        assert taken.generation.tally.accepted


async def test_a_client_that_goes_away_ends_it_at_both(tmp_path: Path) -> None:
    async with pair(tmp_path) as p:
        reading = Reading(p.start(max_tokens=2000))
        await reading.until(BEFORE)
        await p.handing.migrate(reading.answer.id, p.socket)
        p.here.cancel(reading.answer.id)
        async with asyncio.timeout(5):
            while p.there.answers:
                await asyncio.sleep(0.005)
        assert p.there.totals.cancelled == 1


def test_the_socket_for_answers_lies_beside_the_control_socket() -> None:
    assert socket_of("/run/ecd/edge.sock") == "/run/ecd/edge.handover"


async def test_over_tcp_there_is_room_for_some_links_and_beside_them_for_the_unix_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecd.edge.taking.MOST_LINKS", 2)
    async with pair(tmp_path) as p, asyncio.timeout(20.0):
        strangers = [await asyncio.open_connection("127.0.0.1", p.port) for _ in range(2)]
        await until_there(p.taking, 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        reading = Reading(p.start())
        await reading.until(BEFORE)
        with pytest.raises(LinkError):
            await p.handing.migrate(reading.answer.id, f"127.0.0.1:{p.port}")
        await p.handing.migrate(reading.answer.id, p.socket)
        await reading.to_the_end()
        # Whoever goes makes room.
        for _, writer in strangers:
            writer.close()
        await until_there(p.taking, 0)
        reading = Reading(p.start())
        await reading.until(BEFORE)
        await p.handing.migrate(reading.answer.id, f"127.0.0.1:{p.port}")
        await reading.to_the_end()


async def until_there(taking: Taking, count: int) -> None:
    while len(taking._from_afar) != count:
        await asyncio.sleep(0.001)
