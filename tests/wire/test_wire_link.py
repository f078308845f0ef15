"""The link: in which order frames leave, and what happens over real sockets on both event loops."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st

from ecd.errors import AuthError, Code
from ecd.wire.connection import (
    Closed,
    Connected,
    Connection,
    Event,
    Outgoing,
    Priority,
    Received,
    Role,
    Settings,
)
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.frames import FrameReader, encode_frame
from ecd.wire.link import FAIR_BYTES, IPV4_HEADER_BYTES, MAX_QUEUED_BYTES, Link, PriorityQueue, segments
from ecd.wire.messages import (
    Error,
    Hello,
    Kv,
    KvOp,
    Message,
    Open,
    Pace,
    Ping,
    Pong,
    Reset,
    Tokens,
    Welcome,
    from_fields,
    to_fields,
)

LIMIT_S = 10.0  # no wait in here may be longer
CONTROL, TOKENS, PROMPT, BULK = Priority


# -- the order of frames


class Line:
    """A priority queue whose frames are known by number."""

    def __init__(self) -> None:
        self.queue = PriorityQueue()
        self.frames: list[Outgoing] = []

    def push(self, priority: Priority, stream: int, size: int = 10) -> int:
        """Puts a frame of that size in line; its number."""
        number = len(self.frames)
        self.frames.append(Outgoing(priority, stream, b"%06d" % number + b"." * (size - 6)))
        self.queue.push(self.frames[-1])
        return number

    def pop(self, at_most_bytes: int = 1) -> list[int]:
        """Numbers of the frames that leave together."""
        data, numbers = self.queue.pop(at_most_bytes), []
        while data:
            number = int(data[:6])
            assert data.startswith(self.frames[number].data), "a frame was cut"
            data = data[len(self.frames[number].data) :]
            numbers.append(number)
        return numbers

    def rest(self) -> list[int]:
        """Numbers of all that is left, one frame at a time."""
        return [number for popped in iter(self.pop, []) for number in popped]


class TestOrder:
    def test_more_urgent_frames_leave_first_and_equals_in_turn(self) -> None:
        line = Line()
        bulk, prompt, token, control = (
            line.push(p, s) for s, p in enumerate((BULK, PROMPT, TOKENS, CONTROL), 1)
        )
        later = [line.push(p, 5 + p) for p in (CONTROL, TOKENS, PROMPT, BULK)]
        assert line.rest() == [control, later[0], token, later[1], prompt, later[2], bulk, later[3]]

    def test_frames_behind_their_streams_unsent_prompt_wait_for_it(self) -> None:
        line = Line()
        prompt, draft, reset = (line.push(p, 1) for p in (PROMPT, TOKENS, CONTROL))
        other = line.push(TOKENS, 2)
        ping = line.push(CONTROL, 0)
        assert line.rest() == [ping, other, prompt, draft, reset]

    def test_a_frame_waits_for_those_that_wait_already(self) -> None:
        line = Line()
        prompt, draft = line.push(PROMPT, 1), line.push(TOKENS, 1)
        assert line.pop() == [prompt]
        late = line.push(CONTROL, 1)
        assert line.rest() == [draft, late]

    def test_a_stream_is_urgent_again_once_its_prompt_is_out(self) -> None:
        line = Line()
        first = line.push(PROMPT, 1)
        assert line.rest() == [first]
        second, draft = line.push(PROMPT, 2), line.push(TOKENS, 1)
        assert line.rest() == [draft, second]

    def test_bulk_holds_nothing_up_not_even_its_own_stream(self) -> None:
        line = Line()
        bulk = [line.push(BULK, 1, 65536) for _ in range(3)]
        token, prompt = line.push(TOKENS, 1), line.push(PROMPT, 2)
        assert line.rest() == [token, prompt, *bulk]

    def test_bulk_behind_a_prompt_does_not_hold_up_the_frames_behind_both(self) -> None:
        line = Line()
        prompt, bulk, draft = line.push(PROMPT, 1), line.push(BULK, 1), line.push(TOKENS, 1)
        assert line.rest() == [prompt, draft, bulk]

    def test_frames_leave_whole_together_up_to_a_size_and_at_least_one(self) -> None:
        line = Line()
        for size in (50, 50, 7, 500):
            line.push(TOKENS, 1, size)
        assert line.pop(107) == [0, 1, 2]
        assert line.pop(100) == [3]
        assert line.pop(100) == []

    def test_a_less_urgent_frame_does_not_slip_in_where_an_urgent_one_does_not_fit(self) -> None:
        line = Line()
        line.push(CONTROL, 0, 50)
        line.push(CONTROL, 0, 90)
        line.push(BULK, 1, 10)
        assert line.pop(100) == [0]
        assert line.pop(100) == [1, 2]

    def test_a_reset_leaves_behind_what_its_stream_said_before(self) -> None:
        line = Line()
        tokens, reset = line.push(TOKENS, 1), line.push(CONTROL, 1)
        assert line.rest() == [tokens, reset]

    def test_a_frame_that_waits_does_not_hold_up_other_streams(self) -> None:
        line = Line()
        tokens, reset = line.push(TOKENS, 1), line.push(CONTROL, 1)
        other, ping = line.push(CONTROL, 2), line.push(CONTROL, 0)
        assert line.rest() == [other, ping, tokens, reset]

    def test_a_frame_is_urgent_again_once_those_before_it_are_out(self) -> None:
        line = Line()
        tokens = line.push(TOKENS, 1)
        assert line.pop() == [tokens]
        other, reset = line.push(TOKENS, 2), line.push(CONTROL, 1)
        assert line.rest() == [reset, other]


STEPS = st.lists(
    st.tuples(st.sampled_from([TOKENS, CONTROL, PROMPT, BULK]), st.integers(1, 3), st.integers(6, 40))
    | st.tuples(st.just(CONTROL), st.just(0), st.integers(6, 40))
    | st.integers(0, 80),
    max_size=40,
)


@given(STEPS)
@example([(PROMPT, 1, 9), (TOKENS, 1, 9), 9, (TOKENS, 1, 9)])
def test_every_streams_frames_keep_their_order_and_none_is_lost(steps: list[Any]) -> None:
    line = Line()
    left: list[int] = []
    for step in steps:
        if isinstance(step, int):
            left += line.pop(step)
        else:
            line.push(*step)
        waiting = set(range(len(line.frames))) - set(left)
        assert line.queue.size_bytes == sum(len(line.frames[n].data) for n in waiting)
    left += line.rest()
    assert sorted(left) == list(range(len(line.frames)))
    assert line.queue.size_bytes == 0
    for bulk in (False, True):
        for stream in range(4):
            of_stream = [
                n
                for n in left
                if line.frames[n].stream == stream and (line.frames[n].priority is BULK) == bulk
            ]
            assert of_stream == sorted(of_stream)


# -- real sockets

FINGERPRINT = Fingerprint(1000, "aa", {"bos": 1}, "bpe", "bb")
EDGE = Settings(Role.EDGE, "edge under test", FINGERPRINT)
CLOUD = Settings(Role.CLOUD, "cloud under test", FINGERPRINT)
HELLO = Hello(0, 1, 0, (), None, {}, FINGERPRINT.to_map(), "a test")
BYE = Error(0, Code.INTERNAL, "bye")
OPEN = Open(1, None, 0, (1, 2, 3), (), {"rule": "greedy"}, 16, (), Pace(0, 1))
T = TypeVar("T")


def refuse(shown: bytes | None) -> str:
    """Nobody is known here."""
    raise AuthError("not this one")


Scene = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Scene], None]:
    """Runs a test's coroutine on one of the loops; an exception that a loop would only log fails the test."""

    def runner(test: Scene) -> None:
        complaints: list[dict[str, Any]] = []

        async def limited() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            async with asyncio.timeout(LIMIT_S):
                await test()

        with asyncio.Runner(loop_factory=request.param) as loop:
            loop.run(limited())
        assert complaints == []

    return runner


class End:
    """One end of a link and all that happened on it."""

    def __init__(self, settings: Settings):
        self.events: list[Event] = []
        self.changed = asyncio.Event()
        self.link = Link(Connection(settings, asyncio.get_running_loop().time()), self.on_event)

    def on_event(self, link: Link, event: Event) -> None:
        assert link is self.link
        self.events.append(event)
        self.changed.set()

    async def first(self, kind: type[T]) -> T:
        """The first event of this kind, once it is there."""
        while True:
            for event in self.events:
                if isinstance(event, kind):
                    return event
            self.changed.clear()
            await self.changed.wait()

    @property
    def closed(self) -> list[Closed]:
        return [event for event in self.events if isinstance(event, Closed)]


@asynccontextmanager
async def listening(settings: Settings) -> AsyncIterator[tuple[End, tuple[str, int]]]:
    """A cloud end that waits for its one connection, and where."""
    end = End(settings)
    server = await asyncio.get_running_loop().create_server(lambda: end.link, "127.0.0.1", 0)
    try:
        yield end, server.sockets[0].getsockname()
    finally:
        server.close()
        end.link.abort()


@asynccontextmanager
async def both_ends(edge: Settings = EDGE, cloud: Settings = CLOUD) -> AsyncIterator[tuple[End, End]]:
    """An edge and a cloud, connected."""
    async with listening(cloud) as (cloud_end, address):
        edge_end = End(edge)
        await asyncio.get_running_loop().create_connection(lambda: edge_end.link, *address)
        await edge_end.first(Connected)
        await cloud_end.first(Connected)
        try:
            yield edge_end, cloud_end
        finally:
            edge_end.link.abort()


class RawEdge:
    """A peer that reads and writes only when it is told to."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self.reader = FrameReader()
        self.received_bytes = 0

    async def say(self, *messages: Message) -> None:
        data = b"".join(encode_frame(to_fields(m, 2)) for m in messages)
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def hear(self) -> list[Message] | None:
        """Messages of the next bytes; None at the end."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 16 << 10)
        except ConnectionResetError:
            return None
        self.received_bytes += len(data)
        found = [from_fields(fields, 2) for fields, _ in self.reader.feed(data)]
        return [message for message in found if message is not None] if data else None


@asynccontextmanager
async def raw_edge(settings: Settings = CLOUD) -> AsyncIterator[tuple[RawEdge, End]]:
    """A cloud end and a raw peer with one open session, a small receive buffer and no wish to read."""
    async with listening(settings) as (end, address):
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
            await asyncio.get_running_loop().sock_connect(sock, address)
            raw = RawEdge(sock)
            await raw.say(HELLO, OPEN)
            await end.first(Received)
            yield raw, end


async def turns_until(condition: Callable[[], bool]) -> None:
    """Lets the loop turn until this is so."""
    while not condition():
        await asyncio.sleep(0)


def option(end: End, name: str) -> int:
    """A TCP option of an end's socket, as the kernel has it."""
    transport = end.link._transport
    assert transport is not None
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
        return sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))


class TestTalk:
    def test_handshake_and_a_message_each_way(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with both_ends() as (edge, cloud):
                assert isinstance((await cloud.first(Connected)).peer, Hello)
                assert isinstance((await edge.first(Connected)).peer, Welcome)
                stream = edge.link.connection.new_stream()
                size = edge.link.send(replace(OPEN, stream=stream))
                assert await cloud.first(Received) == Received(OPEN, size)
                answer = Tokens(stream, 3, (4, 5), 1, 2, 30)
                size = cloud.link.send(answer)
                assert await edge.first(Received) == Received(answer, size)
                await turns_until(lambda: edge.link.connection.rtt.smoothed_s is not None)
                assert cloud.closed == edge.closed == []

        run(talk)

    def test_options_are_set_on_both_ends(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with both_ends(replace(EDGE, silence_s=3.0), replace(CLOUD, silence_s=4.0)) as ends:
                for end, silence_ms in zip(ends, (3000, 4000), strict=True):
                    assert option(end, "TCP_NODELAY") == 1
                    if hasattr(socket, "TCP_USER_TIMEOUT"):
                        assert option(end, "TCP_USER_TIMEOUT") == silence_ms
                    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                        assert option(end, "TCP_NOTSENT_LOWAT") == 16 << 10

        run(talk)

    def test_what_is_said_in_one_turn_leaves_in_one_write(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with raw_edge() as (_, cloud):
                await asyncio.sleep(0)
                writes, sent = cloud.link.traffic.writes, cloud.link.traffic.bytes_out
                sizes = [cloud.link.send(Tokens(1, 3 + i, (4,), 0, 0, 1)) for i in range(20)]
                await turns_until(lambda: cloud.link.traffic.bytes_out - sent >= sum(sizes))
                assert cloud.link.traffic.writes == writes + 1
                assert cloud.link.traffic.bytes_out == sent + sum(sizes)

        run(talk)

    def test_refusal_reaches_the_edge_in_words(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with listening(replace(CLOUD, identify=refuse)) as (cloud, address):
                edge = End(EDGE)
                await asyncio.get_running_loop().create_connection(lambda: edge.link, *address)
                closed = await edge.first(Closed)
                assert (closed.code, closed.retry) == (Code.AUTH, False)
                assert cloud.closed == [closed]
                assert edge.events == [closed]

        run(talk)


class TestPacketBytes:
    """Bytes with headers, by the kernel's count of segments, or from reads and writes where there is none."""

    def test_what_one_end_sends_the_other_receives(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with both_ends() as (edge, cloud):
                stream = edge.link.connection.new_stream()
                edge.link.send(replace(OPEN, stream=stream))
                await cloud.first(Received)
                frames, packets = cloud.link.traffic.bytes_out, cloud.link.packet_bytes()[1]
                cloud.link.send(Tokens(stream, 3, (4, 5), 1, 2, 30))
                await edge.first(Received)
                frames = cloud.link.traffic.bytes_out - frames
                headers = cloud.link.packet_bytes()[1] - packets - frames
                assert headers >= IPV4_HEADER_BYTES
                assert headers % IPV4_HEADER_BYTES == 0
                # The kernel does not count the SYN that it answered before there was a connection.
                await turns_until(
                    lambda: edge.link.packet_bytes()[0] - cloud.link.packet_bytes()[1] == IPV4_HEADER_BYTES
                )
                await turns_until(lambda: cloud.link.packet_bytes()[0] == edge.link.packet_bytes()[1])

        run(talk)

    def test_an_ended_link_keeps_its_numbers(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with both_ends() as (edge, cloud):
                live = edge.link.packet_bytes()
                cloud.link.abort()
                await edge.first(Closed)
                ended = edge.link.packet_bytes()
                assert all(was <= now for was, now in zip(live, ended, strict=True))
                assert min(live) > 0

        run(talk)

    def test_reads_and_writes_stand_in_for_the_kernels_count(
        self, run: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def talk() -> None:
            monkeypatch.setattr(sys, "platform", "an old one")
            async with both_ends() as (edge, _):
                traffic = edge.link.traffic
                headers = (traffic.reads + traffic.writes) * IPV4_HEADER_BYTES
                assert traffic.reads
                assert traffic.writes
                expected = (traffic.bytes_in + headers, traffic.bytes_out + headers)
                assert edge.link.packet_bytes() == expected

        run(talk)

    def test_a_socket_that_is_no_tcp_has_no_segments(self) -> None:
        assert segments(None) is None
        left, right = socket.socketpair(socket.AF_UNIX)
        with left, right:
            assert segments(left) is None


class TestBackPressure:
    def test_a_peer_that_does_not_read_is_dropped_before_memory_fills(
        self, run: Callable[[Scene], None]
    ) -> None:
        async def talk() -> None:
            async with raw_edge() as (raw, cloud):
                message = Tokens(1, 3, tuple(range(1000)) * 16, 0, 0, 1)
                accepted = 0
                while size := cloud.link.send(message):
                    accepted += size
                    await asyncio.sleep(0)
                (closed,) = cloud.closed
                assert closed.code is Code.SLOW_READER
                # What the queue may hold, what is under way in transport and kernel, and one message.
                assert MAX_QUEUED_BYTES < accepted < MAX_QUEUED_BYTES + (2 << 20)
                assert accepted - cloud.link.traffic.bytes_out < MAX_QUEUED_BYTES + 2 * size + (1 << 20)
                while await raw.hear() is not None:
                    pass
                assert raw.received_bytes < MAX_QUEUED_BYTES
                assert cloud.closed == [closed]

        run(talk)

    def test_a_ping_is_answered_past_the_bulk_data_that_waits(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with raw_edge() as (raw, cloud):
                chunk = Kv(1, KvOp.PAGES, b"model", 0, 64, 0, 64, "raw", 0, bytes(64 << 10))
                bulk = sum(cloud.link.send(replace(chunk, chunk=n)) for n in range(64))
                await asyncio.sleep(0)
                heard = cloud.link.traffic.bytes_in
                await raw.say(Ping(0, 77))
                await turns_until(lambda: cloud.link.traffic.bytes_in > heard)
                before: int | None = None
                chunks: list[int] = []
                while len(chunks) < 64:
                    messages = await raw.hear()
                    assert messages is not None
                    if any(isinstance(m, Pong) and m.cookie == 77 for m in messages):
                        before = raw.received_bytes
                    chunks += [m.chunk for m in messages if isinstance(m, Kv)]
                assert chunks == list(range(64))
                assert before is not None
                assert before < bulk / 8
                assert cloud.closed == []

        run(talk)

    def test_a_peer_that_stops_reading_is_dropped_after_a_while(
        self, run: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ecd.wire.link.STUCK_S", 0.1)

        async def talk() -> None:
            async with raw_edge() as (_, cloud):
                # More than kernel and transport take, and far less than the queue may hold.
                for _ in range(32):
                    cloud.link.send(Tokens(1, 3, tuple(range(1000)) * 32, 0, 0, 1))
                assert (await cloud.first(Closed)).code is Code.SLOW_READER
                await cloud.link.ended.wait()

        run(talk)

    def test_a_peer_that_reads_slowly_is_kept(
        self, run: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ecd.wire.link.STUCK_S", LIMIT_S)

        async def talk() -> None:
            async with raw_edge() as (raw, cloud):
                sent = sum(cloud.link.send(Tokens(1, 3, (4,) * 32000, 0, 0, 1)) for _ in range(32))
                while raw.received_bytes < sent:
                    assert await raw.hear() is not None
                assert cloud.closed == []

        run(talk)

    def test_what_is_held_for_a_peer_is_counted(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with raw_edge() as (raw, cloud):
                assert cloud.link.held_bytes < 1000
                part = encode_frame(to_fields(replace(OPEN, stream=2, prompt=(7,) * 20000), 2))[:-1]
                heard = cloud.link.traffic.bytes_in
                await asyncio.get_running_loop().sock_sendall(raw.sock, part)
                await turns_until(lambda: cloud.link.traffic.bytes_in == heard + len(part))
                assert len(part) <= cloud.link.held_bytes < len(part) + 1000
                for _ in range(32):
                    cloud.link.send(Tokens(1, 3, (4,) * 32000, 0, 0, 1))
                await asyncio.sleep(0)
                assert cloud.link.held_bytes > 1 << 20

        run(talk)


class TestToll:
    """What a peer sends is taken in pieces, and no faster than whoever judges it allows."""

    def test_a_peer_that_sends_much_is_read_in_pieces(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with raw_edge() as (raw, cloud):
                pieces: list[int] = []

                def count(link: Link, size: int, frames: int) -> None:
                    pieces.append(frames)

                cloud.link.toll = count
                ping = encode_frame(to_fields(Ping(0, 1), 2))
                many = 10 * FAIR_BYTES // len(ping)
                await raw.say(*[Ping(0, 1)] * many)
                await turns_until(lambda: sum(pieces) == many)
                assert max(pieces) <= FAIR_BYTES // len(ping) + 1

        run(talk)

    def test_nothing_is_read_while_the_toll_holds_it_back_and_all_of_it_afterwards(
        self, run: Callable[[Scene], None]
    ) -> None:
        async def talk() -> None:
            async with raw_edge() as (raw, cloud):
                holding, asked = True, 0

                def hold(link: Link) -> float:
                    nonlocal asked
                    asked += 1
                    return 0.001 if holding else 0.0

                cloud.link.wait_s = hold
                await raw.say(*(replace(OPEN, stream=number) for number in range(2, 500)))
                while asked < 20:
                    await asyncio.sleep(0.001)
                assert len(cloud.events) == 2
                holding = False
                while len(cloud.events) < 500:
                    await asyncio.sleep(0.001)
                assert [e.message.stream for e in cloud.events if isinstance(e, Received)] == list(
                    range(1, 500)
                )

        run(talk)

    def test_it_stops_inside_a_piece_and_goes_on_where_it_stopped(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with raw_edge() as (raw, cloud):
                before, most = len(cloud.events), 0

                def one_a_turn(link: Link) -> float:
                    return 0.001 if len(cloud.events) > most else 0.0

                most = before
                cloud.link.wait_s = one_a_turn
                # All of them fit one piece.
                await raw.say(*(replace(OPEN, stream=number) for number in range(2, 52)))
                for done in range(1, 51):
                    await turns_until(lambda done=done: len(cloud.events) == before + done)
                    most += 1
                opened = [e.message.stream for e in cloud.events if isinstance(e, Received)]
                assert opened == list(range(1, 52))

        run(talk)

    def test_a_peer_that_is_held_back_is_not_silent(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with raw_edge(replace(CLOUD, ping_interval_s=0.05, silence_s=0.3)) as (raw, cloud):
                cloud.link.wait_s = lambda link: 0.01
                await raw.say(replace(OPEN, stream=2))
                began = monotonic()
                while monotonic() < began + 0.9:
                    await asyncio.sleep(0.01)
                    assert not cloud.closed
                cloud.link.wait_s = lambda link: 0.0
                await turns_until(lambda: isinstance(cloud.events[-1], Received))
                assert (await cloud.first(Closed)).code is Code.TIMEOUT

        run(talk)

    @pytest.mark.parametrize("lost", [True, False])
    def test_an_end_does_not_wait_and_what_is_held_back_is_dropped(
        self, run: Callable[[Scene], None], lost: bool
    ) -> None:
        async def talk() -> None:
            async with raw_edge() as (raw, cloud):
                before = len(cloud.events)
                cloud.link.wait_s = lambda link: float(len(cloud.events) > before)
                many = [replace(OPEN, stream=number) for number in range(2, 52)]
                await raw.say(*many, *([] if lost else [BYE]))
                if lost:
                    await turns_until(lambda: len(cloud.events) > before)
                    cloud.link.abort()
                await cloud.first(Closed)
                told = [type(event) for event in cloud.events[before:]]
                assert told == [Received, Closed]

        run(talk)

    def test_what_came_before_the_end_counts(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with raw_edge() as (raw, cloud):
                await raw.say(*(replace(OPEN, stream=number) for number in range(2, 1000)), BYE)
                raw.sock.shutdown(socket.SHUT_WR)
                assert (await cloud.first(Closed)).code is Code.INTERNAL
                assert sum(isinstance(event, Received) for event in cloud.events) == 999

        run(talk)


class TestEnd:
    def test_a_silent_peer_is_given_up_and_its_socket_closed(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with raw_edge(replace(CLOUD, ping_interval_s=0.05, silence_s=0.3)) as (raw, cloud):
                closed = await cloud.first(Closed)
                assert closed.code is Code.TIMEOUT
                while await raw.hear() is not None:
                    pass
                assert cloud.closed == [closed]

        run(talk)

    def test_a_silent_peer_is_let_go_even_with_unread_data_in_the_way(
        self, run: Callable[[Scene], None]
    ) -> None:
        async def talk() -> None:
            async with raw_edge(replace(CLOUD, ping_interval_s=0.05, silence_s=0.3)) as (_, cloud):
                cloud.link.send(Tokens(1, 3, tuple(range(1000)) * 500, 0, 0, 1))
                assert (await cloud.first(Closed)).code is Code.TIMEOUT
                async with asyncio.timeout(0.2):
                    await turns_until(lambda: cloud.link._transport is None)

        run(talk)

    def test_a_peer_that_never_greets_is_given_up(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with listening(replace(CLOUD, handshake_s=0.1)) as (cloud, address):
                with socket.socket() as sock:
                    sock.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(sock, address)
                    assert (await cloud.first(Closed)).code is Code.TIMEOUT
                    raw = RawEdge(sock)
                    while await raw.hear() is not None:
                        pass

        run(talk)

    @pytest.mark.parametrize("how", ["close", "abort", "garbage", "both"])
    def test_is_told_exactly_once_at_both_ends(self, run: Callable[[Scene], None], how: str) -> None:
        async def talk() -> None:
            async with both_ends() as (edge, cloud):
                match how:
                    case "close":
                        cloud.link.close(Code.DRAINING, "stopping")
                        cloud.link.close(Code.INTERNAL, "again")
                    case "abort":
                        cloud.link.abort()
                    case "garbage":
                        cloud.link._transport.write(bytes(4))  # type: ignore[union-attr]
                    case "both":
                        cloud.link.close(Code.DRAINING, "stopping")
                        edge.link.close(Code.INTERNAL, "stopping too")
                await edge.first(Closed)
                await cloud.first(Closed)
                await turns_until(lambda: edge.link._transport is None and cloud.link._transport is None)
                edge.link.abort()
                cloud.link.close(Code.INTERNAL, "again")
                await asyncio.sleep(0)
                codes = [[closed.code for closed in end.closed] for end in (edge, cloud)]
                expected = {
                    "close": [[Code.DRAINING], [Code.DRAINING]],
                    "abort": [[Code.UNAVAILABLE], [Code.UNAVAILABLE]],
                    "garbage": [[Code.PROTOCOL], [Code.PROTOCOL]],
                    "both": [[Code.INTERNAL], [Code.DRAINING]],
                }
                assert codes == expected[how]
                assert isinstance(edge.events[-1], Closed)
                assert isinstance(cloud.events[-1], Closed)

        run(talk)

    def test_of_a_violation_reaches_the_peer_as_an_error(self, run: Callable[[Scene], None]) -> None:
        async def talk() -> None:
            async with raw_edge() as (raw, cloud):
                await raw.say(HELLO)
                closed = await cloud.first(Closed)
                said: list[Message] = []
                while (messages := await raw.hear()) is not None:
                    said += messages
                assert said[-1] == Error(0, Code.PROTOCOL, closed.message)
                assert sum(isinstance(m, Error) for m in said) == 1

        run(talk)

    def test_is_the_last_event_even_when_a_handler_closes_the_link(
        self, run: Callable[[Scene], None]
    ) -> None:
        async def talk() -> None:
            async with raw_edge() as (raw, cloud):

                def close_at_once(link: Link, event: Event) -> None:
                    cloud.on_event(link, event)
                    if isinstance(event, Received):
                        link.close(Code.PROTOCOL, "not like this")

                cloud.link._on_event = close_at_once
                await raw.say(Reset(1, Code.CANCELLED, "a"), replace(OPEN, stream=2), replace(OPEN, stream=3))
                await cloud.first(Closed)
                assert isinstance(cloud.events[-1], Closed)

        run(talk)
