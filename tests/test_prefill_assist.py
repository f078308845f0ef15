"""A prompt that the cloud reads for a slow edge: both services over TCP, through a link that can be slow, cut
and false, with engines without models.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from ecd.cloud.assist import Assist
from ecd.cloud.service import CloudService
from ecd.edge.answer import Answer
from ecd.edge.request import Request
from ecd.edge.service import EdgeService
from ecd.lab.lane import NOTHING_PLANNED, Conditions, Cut, Direction, Schedule
from ecd.lab.link import EmulatedLink
from ecd.pages import Encoding
from ecd.sampling import Sampling
from ecd.wire.messages import Kv
from tests.pages_talk import Reader, SlowDrafter, a_cloud, an_edge, connected, running, to_its_end

PROMPT = tuple(n % 250 + 1 for n in range(1200))
TOKENS = 150
SOUND = Conditions()


@dataclass
class System:
    edge: EdgeService
    drafter: SlowDrafter
    reader: Reader
    cloud: CloudService

    async def answer(self) -> Answer:
        """One answer to its end."""
        answer = self.edge.start(Request(PROMPT, Sampling(), TOKENS))
        await to_its_end(answer)
        return answer


@contextlib.asynccontextmanager
async def system(
    *,
    chunk_s: float = 0.03,
    cloud_token_s: float = 1e-5,
    conditions: Conditions = SOUND,
    schedule: Schedule = NOTHING_PLANNED,
    encoding: Encoding | None = Encoding.Q8_0,
    model: str | None = None,
    spoil: Callable[[Kv], Kv] | None = None,
) -> AsyncIterator[System]:
    reader, drafter = Reader(cloud_token_s), SlowDrafter(chunk_s)
    assist = Assist(reader)
    cloud = a_cloud(assist, model)
    if spoil is not None:
        spoil_pages(cloud, spoil)
    server = await asyncio.get_running_loop().create_server(cloud.protocol, "127.0.0.1", 0)
    async with EmulatedLink(*server.sockets[0].getsockname()[:2], conditions, schedule=schedule) as link:
        edge = an_edge(drafter, link.port, encoding)
        jobs = (cloud.step_forever, assist.run_forever, edge.drafting.forever, edge.tend_forever)
        async with running(*jobs, edge.uplinks.keep):
            await connected(edge)
            yield System(edge, drafter, reader, cloud)
            edge.stop()
            cloud.stop()
        for service in (edge, cloud, assist):
            service.close()
        server.close()


def spoil_pages(cloud: CloudService, spoil: Callable[[Kv], Kv]) -> None:
    """What the cloud says of pages is changed on its way."""
    accept = cloud.protocol

    def protocol() -> Any:
        link = accept()
        send = link.send
        link.send = lambda message: send(spoil(message) if isinstance(message, Kv) else message)
        return link

    cloud.protocol = protocol  # type: ignore[method-assign]


@pytest.mark.parametrize("encoding", Encoding)
async def test_the_draft_is_ready_earlier_and_the_text_is_the_same(encoding: Encoding) -> None:
    async with system(encoding=None) as alone:
        answer = await alone.answer()
        assert answer.drafted_at is not None
        local_s = answer.drafted_at - answer.started_at
        assert alone.edge.totals.page_bytes == 0
    async with system(encoding=encoding) as helped:
        answer = await helped.answer()
        assert answer.drafted_at is not None
        assert helped.drafter.puts == [len(PROMPT)]
        assert helped.edge.totals.assisted == 1
        assert 2 * (answer.drafted_at - answer.started_at) < local_s
        assert answer.generation.tally.sent


async def test_a_slow_link_is_tried_once_and_not_used() -> None:
    # 1200 tokens are 290 kB, which take longer than reading them here.
    async with system(conditions=Conditions(bandwidth_bps=1e6)) as slow:
        await slow.answer()
        assert slow.drafter.puts == []
        assert 0 < slow.edge.totals.page_bytes <= 128 << 10
        assert slow.edge.totals.assists_failed == 0
        before = slow.edge.totals.page_bytes
        await slow.answer()
        assert slow.edge.totals.page_bytes == before


async def test_an_edge_that_is_as_fast_asks_for_nothing() -> None:
    async with system(chunk_s=0.0, cloud_token_s=0.01) as fast:
        await fast.answer()
        assert fast.reader.asked == []


async def test_pages_of_another_model_are_not_asked_for() -> None:
    async with system(model="00" * 16) as other:
        await other.answer()
        assert other.reader.asked == []


async def test_damaged_pages_are_found_and_the_prompt_is_read_here_from_where_they_end() -> None:
    def flip(message: Kv) -> Kv:
        if message.payload and message.first >= 1024:
            return replace(message, payload=bytes([message.payload[0] ^ 1]) + message.payload[1:])
        return message

    async with system(spoil=flip) as hurt:
        answer = await hurt.answer()
        assert hurt.edge.totals.assists_failed == 1
        assert hurt.drafter.puts == [1024]
        assert hurt.drafter.read_here < len(PROMPT)
        assert answer.generation.tally.sent


async def test_a_cloud_whose_reader_breaks_says_so_and_answers_on() -> None:
    async with system() as broken:
        broken.reader.fails_from = 512
        answer = await broken.answer()
        assert broken.drafter.puts == [512]
        assert answer.generation.tally.sent
        broken.reader.fails_from = 0
        answer = await broken.answer()
        assert broken.edge.totals.assists_failed == 1
        assert answer.generation.tally.sent


async def test_cells_that_do_not_fit_are_read_here() -> None:
    async with system() as full:
        full.drafter.breaks = True
        answer = await full.answer()
        assert full.edge.totals.assists_failed == 1
        assert answer.generation.tally.sent


async def test_after_a_lost_connection_the_rest_of_the_pages_is_asked_for() -> None:
    lost_at = 200_000
    async with system(schedule=Schedule((Cut(lost_at, Direction.DOWN),))) as cut:
        await cut.answer()
        assert cut.edge.uplinks.connects == 2
        assert cut.drafter.puts == [len(PROMPT)]
        # Not a run twice but for the one that the connection was lost in.
        firsts = [first for first, _ in cut.reader.asked]
        assert len(firsts) - len(set(firsts)) <= 2
