"""Clouds that come, go, drain, fall silent and turn answers away at random: every answer comes whole."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Answer, Chunk
from ecd.edge.meter import Meter
from ecd.edge.request import Request
from ecd.edge.service import EdgeService
from ecd.edge.uplink import Uplink
from ecd.edge.uplinks import Place, Uplinks
from ecd.errors import Code
from ecd.sampling import Sampling
from ecd.wire.connection import Closed, PeerDraining, Received
from ecd.wire.messages import Finish, Open, Reset, Tokens
from tests.edge.one_cloud import MadeUpLink, NoDrafter, attach, connect

CLOUDS, ANSWERS, EVENTS, MAX_TOKENS = 3, 4, 400, 60


def said(position: int) -> int:
    """The text of every answer, whichever cloud gives it."""
    return position * 7 % 251


@dataclass
class Clouds:
    """Clouds that say the same text to everyone, as far as each has got with each stream."""

    service: EdgeService
    uplinks: Uplinks
    rng: random.Random
    streams: dict[Uplink, dict[int, int]] = field(default_factory=dict)
    links: list[MadeUpLink] = field(default_factory=list)

    def connect(self, uplink: Uplink) -> None:
        if uplink.link is None:
            self.links.append(MadeUpLink())
            connect(self.uplinks, uplink, self.links[-1])
            self.streams[uplink] = {}

    def die(self, uplink: Uplink) -> None:
        if uplink.link is not None:
            uplink.link = None
            self.uplinks.fleet.closed(uplink.key)
            self.service.on_event(uplink, Closed(Code.UNAVAILABLE, "gone"))

    def drain(self, uplink: Uplink) -> None:
        if uplink.link is not None:
            self.uplinks.fleet.draining(uplink.key)
            self.service.on_event(uplink, PeerDraining("going"))

    def fall_silent(self, uplink: Uplink) -> None:
        if uplink.link is not None:
            uplink.link.connection.heard_at -= 5.0  # type: ignore[misc]

    def turn_away(self, uplink: Uplink) -> None:
        """One that has tokens already, or is being opened at a draining cloud."""
        for stream, length in self.listen(uplink):
            code = Code.BUSY if length > 2 else Code.DRAINING
            self.service.on_event(uplink, Received(Reset(stream, code, "no"), 9))
            self.streams[uplink].pop(stream, None)
            return

    def say(self, uplink: Uplink) -> None:
        for stream, length in self.listen(uplink):
            ids = tuple(said(length + index) for index in range(self.rng.randint(1, 3)))
            ids = ids[: 2 + MAX_TOKENS - length]
            finish = Finish.LENGTH if length + len(ids) == 2 + MAX_TOKENS else Finish.NONE
            self.service.on_event(uplink, Received(Tokens(stream, length, ids, 0, 0, 900, finish), 9))
            self.streams[uplink][stream] = length + len(ids)
            if finish is not Finish.NONE:
                del self.streams[uplink][stream]

    def listen(self, uplink: Uplink) -> Iterator[tuple[int, int]]:
        """Streams that are open there as far as the cloud has heard, and their lengths."""
        link: Any = uplink.link
        if link is None:
            return
        sent, link.sent = link.sent, []
        for message in sent:
            match message:
                case Open():
                    self.streams[uplink][message.stream] = len(message.prompt) + len(message.committed)
                case Reset() if self.rng.random() < 0.5:
                    self.streams[uplink].pop(message.stream, None)
                case Reset():
                    # Still on its way: the cloud speaks to somebody who has left.
                    link.sent.append(message)
        yield from list(self.streams[uplink].items())


def shown(answer: Answer) -> tuple[list[int], list[Any]]:
    """Tokens of all chunks, and what else came."""
    ids: list[int] = []
    others: list[Any] = []
    while not answer.chunks.empty():
        match answer.chunks.get_nowait():
            case Chunk() as chunk:
                ids += chunk.ids
            case other:
                others.append(other)
    return ids, others


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_becomes_of_clouds_each_answer_is_shown_whole_and_once(seed: int) -> None:
    rng = random.Random(seed)
    service = EdgeService(
        NoDrafter(), Acceptance(), Meter(), n_vocab=256, piece=lambda token: bytes([token]), link_wait_s=60.0
    )
    uplinks = attach(service, *(Place(f"cloud-{number}", 1) for number in range(CLOUDS)))
    clouds = Clouds(service, uplinks, rng)
    answers = [service.start(Request((1, 2), Sampling(), MAX_TOKENS)) for _ in range(ANSWERS)]
    happenings = [clouds.connect, clouds.die, clouds.drain, clouds.fall_silent, clouds.turn_away, clouds.say]
    for _ in range(EVENTS):
        rng.choices(happenings, [6, 2, 1, 2, 2, 9])[0](rng.choice(list(uplinks)))
        if rng.random() < 0.5:
            service.tend()
        if rng.random() < 0.1:
            await asyncio.sleep(0)
    resumed = sum(answer.generation.tally.resumed for answer in answers)
    for uplink in uplinks:
        clouds.die(uplink)
        clouds.connect(uplink)
    service.tend()
    for _ in range(MAX_TOKENS):
        for uplink in uplinks:
            clouds.say(uplink)
    assert not any(link.closed for link in clouds.links), (
        "no cloud is blamed for what it says to one who left"
    )
    assert resumed > ANSWERS, "they did move"
    for answer in answers:
        ids, others = shown(answer)
        assert ids == [said(2 + index) for index in range(MAX_TOKENS)]
        assert others == [Finish.LENGTH]
