"""Tokens and limits at a service over TCP, with an engine without a model: each tenant pays for itself."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pytest
from test_cloud_service import AT_ONCE, FINGERPRINT, LIMIT_S, LIMITS, PATIENT, Edge, Engine

from ecd.cloud.batcher import Batcher
from ecd.cloud.service import OPENING, CloudService
from ecd.cloud.session import Vocabulary
from ecd.errors import Code
from ecd.trust.settings import NO_LIMITS, Limits
from ecd.trust.tokens import Token, Tokens
from ecd.wire.connection import Closed, Connected, Event, Received, Role, Settings
from ecd.wire.frames import encode_frame
from ecd.wire.link import Link
from ecd.wire.messages import Draft, Open, Reset, to_fields
from ecd.wire.messages import Tokens as Committed
from ecd.wire.prefix import BLOCK_TOKENS, blocks

NOW = datetime(2026, 5, 1, tzinfo=UTC)
MIB = 1 << 20


class Tenants:
    """A token book that a test may change, and edges that show its tokens."""

    def __init__(self, **limits: Limits):
        self.tokens = Tokens()
        for name, own in limits.items():
            self.tokens = self.tokens.created(name, f"secret of {name}", NOW, None, own)

    def identify(self, shown: bytes | None) -> str:
        return self.tokens.identify(shown, NOW).name

    def check(self, name: str) -> Token:
        return self.tokens.check(name, NOW)


class Guest(Edge):
    """An edge that shows a token, and what ended its connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str):
        super().__init__(loop)
        settings = Settings(Role.EDGE, "test", FINGERPRINT, token=f"secret of {name}")
        self.link = Link(type(self.link.connection)(settings, loop.time()), self._on_event)
        self.closed: asyncio.Future[Closed] = loop.create_future()

    def _on_event(self, link: Link, event: Event) -> None:
        match event:
            case Connected():
                self.connected.set()
            case Received():
                self.frames[event.message.stream].put_nowait(event.message)
            case Closed():
                self.closed.set_result(event)
                self.connected.set()


class Cloud:
    """A service with tenants or without any, where it listens, and its ends of links."""

    def __init__(self, tenants: Tenants | None, limits: Limits = NO_LIMITS):
        settings = Settings(Role.CLOUD, "cloud under test", FINGERPRINT, limits=LIMITS)
        self.engine = engine = Engine()
        vocabulary = Vocabulary(1000, frozenset(), lambda token: b"x")
        self.batcher = Batcher(engine.capacity, 4, 4)
        self.links: list[Link] = []
        if tenants is None:
            self.service = CloudService(engine, vocabulary, settings, self.batcher)
        else:
            settings = replace(settings, identify=tenants.identify)
            self.service = CloudService(engine, vocabulary, settings, self.batcher, limits, tenants.check)
        self.address: Any = None

    def protocol(self) -> Link:
        self.links.append(self.service.protocol())
        return self.links[-1]

    async def guest(self, name: str) -> Guest:
        loop = asyncio.get_running_loop()
        guest = Guest(loop, name)
        await loop.create_connection(lambda: guest.link, *self.address)
        await guest.connected.wait()
        return guest

    def used(self, name: str) -> dict[str, int]:
        used: dict[str, int] = self.service.stats()["tenants"][name]
        return used


@asynccontextmanager
async def running(tenants: Tenants | None, limits: Limits = NO_LIMITS) -> AsyncIterator[Cloud]:
    cloud = Cloud(tenants, limits)
    server = await asyncio.get_running_loop().create_server(cloud.protocol, "127.0.0.1", 0)
    cloud.address = server.sockets[0].getsockname()[:2]
    stepping = asyncio.create_task(cloud.service.step_forever())
    try:
        async with asyncio.timeout(LIMIT_S):
            yield cloud
    finally:
        stepping.cancel()
        server.close()
        cloud.service.stop()
        cloud.service.close()


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def finished(guest: Guest, stream: int) -> list[int]:
    """Ids of a stream to its end."""
    ids: list[int] = []
    while True:
        frame = await guest.frames[stream].get()
        assert isinstance(frame, Committed), frame
        ids += frame.ids
        if frame.finish:
            return ids


@pytest.mark.parametrize(
    ("name", "revoked", "said"),
    [
        ("nobody", None, "does not know this token; set `token` at the edge"),
        ("berlin", "berlin", "the token 'berlin' was revoked on 2026-05-01"),
    ],
)
async def test_who_is_not_let_in_is_told_why(name: str, revoked: str | None, said: str) -> None:
    tenants = Tenants(berlin=Limits())
    if revoked:
        tenants.tokens = tenants.tokens.revoked(revoked, NOW)
    async with running(tenants) as cloud:
        guest = await cloud.guest(name)
        closed = await guest.closed
        assert (closed.code, closed.retry) == (Code.AUTH, False)
        assert said in closed.message


async def test_a_token_that_is_revoked_ends_its_connections_and_no_other() -> None:
    tenants = Tenants(berlin=Limits(), paris=Limits())
    async with running(tenants) as cloud:
        berlin, paris = await cloud.guest("berlin"), await cloud.guest("paris")
        kept, lost = (each.open(1, 2, 3, pace=PATIENT, max_tokens=9) for each in (paris, berlin))
        await paris.frames[kept].get()
        await berlin.frames[lost].get()
        tenants.tokens = tenants.tokens.revoked("berlin", NOW)
        cloud.service.check_tokens()
        closed = await berlin.closed
        assert (closed.code, "was revoked" in closed.message) == (Code.AUTH, True)
        await until(lambda: cloud.used("berlin")["sessions"] == 0)
        paris.link.send(Draft(kept, 4, 4, (7,)))
        assert isinstance(await paris.frames[kept].get(), Committed)
        assert cloud.used("paris")["sessions"] == 1


async def test_sessions_beyond_the_limit_are_refused_while_others_are_served() -> None:
    async with running(Tenants(berlin=Limits(), guest=Limits(sessions=1))) as cloud:
        guest, berlin = await cloud.guest("guest"), await cloud.guest("berlin")
        first = guest.open(1, 2, 3, pace=PATIENT)
        await guest.frames[first].get()
        second = guest.open(1, 2, 3)
        reset = await guest.frames[second].get()
        assert isinstance(reset, Reset)
        assert reset.code is Code.BUSY
        assert "the token 'guest' allows 1 sessions at once" in reset.message
        assert await finished(berlin, berlin.open(1, 2, 3)) == [7, 7, 7]
        guest.link.send(Reset(first, Code.CANCELLED, ""))
        await until(lambda: cloud.used("guest")["sessions"] == 0)
        assert await finished(guest, guest.open(1, 2, 3)) == [7, 7, 7]


async def test_a_session_that_cannot_be_opened_does_not_count() -> None:
    async with running(Tenants(guest=Limits(sessions=1, prompt_tokens=5))) as cloud:
        guest = await cloud.guest("guest")
        for prompt, code in (((1,) * 6, Code.LIMIT), ((), Code.BAD_REQUEST), ((5000,), Code.BAD_REQUEST)):
            reset = await guest.frames[guest.open(*prompt)].get()
            assert isinstance(reset, Reset)
            assert reset.code is code
        assert cloud.used("guest")["sessions"] == 0
        assert await finished(guest, guest.open(1, 2)) == [7, 7, 7]


async def test_a_flood_of_hints_is_read_at_the_tenant_s_rate() -> None:
    async with running(Tenants(guest=Limits(hints_per_s=4000), berlin=Limits())) as cloud:
        guest, berlin = await cloud.guest("guest"), await cloud.guest("berlin")
        stream = guest.open(1, 2, 3, pace=PATIENT)
        await guest.frames[stream].get()
        draft = encode_frame(to_fields(Draft(stream, 4, 5, (9,)), 2))
        started = monotonic()
        # 4000 frames with one hint each; a second's worth is there at once.
        guest.link._transport.write(draft * 4000)  # type: ignore[union-attr]
        assert await finished(berlin, berlin.open(1, 2, 3)) == [7, 7, 7]
        # A second's worth, what the time since then is worth, and what one read may have gone beyond it.
        charged = cloud.used("guest")["charged_hints"]
        assert charged < 4000 * (1 + monotonic() - started) + 2000
        await until(lambda: cloud.used("guest")["charged_hints"] >= 8000)
        assert monotonic() - started > 0.9
        assert not guest.closed.done()


async def test_long_frames_are_charged_by_their_length_and_a_reader_of_crumbs_by_the_crumb() -> None:
    async with running(Tenants(guest=Limits(hints_per_s=1e6))) as cloud:
        guest = await cloud.guest("guest")
        before = cloud.used("guest")["charged_hints"]
        guest.open(*[1] * 200_000)  # refused, for the context is shorter
        await guest.frames[1].get()
        assert cloud.used("guest")["charged_hints"] - before > 400_000 // 256
        before = cloud.used("guest")["charged_hints"]
        (link,) = cloud.links
        link.toll(link, 1, 0)
        assert cloud.used("guest")["charged_hints"] == before + 1
        link.toll(link, 0, 0)
        assert cloud.used("guest")["charged_hints"] == before + 1


async def test_a_known_prefix_is_charged_by_its_length() -> None:
    """A tenant could else have a long prompt put together again and again for a frame of a hundred bytes."""
    prompt = tuple(range(1, 5 * BLOCK_TOKENS + 1))
    *_, (known, _) = blocks(prompt)
    async with running(Tenants(guest=Limits())) as cloud:
        guest = await cloud.guest("guest")
        assert await finished(guest, guest.open(*prompt, 5)) == [7, 7, 7]
        before = cloud.used("guest")["charged_hints"]
        stream = guest.open(5, prefix_hash=known, prefix_len=len(prompt))
        assert await finished(guest, stream) == [7, 7, 7]
        # The frame, and the blocks.
        assert cloud.used("guest")["charged_hints"] >= before + 1 + 5


async def test_opening_a_known_prefix_again_and_again_is_slowed_down_and_not_refused() -> None:
    prompt = tuple(range(1, 5 * BLOCK_TOKENS + 1))
    *_, (known, _) = blocks(prompt)
    async with running(Tenants(guest=Limits(hints_per_s=400), berlin=Limits())) as cloud:
        guest, berlin = await cloud.guest("guest"), await cloud.guest("berlin")
        assert await finished(guest, guest.open(*prompt, 5)) == [7, 7, 7]
        before, began = cloud.used("guest")["charged_hints"], monotonic()
        # All in one read: what it is charged for in there must be heeded in there.
        for _ in range(60):
            stream = guest.open(5, prefix_hash=known, prefix_len=len(prompt))
            guest.link.send(Reset(stream, Code.CANCELLED, "changed my mind"))
        # An edge that has lost its connection asks for all of its answers at once, and gets them.
        wanted = [guest.open(5, prefix_hash=known, prefix_len=len(prompt)) for _ in range(8)]
        assert await finished(berlin, berlin.open(1, 2, 3)) == [7, 7, 7]
        # What the time is worth, and the frames of that one read.
        assert cloud.used("guest")["charged_hints"] - before < 400 * (1 + monotonic() - began) + 200
        for stream in wanted:
            assert await finished(guest, stream) == [7, 7, 7]
        # A second's worth is there at once.
        assert monotonic() - began > 68 * (OPENING + 5) / 400 - 1
        assert cloud.used("guest")["refused"] == 0
        assert not guest.closed.done()


async def test_what_a_tenant_makes_the_log_say_is_limited_and_told_as_a_number(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecd.cloud.links.LINES_PER_S", 5.0)
    with caplog.at_level(logging.INFO, "ecd.cloud.links"):
        async with running(Tenants(guest=Limits(), berlin=Limits())) as cloud:
            guest, berlin = await cloud.guest("guest"), await cloud.guest("berlin")
            began = monotonic()
            for _ in range(40):
                assert await finished(guest, guest.open(1, 2, 3)) == [7, 7, 7]
            assert await finished(berlin, berlin.open(1, 2, 3)) == [7, 7, 7]
            took = monotonic() - began
            await asyncio.sleep(0.5)
            assert await finished(guest, guest.open(1, 2, 3)) == [7, 7, 7]
    told = [record for record in caplog.records if getattr(record, "tenant", "") == "guest"]
    ended = [record for record in told if record.message.startswith("session ended")]
    assert 1 < len(ended) < 5 + 5 * (took + 1)
    assert re.search(r"\d+ lines about the tenant 'guest' were left out", caplog.text)
    (other,) = [
        each
        for each in caplog.records
        if getattr(each, "tenant", "") == "berlin" and each.args[0] == "length"
    ]
    assert other.message.startswith("session ended: length")


async def test_wrong_hints_are_charged_to_their_tenant() -> None:
    async with running(Tenants(guest=Limits(rejected_per_s=1000), berlin=Limits())) as cloud:
        guest, berlin = await cloud.guest("guest"), await cloud.guest("berlin")
        stream = guest.open(1, 2, 3, pace=PATIENT, max_tokens=9)
        await guest.frames[stream].get()
        guest.link.send(Draft(stream, 4, 4, (8, 8, 8)))
        verified = (await guest.frames[stream].get()).verified
        assert verified > 0
        # The engine accepts none of them.
        assert cloud.used("guest")["rejected_hints"] == verified
        assert cloud.used("berlin")["rejected_hints"] == 0
        assert berlin.closed.done() is False


async def test_a_tenant_for_which_too_much_is_held_loses_a_connection() -> None:
    async with running(Tenants(guest=Limits(bytes_in_flight=MIB), berlin=Limits())) as cloud:
        first, second, berlin = [await cloud.guest(name) for name in ("guest", "guest", "berlin")]
        whole = encode_frame(
            to_fields(Open(1, None, 0, (5,) * 400_000, (), {"rule": "greedy"}, 8, (), AT_ONCE), 2)
        )
        for guest in (first, berlin):
            guest.link._transport.write(whole[:-1])  # type: ignore[union-attr]
        second.link._transport.write(whole[:-1])  # type: ignore[union-attr]
        await asyncio.wait([first.closed, second.closed], return_when=asyncio.FIRST_COMPLETED)
        closed = (first if first.closed.done() else second).closed.result()
        assert closed.code is Code.LIMIT
        assert "the token 'guest' allows 1048576 bytes in flight" in closed.message
        assert not berlin.closed.done()
        assert first.closed.done() != second.closed.done()


async def test_those_without_a_token_have_no_limits_and_no_name() -> None:
    async with running(None) as cloud:
        guest = await cloud.guest("anybody")
        assert await finished(guest, guest.open(1, 2, 3)) == [7, 7, 7]
        assert cloud.service.stats()["tenants"] == {}


async def test_a_tenant_cannot_find_out_what_another_has_asked() -> None:
    prompt = tuple(range(1, 2 * BLOCK_TOKENS + 1))
    _, (known, _) = blocks(prompt)
    async with running(Tenants(berlin=Limits(), guest=Limits())) as cloud:
        berlin, second, guest = [await cloud.guest(name) for name in ("berlin", "berlin", "guest")]
        assert await finished(berlin, berlin.open(*prompt, 5)) == [7, 7, 7]
        rest = {"prefix_hash": known, "prefix_len": len(prompt)}
        refused = await guest.frames[stream := guest.open(5, **rest)].get()
        assert isinstance(refused, Reset)
        assert refused.code is Code.UNKNOWN_PREFIX
        # One that nobody sent is refused with the very same words.
        nobody = await guest.frames[guest.open(5, prefix_hash=b"x" * 32, prefix_len=len(prompt))].get()
        assert replace(nobody, stream=stream) == refused
        # Edges with the same token are one tenant.
        assert await finished(second, second.open(5, **rest)) == [7, 7, 7]
        # So that the engine keeps apart what it has cached, too.
        assert await finished(guest, guest.open(*prompt, 5)) == [7, 7, 7]
        assert cloud.engine.tenants == ["berlin"] * 6 + ["guest"] * 3
