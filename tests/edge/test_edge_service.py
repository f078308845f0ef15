"""Answers without a cloud; what the edge tells of itself."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Chunk
from ecd.edge.drafter import DraftTask, Prefill
from ecd.edge.meter import Meter
from ecd.edge.request import LinkLoss, Request
from ecd.edge.service import EdgeService
from ecd.edge.told import stats_told, status_told
from ecd.edge.uplinks import Uplinks
from ecd.errors import Code, LinkError
from ecd.sampling import Guess, Sampling
from ecd.wire.connection import Closed
from ecd.wire.messages import Finish, Open
from tests.edge.one_cloud import MadeUpLink, NoDrafter, attach, connect
from tests.edge.service_talk import PROMPT, SIZE, Talk, TwoClouds


def without_a_cloud(link_loss: LinkLoss, *, drafter: Any = None) -> tuple[EdgeService, Uplinks]:
    service = EdgeService(
        drafter or NoDrafter(),
        Acceptance(),
        Meter(),
        n_vocab=SIZE,
        piece=lambda token: bytes([token]),
        link_wait_s=0.4 if link_loss is LinkLoss.WAIT else 60.0,
        link_grace_s=0.1,
        ends=frozenset({0}),
    )
    return service, attach(service)


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_is_to_fail_without_a_cloud_fails_at_once(at_once: bool) -> None:
    service, uplinks = without_a_cloud(LinkLoss.FAIL)
    (uplink,) = uplinks
    request = Request(PROMPT, Sampling(), 20, link_loss=LinkLoss.FAIL)
    if not at_once:
        connect(uplinks, uplink, MadeUpLink())
        answer = service.start(request)
        assert answer.chunks.empty()
        uplink.link = None
        uplinks.fleet.closed(uplink.key)
        service.on_event(uplink, Closed(Code.UNAVAILABLE, "gone"))
    else:
        answer = service.start(request)
    failure = answer.chunks.get_nowait()
    assert isinstance(failure, LinkError)
    assert "no link to the cloud" in str(failure)
    assert not service.answers


async def test_what_waits_fails_when_it_has_waited_long_enough() -> None:
    service, _ = without_a_cloud(LinkLoss.WAIT)
    answer = service.start(Request(PROMPT, Sampling(), 20))
    tending = asyncio.create_task(service.tend_forever())
    async with asyncio.timeout(5):
        failure = await answer.chunks.get()
    tending.cancel()
    assert isinstance(failure, LinkError)
    assert "no link to the cloud for 0.4 s: not tried yet" in str(failure)


class Counting:
    """Guesses 1 to 6 and then the end, or 1 for ever where there is a bias on it."""

    slots = branches = 1
    slot_tokens = 1 << 20

    def prefill(self, slot: int) -> Prefill:
        return Prefill()

    def stats(self) -> dict[str, int]:
        return {}

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        return [
            (Guess(1 if task.sampling.logit_bias else (len(task.context) - task.prompt_len + 1) % 7, 0.9),)
            for task in tasks
        ]

    def release(self, slot: int) -> None: ...

    def close(self) -> None: ...


async def test_what_degrades_goes_on_from_the_draft_and_back_at_the_cloud() -> None:
    service, uplinks = without_a_cloud(LinkLoss.DEGRADE, drafter=Counting())
    (uplink,) = uplinks
    answer = service.start(Request(PROMPT, Sampling(), 20, link_loss=LinkLoss.DEGRADE))
    jobs = [asyncio.create_task(job()) for job in (service.tend_forever, service.drafting.forever)]
    async with asyncio.timeout(5):
        ids: tuple[int, ...] = ()
        while len(ids) < 7:
            chunk = await answer.chunks.get()
            assert isinstance(chunk, Chunk)
            assert set(chunk.origins) == {"edge-offline"}
            ids += chunk.ids
        assert await answer.chunks.get() is Finish.STOP
        assert ids == (1, 2, 3, 4, 5, 6, 0)
        again = service.start(
            Request(PROMPT, Sampling(logit_bias=((1, 1.0),)), 1 << 19, link_loss=LinkLoss.DEGRADE)
        )
        first = await again.chunks.get()
        assert isinstance(first, Chunk)
        wire = MadeUpLink()
        connect(uplinks, uplink, wire)
        while not wire.sent:
            await asyncio.sleep(0.01)
        opened = wire.sent[0]
        assert isinstance(opened, Open)
        assert opened.committed == again.generation.committed
        assert len(opened.committed) >= 1
    for job in jobs:
        job.cancel()
    service.close()


async def test_what_would_degrade_and_has_no_drafter_waits(caplog: pytest.LogCaptureFixture) -> None:
    service, uplinks = without_a_cloud(LinkLoss.DEGRADE)
    (uplink,) = uplinks
    answer = service.start(Request(PROMPT, Sampling(), 20, link_loss=LinkLoss.DEGRADE))
    answer.waiting_since -= 1.0
    service.tend()
    assert answer.chunks.empty()
    assert "without a cloud" not in caplog.text
    wire = MadeUpLink()
    connect(uplinks, uplink, wire)
    service.tend()
    assert isinstance(wire.sent[0], Open)


async def test_status_tells_the_best_link_and_each_of_several_clouds() -> None:
    talk = TwoClouds()
    talk.links[talk.there].connection.rtt.sample(0.012)
    talk.uplinks.fleet.draining(talk.here.key)
    told = status_told(talk.service, "draft")
    assert told["link"]["cloud"] == talk.there.key
    assert told["link"]["rtt_ms"] == 12.0
    assert told["link"]["connects"] == 2
    here, there = (told["clouds"][uplink.key] for uplink in (talk.here, talk.there))
    assert (here["standing"], here["running"], here["rtt_ms"]) == ("draining", 1, None)
    assert (there["standing"], there["running"], there["weight"]) == ("ready", 0, 1.0)
    assert status_told(Talk().service, "draft")["clouds"] == {}


async def test_bytes_per_token_are_of_all_tokens_whose_bytes_are_counted() -> None:
    talk = Talk()
    assert stats_told(talk.service)["wire_bytes_per_token"] == 0
    talk.tokens(b"seven", logprobs=None)
    running = stats_told(talk.service)
    assert (running["committed"], running["wire_bytes_per_token"]) == (0, 70 / 5)
    talk.finish(b"more!")
    over = stats_told(talk.service)
    assert (over["committed"], over["running"]) == (10, 0)
    assert (over["wire_bytes_per_token"], over["packet_bytes_per_token"]) == (70 / 10, 110 / 10)


async def test_the_log_says_how_an_answer_ended_and_which(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    talk = Talk()
    talk.tokens(b"ab", Finish.STOP, logprobs=None)
    (record,) = [record for record in caplog.records if record.message.startswith("answer ended")]
    assert record.message == "answer ended: stop; 2 tokens, 1 forwards, 0 of 0 hints accepted"
    about = record.__dict__
    assert (about["connection"], about["session"], about["stream"]) == (1, 1, 1)
