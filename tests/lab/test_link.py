"""The emulated link: what a lane decides, and what real sockets see through the relay on both event loops."""

import asyncio
import math
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from ecd.errors import ConfigError, LinkError
from ecd.lab.lane import (
    NOTHING_PLANNED,
    QUEUE_LIMIT_BYTES,
    Conditions,
    Cut,
    CutAt,
    Direction,
    HalfOpen,
    HalfOpenAt,
    Lane,
    Mark,
    Refuse,
    Schedule,
    Stall,
    random_schedule,
)
from ecd.lab.link import EmulatedLink

LIMIT_S = 8.0  # no wait in here may be longer
CLEAR = Conditions()


def lane_of(conditions: Conditions, stop: Cut | HalfOpen | None = None, seed: int = 0) -> Lane:
    return Lane(conditions, random.Random(seed), stop)


def drain(lane: Lane) -> list[tuple[float, bytes | Mark]]:
    """Everything the lane still hands out, each at the time it names."""
    taken: list[tuple[float, bytes | Mark]] = []
    while (due_s := lane.due_s) is not None:
        while (item := lane.take(due_s)) is not None:
            taken.append((due_s, item))
    return taken


class TestLane:
    def test_hands_out_bytes_after_the_delay_and_not_before(self) -> None:
        lane = lane_of(Conditions(delay_s=0.25))
        lane.offer(10.0, b"abc")
        assert lane.due_s == 10.25
        assert lane.take(10.2499) is None
        assert lane.take(10.25) == b"abc"
        assert lane.take(99.0) is None

    def test_bandwidth_spreads_a_chunk_over_the_line(self) -> None:
        lane = lane_of(Conditions(delay_s=0.5, bandwidth_bps=8000 * 1448))  # one segment a millisecond
        lane.offer(0.0, bytes(1448 * 3))
        lane.offer(0.0, bytes(1448))  # queues behind
        assert [due_s for due_s, _ in drain(lane)] == pytest.approx([0.501, 0.502, 0.503, 0.504])
        lane.offer(7.0, bytes(1448))  # an idle line saves nothing up
        assert lane.due_s == pytest.approx(7.501)

    def test_jitter_is_drawn_per_chunk_and_fixed_by_the_seed(self) -> None:
        def travels_s(seed: int) -> list[float]:
            lane = lane_of(Conditions(delay_s=0.5, jitter_s=0.25), seed=seed)
            for now_s in range(50):  # far apart: no chunk waits for the one ahead
                lane.offer(now_s, b"x")
            return [due_s - now_s for now_s, (due_s, _) in enumerate(drain(lane))]

        assert travels_s(1) == travels_s(1) != travels_s(2)
        assert 0.5 <= min(travels_s(1)) < 0.55
        assert 0.7 < max(travels_s(1)) <= 0.75

    def test_end_comes_behind_the_bytes(self) -> None:
        lane = lane_of(Conditions(delay_s=0.1, bandwidth_bps=8e3))
        lane.offer(0.0, bytes(1000))
        lane.end(0.0, Mark.EOF)
        assert [item for _, item in drain(lane)] == [bytes(1000), Mark.EOF]

    def test_changed_conditions_hold_from_then_on_and_keep_order(self) -> None:
        lane = lane_of(Conditions(delay_s=1.0))
        lane.offer(0.0, b"slow")
        lane.conditions = CLEAR
        lane.offer(0.1, b"fast")
        assert drain(lane) == [(1.0, b"slow"), (1.0, b"fast")]
        lane.offer(2.0, b"later")
        assert lane.due_s == 2.0

    @pytest.mark.parametrize(("stop", "mark"), [(Cut, Mark.CUT), (HalfOpen, Mark.DIE)])
    def test_stop_falls_inside_a_chunk(self, stop: type[Cut | HalfOpen], mark: Mark) -> None:
        lane = lane_of(CLEAR, stop(5, Direction.UP))
        lane.offer(0.0, b"abc")
        lane.offer(0.0, b"defg")
        assert [lane.take(0.0) for _ in range(3)] == [b"abc", b"de", mark]

    def test_stop_at_zero_bytes_needs_no_bytes(self) -> None:
        assert lane_of(CLEAR, Cut(0, Direction.UP)).take(0.0) is Mark.CUT

    def test_hold_shifts_what_is_under_way_and_overlaps_once(self) -> None:
        lane = lane_of(Conditions(delay_s=1.0))
        lane.offer(0.0, b"a")
        lane.hold(0.5, 2.5)
        lane.hold(1.0, 2.0)  # within the first: changes nothing
        lane.hold(1.0, 3.0)
        lane.offer(1.5, b"b")
        assert drain(lane) == [(3.5, b"a"), (4.0, b"b")]

    def test_hold_also_holds_what_was_overdue(self) -> None:
        lane = lane_of(CLEAR)
        lane.offer(0.0, b"a")
        lane.hold(5.0, 6.0)
        assert lane.take(5.9) is None
        assert lane.take(6.0) == b"a"

    def test_swallow_loses_what_is_queued_and_what_comes(self) -> None:
        lane = lane_of(CLEAR)
        lane.swallow()
        assert lane.intact
        lane.offer(0.0, b"a")
        lane.end(0.0, Mark.EOF)
        assert (lane.take(9.0), lane.intact, lane.queued_bytes) == (None, False, 0)
        other = lane_of(CLEAR)
        other.offer(0.0, b"a")
        other.swallow()
        assert (other.take(9.0), other.intact, other.queued_bytes) == (None, False, 0)

    @given(
        offers=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4000)), max_size=20),
        delay_s=st.floats(0, 1),
        jitter_s=st.floats(0, 1),
        bandwidth_bps=st.sampled_from([0.0, 1e5, 1e7, 1e9]),
        held_s=st.floats(0, 1),
        after_bytes=st.none() | st.integers(0, 40_000),
        seed=st.integers(0, 9),
    )
    def test_any_conversation(
        self,
        offers: list[tuple[float, bytes]],
        delay_s: float,
        jitter_s: float,
        bandwidth_bps: float,
        held_s: float,
        after_bytes: int | None,
        seed: int,
    ) -> None:
        """Order and content are kept, nothing is early, the line's rate is never beaten, a stop is exact."""
        stop = None if after_bytes is None else Cut(after_bytes, Direction.UP)
        lane = lane_of(Conditions(delay_s, jitter_s, bandwidth_bps), stop, seed)
        now_s = 0.0
        arrivals: list[tuple[int, float]] = []  # bytes offered up to then, and when
        for gap_s, data in offers:
            now_s += gap_s
            lane.offer(now_s, data)
            arrivals.append((len(data) + (arrivals[-1][0] if arrivals else 0), now_s))
        sent = b"".join(data for _, data in offers)
        assert lane.queued_bytes == len(sent)
        lane.hold(now_s, now_s + held_s)
        taken = drain(lane)
        received = b"".join(item for _, item in taken if isinstance(item, bytes))
        if after_bytes is not None and after_bytes <= len(sent) and taken:
            cut = [item for _, item in taken].index(Mark.CUT)
            assert sum(len(item) for _, item in taken[:cut] if isinstance(item, bytes)) == after_bytes
        assert received == sent
        assert lane.queued_bytes == 0
        assert [due_s for due_s, _ in taken] == sorted(due_s for due_s, _ in taken)
        got_bytes = 0
        for due_s, item in taken:
            if isinstance(item, Mark):
                continue
            offered_s = next(at_s for upto_bytes, at_s in arrivals if upto_bytes > got_bytes)
            got_bytes += len(item)
            serial_s = len(item) * 8 / bandwidth_bps if bandwidth_bps else 0.0
            assert due_s >= offered_s + delay_s + serial_s - 1e-9
        if bandwidth_bps and taken:
            assert taken[-1][0] >= arrivals[0][1] + delay_s + len(sent) * 8 / bandwidth_bps - 1e-9


class TestSchedule:
    def test_same_seed_same_schedule(self) -> None:
        first = random_schedule(7, 10.0, half_opens=2)
        assert first == random_schedule(7, 10.0, half_opens=2)
        assert first != random_schedule(8, 10.0, half_opens=2)

    def test_counts_and_ranges_are_those_asked_for(self) -> None:
        events = random_schedule(1, 10.0, cuts=5, stalls=4, half_opens=3).events
        kinds = [Cut, CutAt, HalfOpen, HalfOpenAt, Stall]
        cuts, cuts_at, deaths, deaths_at, stalls = (
            [e for e in events if isinstance(e, kind)] for kind in kinds
        )
        assert (len(cuts) + len(cuts_at), len(deaths) + len(deaths_at), len(stalls)) == (5, 3, 4)
        assert all(0 <= e.at_s <= 10 for e in events if isinstance(e, CutAt | HalfOpenAt | Stall))

    def test_the_earliest_stop_of_a_lane_counts(self) -> None:
        schedule = Schedule((Cut(9, Direction.UP), HalfOpen(5, Direction.UP), Cut(1, Direction.DOWN, 1)))
        assert schedule.stop(0, Direction.UP) == HalfOpen(5, Direction.UP)
        assert schedule.stop(1, Direction.DOWN) == Cut(1, Direction.DOWN, 1)
        assert schedule.stop(0, Direction.DOWN) is None

    def test_conditions_that_are_negative_or_without_end_are_refused(self) -> None:
        for delay_s in (math.nan, math.inf):
            with pytest.raises(ConfigError, match="finite"):
                Conditions(delay_s)
        with pytest.raises(ConfigError, match="negative"):
            Conditions(delay_s=-1)


@dataclass(eq=False)
class Tap(asyncio.Protocol):
    """One end of a connection: keeps what arrives, and how it ended."""

    echo: bool = False
    received: bytearray = field(default_factory=bytearray)
    eof: bool = False
    lost: bool = False
    error: Exception | None = None
    writable: asyncio.Event = field(default_factory=asyncio.Event)
    transport: asyncio.Transport = field(init=False)
    wakes: set[asyncio.Future[None]] = field(default_factory=set)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.echo:
            self.transport.write(data)
        self.wake()

    def eof_received(self) -> bool:
        self.eof = True
        self.wake()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self.error = True, exc
        self.wake()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def wake(self) -> None:
        for future in self.wakes:
            if not future.done():
                future.set_result(None)

    async def until(self, holds: Callable[["Tap"], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not holds(self):
                future = asyncio.get_running_loop().create_future()
                self.wakes.add(future)
                await future
                self.wakes.discard(future)

    async def until_bytes(self, count: int) -> None:
        await self.until(lambda tap: len(tap.received) >= count)


async def becomes(holds: Callable[[], bool]) -> None:
    """Wait for what has no event of its own."""
    async with asyncio.timeout(LIMIT_S):
        while not holds():
            await asyncio.sleep(0.002)


@dataclass
class Rig:
    link: EmulatedLink
    taps: "asyncio.Queue[Tap]"

    async def dial(self) -> Tap:
        _, tap = await asyncio.get_running_loop().create_connection(Tap, self.link.host, self.link.port)
        return tap

    async def pair(self) -> tuple[Tap, Tap]:
        client = await self.dial()
        return client, await asyncio.wait_for(self.taps.get(), LIMIT_S)


@asynccontextmanager
async def rig(
    conditions: Conditions = CLEAR, schedule: Schedule = NOTHING_PLANNED, echo: bool = False
) -> AsyncIterator[Rig]:
    taps: asyncio.Queue[Tap] = asyncio.Queue()

    def accept() -> Tap:
        tap = Tap(echo)
        taps.put_nowait(tap)
        return tap

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        async with EmulatedLink(host, port, conditions, schedule=schedule, seed=1) as link:
            yield Rig(link, taps)
    finally:
        server.close()


@pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture:DeprecationWarning")
class TestRelay:
    @pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy])
    def event_loop_policy(self, request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
        policy: asyncio.AbstractEventLoopPolicy = request.param()
        return policy

    async def test_bytes_arrive_unchanged_in_order_with_their_end(self) -> None:
        rng = random.Random(3)
        async with rig(Conditions(delay_s=0.01, jitter_s=0.01)) as r:
            client, server = await r.pair()
            up = [rng.randbytes(rng.randrange(1, 3000)) for _ in range(60)]
            down = rng.randbytes(1_000_000)
            server.transport.write(down)
            for data in up:
                client.transport.write(data)
                await asyncio.sleep(0)
            client.transport.write_eof()
            await server.until(lambda tap: tap.eof)
            assert bytes(server.received) == b"".join(up)
            await client.until_bytes(len(down))
            server.transport.write(b"last")  # the other half outlives the first end
            server.transport.close()
            await client.until(lambda tap: tap.eof)
            assert bytes(client.received) == down + b"last"
            stats = r.link.stats
            assert (stats.connections, stats.up_bytes) == (1, len(b"".join(up)))
            assert stats.down_bytes == len(down) + 4
            assert min(stats.up_chunks, stats.down_chunks) >= 1
            client.transport.close()

    async def test_round_trip_is_twice_the_delay(self) -> None:
        async with rig(Conditions(delay_s=0.02), echo=True) as r:
            client, _ = await r.pair()
            rtts_s = []
            for count in range(1, 9):
                start_s = time.monotonic()
                client.transport.write(b"x")
                await client.until_bytes(count)
                rtts_s.append(time.monotonic() - start_s)
            assert min(rtts_s) >= 0.04
            assert min(rtts_s) < 0.05

    async def test_new_conditions_hold_at_once(self) -> None:
        async with rig(Conditions(delay_s=30.0), echo=True) as r:
            client, _ = await r.pair()
            r.link.set(Conditions(delay_s=0.02))
            start_s = time.monotonic()
            client.transport.write(b"x")
            await client.until_bytes(1)
            assert time.monotonic() - start_s >= 0.04

    async def test_bandwidth_takes_its_time_each_way(self) -> None:
        async with rig(Conditions(bandwidth_bps=8e6), echo=True) as r:
            client, server = await r.pair()
            start_s = time.monotonic()
            client.transport.write(bytes(200_000))
            await server.until_bytes(200_000)
            assert 0.2 <= time.monotonic() - start_s < 1.0
            await client.until_bytes(200_000)  # the echo overlaps, it does not come a second time after it
            assert time.monotonic() - start_s < 1.0

    @pytest.mark.parametrize("after_bytes", [0, 1, 1000, 70_001])
    @pytest.mark.parametrize("direction", Direction)
    async def test_cut_delivers_exactly_and_resets_both(self, after_bytes: int, direction: Direction) -> None:
        schedule = Schedule((Cut(after_bytes, direction, connection=1),))
        async with rig(Conditions(delay_s=0.001), schedule) as r:
            spared, _ = await r.pair()
            client, server = await r.pair()
            sender, receiver = (client, server) if direction is Direction.UP else (server, client)
            data = random.Random(0).randbytes(100_000)
            if not sender.lost:  # a cut at 0 may come before
                sender.transport.write(data)
            await receiver.until(lambda tap: tap.lost)
            await sender.until(lambda tap: tap.lost)
            assert bytes(receiver.received) == data[:after_bytes]
            assert isinstance(receiver.error, ConnectionResetError)
            assert isinstance(sender.error, ConnectionError)
            assert r.link.stats.cuts == 1
            assert not spared.lost

    async def test_cut_waits_for_a_slow_reader_to_have_it_all(self) -> None:
        async with rig(schedule=Schedule((Cut(600_000, Direction.UP),))) as r:
            client, server = await r.pair()
            server.transport.pause_reading()
            client.transport.write(bytes(700_000))
            await becomes(lambda: r.link.stats.cuts == 1)  # decided, but much is still in the kernel's buffer
            server.transport.resume_reading()
            await server.until(lambda tap: tap.lost)
            assert len(server.received) == 600_000

    @pytest.mark.parametrize("timed", [False, True])
    async def test_cut_now_or_at_a_time(self, timed: bool) -> None:
        async with rig(schedule=Schedule((CutAt(0.3),)) if timed else NOTHING_PLANNED) as r:
            client, server = await r.pair()
            if not timed:
                r.link.cut()
            await client.until(lambda tap: tap.lost)
            await server.until(lambda tap: tap.lost)
            assert isinstance(client.error, ConnectionResetError)
            assert r.link.stats.cuts == 1
            again, _ = await r.pair()
            assert not again.lost

    @pytest.mark.parametrize("timed", [False, True])
    async def test_stall_holds_then_delivers(self, timed: bool) -> None:
        async with rig(schedule=Schedule((Stall(0.0, 0.3),)) if timed else NOTHING_PLANNED, echo=True) as r:
            start_s = time.monotonic()
            if not timed:
                r.link.stall(0.3)
            else:
                await asyncio.sleep(0.01)  # past the stall's beginning, at the very start of the link
            client, server = await r.pair()
            client.transport.write(b"held")
            await becomes(lambda: r.link.stats.queued_bytes == 4)
            assert not server.received
            await client.until_bytes(4)
            assert time.monotonic() - start_s >= 0.3
            assert bytes(client.received) == b"held"

    async def test_corrupt_overwrites_what_comes_next_each_way_and_nothing_else(self) -> None:
        async with rig(echo=True) as r:
            client, server = await r.pair()
            client.transport.write(b"before")
            await client.until_bytes(6)
            r.link.corrupt()
            assert r.link.stats.corruptions == 2
            client.transport.write(b"spoilt")
            await client.until_bytes(12)
            client.transport.write(b"after")
            await client.until_bytes(17)
            assert bytes(server.received) == b"before" + b"\xff" * 6 + b"after"
            assert bytes(client.received) == bytes(server.received)

    async def test_black_hole_swallows_and_both_stay_open(self) -> None:
        async with rig(echo=True) as r:
            client, server = await r.pair()
            idle, idle_server = await r.pair()
            client.transport.write(b"before")
            await client.until_bytes(6)
            r.link.black_hole()
            client.transport.write(b"lost")
            server.transport.write(b"lost")
            later, _ = await r.pair()
            drowned, drowned_server = await r.pair()
            drowned.transport.write(b"lost")
            await becomes(lambda: r.link.stats.swallowed_bytes == 12)
            assert not any(tap.lost or tap.eof for tap in (client, server, later, drowned, drowned_server))
            r.link.restore()
            await client.until(lambda tap: tap.lost)  # it has a hole: TCP would never go on
            await server.until(lambda tap: tap.lost)
            assert (bytes(server.received), bytes(client.received)) == (b"before", b"before")
            idle.transport.write(b"on")  # lost nothing, lives on
            await idle_server.until_bytes(2)
            later.transport.write(b"on")
            await later.until_bytes(2)

    @pytest.mark.parametrize("timed", [False, True])
    async def test_scheduled_death_is_silent_and_spares_later_connections(self, timed: bool) -> None:
        event = HalfOpenAt(0.3) if timed else HalfOpen(6, Direction.UP)
        async with rig(schedule=Schedule((event,))) as r:
            client, server = await r.pair()
            client.transport.write(b"before" if timed else b"beforelost")
            await server.until_bytes(6)
            if timed:
                await asyncio.sleep(0.3)  # until the time of the death
            client.transport.write(b"lost")
            server.transport.write(b"lost")
            await becomes(lambda: r.link.stats.swallowed_bytes == (8 if timed else 12))
            other, other_server = await r.pair()
            other.transport.write(b"alive")
            await other_server.until_bytes(5)
            assert (bytes(server.received), bytes(client.received)) == (b"before", b"")
            client.transport.abort()  # the server must not learn of it
            other.transport.write(b"still")
            await other_server.until_bytes(10)
            assert not any((server.lost, server.eof))
            server.transport.write_eof()
            await server.until(lambda tap: tap.lost)  # nobody is left, so the relay lets go

    async def test_refuse_window(self) -> None:
        async with rig(schedule=Schedule((Refuse(0.0, 0.3),)), echo=True) as r:
            refused = await r.dial()
            await refused.until(lambda tap: tap.lost)
            assert (r.link.stats.refused, r.link.stats.connections) == (1, 0)
            await asyncio.sleep(0.3)  # until the window is over
            client, _ = await r.pair()
            client.transport.write(b"x")
            await client.until_bytes(1)

    async def test_back_pressure_bounds_memory(self) -> None:
        block, blocks = bytes(1 << 20), 40
        async with rig() as r:
            client, server = await r.pair()
            server.transport.pause_reading()

            async def send() -> None:
                for _ in range(blocks):
                    client.transport.write(block)
                    await client.writable.wait()

            sending = asyncio.create_task(send())
            await becomes(lambda: r.link.stats.queued_bytes >= QUEUE_LIMIT_BYTES)
            for _ in range(100):  # the sender's turn, again and again: it must not get further
                await asyncio.sleep(0)
            assert r.link.stats.queued_bytes < QUEUE_LIMIT_BYTES + (1 << 19)
            assert not sending.done()
            server.transport.resume_reading()
            await server.until_bytes(blocks << 20)
            await sending
            assert len(server.received) == blocks << 20

    async def test_peer_reset_comes_through_behind_its_data(self) -> None:
        async with rig(Conditions(delay_s=0.05)) as r:
            client, server = await r.pair()
            client.transport.write(b"last words")
            await becomes(lambda: r.link.stats.queued_bytes == 10)
            linger = struct.pack("ii", 1, 0)
            client.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.transport.abort()
            await server.until(lambda tap: tap.lost)
            assert bytes(server.received) == b"last words"
            assert isinstance(server.error, ConnectionResetError)
            assert r.link.stats.cuts == 0

    async def test_refusing_upstream_costs_only_the_connection(self) -> None:
        gone = await asyncio.get_running_loop().create_server(Tap, "127.0.0.1", 0)
        host, port = gone.sockets[0].getsockname()
        gone.close()
        await gone.wait_closed()
        async with EmulatedLink(host, port, CLEAR) as link:
            for connection in (1, 2):
                _, tap = await asyncio.get_running_loop().create_connection(Tap, link.host, link.port)
                await tap.until(lambda tap: tap.lost)
                assert link.stats.connections == connection

    async def test_taken_port_is_a_link_error(self) -> None:
        async with rig() as r:
            with pytest.raises(LinkError, match="cannot listen"):
                await EmulatedLink("127.0.0.1", 1, CLEAR, listen=(r.link.host, r.link.port)).__aenter__()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_command_relays_until_told_to_stop(number: signal.Signals) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Tap(echo=True), "127.0.0.1", 0)
    upstream = "{}:{}".format(*server.sockets[0].getsockname())
    options = ["--listen", "127.0.0.1:0", "--to", upstream, "--delay-ms", "10", "--jitter-ms", "1"]
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "ecd.lab.link", *options, "--bandwidth-mbit", "100", "--seed", "4"],
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), LIMIT_S)).decode()
        assert line.startswith("listening on 127.0.0.1:")
        port = int(line.rpartition(":")[2])
        _, tap = await asyncio.get_running_loop().create_connection(Tap, "127.0.0.1", port)
        start_s = time.monotonic()
        tap.transport.write(b"x")
        await tap.until_bytes(1)
        assert time.monotonic() - start_s >= 0.02
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), LIMIT_S) == 0
    finally:
        server.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
