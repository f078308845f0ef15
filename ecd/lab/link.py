"""The emulated link: a TCP relay on loopback that delays, throttles, stalls, cuts and loses what passes.

Owns sockets and timers; what is wrong with the network, and when, is `ecd.lab.lane`'s. Nothing here may know
what the bytes mean: no frames, no protocol, nothing of the edge or the cloud.
"""

import asyncio
import fcntl
import random
import signal
import socket
import struct
import termios
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Self, assert_never, cast

import click
import uvloop

from ecd.errors import EcdError, LinkError
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
)

DRAIN_POLL_S = 0.001  # the kernel has no event for "all of it is acknowledged"


@dataclass(frozen=True, slots=True)
class LinkStats:
    """What a link has done since its start; up and down are what it delivered, `queued_bytes` wait now."""

    connections: int
    refused: int
    cuts: int
    up_bytes: int
    up_chunks: int
    down_bytes: int
    down_chunks: int
    swallowed_bytes: int
    queued_bytes: int


def _reset(transport: asyncio.Transport) -> None:
    # with a linger of zero seconds closing sends RST in place of FIN
    sock: socket.socket = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class _Refused(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        _reset(cast(asyncio.Transport, transport))


class _Side(asyncio.Protocol):
    """One socket of a relayed connection and the lane that leads to it; `peer` is the other socket."""

    peer: "_Side"

    def __init__(self, direction: Direction, lane: Lane, open_sides: set["_Side"], tally: Counter[str]):
        self.lane = lane
        self.closed = False  # the link ends the connection: nothing more is delivered
        self._direction = direction
        self._open_sides = open_sides
        self._tally = tally
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable = True
        self._reading_paused = False
        self._ended = False  # this socket sends no more
        self._finished = False  # this socket was told that the peer sends no more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._open_sides.add(self)
        if self.closed:
            _reset(self._transport)
            return
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pump()
        self.peer._throttle()  # the client may have sent much before the upstream was there

    def data_received(self, data: bytes) -> None:
        if not self.closed:
            self._tally["swallowed_bytes"] += len(data) if self.peer.lane.swallowing else 0
            self.peer.lane.offer(time.monotonic(), data)
            self.peer.pump()

    def eof_received(self) -> bool:
        self._end(Mark.EOF)
        return True  # the other direction lives on

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._open_sides.discard(self)
        if exc is not None:
            self._end(Mark.RESET)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self.pump()

    def pump(self) -> None:
        """Deliver what is due, come back when more is, and let the sender go on or wait."""
        while (transport := self._live) is not None and self._writable and not self.closed:
            now_s = time.monotonic()
            match self.lane.take(now_s):
                case None:
                    if self.lane.due_s is not None:
                        self._call_later(self.lane.due_s - now_s, self.pump)
                    break
                case bytes() as data:
                    transport.write(data)
                    self._tally[f"{self._direction.value}_bytes"] += len(data)
                    self._tally[f"{self._direction.value}_chunks"] += 1
                case Mark.EOF:
                    self._finished = True
                    transport.write_eof()
                    if self.peer._finished:
                        for side in (self, self.peer):
                            if side._live is not None:
                                side._live.close()  # in order: what was written is still sent
                case Mark.RESET:
                    self._reset_behind_data()
                case Mark.CUT:
                    self._tally["cuts"] += 1
                    self._reset_behind_data()
                case Mark.DIE:
                    self.die()
                case unreachable:
                    assert_never(unreachable)
        self._throttle()

    def drop(self) -> None:
        """Reset both sides at once."""
        for side in (self, self.peer):
            side.closed = True
            if side._timer is not None:
                side._timer.cancel()
            if side._live is not None:
                _reset(side._live)

    def die(self) -> None:
        """Become half-open: both ways swallow, both sockets stay."""
        for side in (self, self.peer):
            self._tally["swallowed_bytes"] += side.lane.queued_bytes
            side.lane.swallow()
            side._throttle()

    def revive(self) -> None:
        """End half-openness; a connection that lost something is reset, as TCP never delivers with a hole."""
        for side in (self, self.peer):
            side.lane.swallowing = False
        if not (self.lane.intact and self.peer.lane.intact):
            self.drop()

    def _end(self, mark: Mark) -> None:
        self._ended = True
        if self.lane.swallowing and self.peer._ended:
            self.drop()  # nobody is left to be kept in the dark
            return
        self.peer.lane.end(time.monotonic(), mark)
        self.peer.pump()

    @property
    def _live(self) -> asyncio.Transport | None:
        return None if self._transport is None or self._transport.is_closing() else self._transport

    def _reset_behind_data(self) -> None:
        # RST discards what the kernel has not sent, so all of it must have reached the receiver first; not
        # looked at in this turn of the loop, since uvloop writes at the turn's end
        self.closed = self.peer.closed = True
        self._call_later(DRAIN_POLL_S, self._reset_when_drained)

    def _reset_when_drained(self) -> None:
        if (transport := self._live) is not None:
            fd: int = transport.get_extra_info("socket").fileno()
            (unacknowledged_bytes,) = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))
            if unacknowledged_bytes or transport.get_write_buffer_size():
                self._call_later(DRAIN_POLL_S, self._reset_when_drained)
                return
        self.drop()

    def _throttle(self) -> None:
        if (source := self.peer._live) is None:
            return
        if self.lane.full and not self.peer._reading_paused:
            self.peer._reading_paused = True
            source.pause_reading()
        elif self.peer._reading_paused and self.lane.queued_bytes <= QUEUE_LIMIT_BYTES // 2:
            self.peer._reading_paused = False
            source.resume_reading()

    def _call_later(self, in_s: float, call: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, in_s), call)


class EmulatedLink:
    """A relay from a loopback port of its own to `host`:`port`, open inside `async with`.

    `conditions` hold for each connection on its own, `schedule` counts its times from the start, and `seed`
    fixes all that is drawn. Entering raises LinkError if the relay cannot listen on `listen`. Connections
    still open at the end are reset. Connecting itself takes no emulated time: the relay accepts at once.
    """

    def __init__(
        self,
        host: str,
        port: int,
        conditions: Conditions,
        *,
        schedule: Schedule = NOTHING_PLANNED,
        seed: int = 0,
        listen: tuple[str, int] = ("127.0.0.1", 0),
    ):
        self.host, self.port = listen  # once entered, where the relay really listens
        self._upstream = (host, port)
        self._conditions = conditions
        self._schedule = schedule
        self._rng = random.Random(seed)
        self._tally: Counter[str] = Counter()
        self._sides: set[_Side] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._black_hole = False
        self._held_until_s = 0.0

    async def __aenter__(self) -> Self:
        self._start_s = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, self.host, self.port)
        except OSError as error:
            raise LinkError(f"the emulated link cannot listen on {self.host}:{self.port}: {error}") from error
        self.host, self.port = self._server.sockets[0].getsockname()[:2]
        for event in self._schedule.events:
            match event:
                case Stall():
                    self._timers.append(loop.call_later(event.at_s, self.stall, event.for_s))
                case CutAt():
                    self._timers.append(loop.call_later(event.at_s, self.cut))
                case HalfOpenAt():
                    self._timers.append(loop.call_later(event.at_s, self._kill_open))
                case Cut() | HalfOpen() | Refuse():
                    pass  # looked up when a connection comes
                case unreachable:
                    assert_never(unreachable)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for timer in self._timers:
            timer.cancel()
        for dial in self._dials:
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        for side in self._sides:
            side.drop()
        await self._server.wait_closed()

    @property
    def stats(self) -> LinkStats:
        """The counts up to now."""
        counts = {field.name: self._tally[field.name] for field in fields(LinkStats)}
        return LinkStats(**counts | {"queued_bytes": sum(lane.queued_bytes for lane in self._lanes())})

    def set(self, conditions: Conditions) -> None:
        """Change the conditions for all that enters the link from now on."""
        self._conditions = conditions
        for lane in self._lanes():
            lane.conditions = conditions

    def cut(self) -> None:
        """Reset every open connection at once; bytes under way are lost."""
        for side in self._sides:
            if not side.closed:
                self._tally["cuts"] += 1
                side.drop()

    def stall(self, for_s: float) -> None:
        """Deliver nothing for `for_s` seconds; what is under way arrives that much later."""
        now_s = time.monotonic()
        self._held_until_s = max(self._held_until_s, now_s + for_s)
        for lane in self._lanes():
            lane.hold(now_s, self._held_until_s)

    def black_hole(self) -> None:
        """Swallow everything on open and new connections, closing none, until `restore`."""
        self._black_hole = True
        self._kill_open()

    def restore(self) -> None:
        """End every half-open death; connections that lost bytes by it are reset, the others live on."""
        self._black_hole = False
        for side in self._sides:
            if side.lane.swallowing:
                side.revive()

    def _kill_open(self) -> None:
        for side in tuple(self._sides):
            side.die()

    def _lanes(self) -> frozenset[Lane]:
        return frozenset(lane for side in self._sides for lane in (side.lane, side.peer.lane))

    def _accept(self) -> asyncio.Protocol:
        now_s = time.monotonic()
        if self._schedule.refuses(now_s - self._start_s):
            self._tally["refused"] += 1
            return _Refused()
        connection = self._tally["connections"]
        self._tally["connections"] += 1
        client, upstream = (
            _Side(
                direction,
                # a source of its own for each lane, or the timing of one would change the draws of another
                Lane(
                    self._conditions,
                    random.Random(self._rng.getrandbits(64)),
                    self._schedule.stop(connection, direction),
                ),
                self._sides,
                self._tally,
            )
            for direction in (Direction.DOWN, Direction.UP)
        )
        client.peer, upstream.peer = upstream, client
        for lane in (client.lane, upstream.lane):
            lane.hold(now_s, self._held_until_s)
            if self._black_hole:
                lane.swallow()
        dial = asyncio.get_running_loop().create_task(self._dial(upstream))
        self._dials.add(dial)
        dial.add_done_callback(self._dials.discard)
        return client

    async def _dial(self, upstream: _Side) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: upstream, *self._upstream)
        except OSError:
            upstream.drop()


def _address(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 1 << 16):
        raise click.BadParameter(f"{value!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


@click.command()
@click.option("--listen", default="127.0.0.1:0", callback=_address, help="HOST:PORT; any port by default.")
@click.option("--to", "upstream", required=True, callback=_address, help="HOST:PORT to relay to.")
@click.option("--delay-ms", default=0.0, show_default=True, help="One way; the round trip is twice this.")
@click.option("--jitter-ms", default=0.0, show_default=True, help="Added to the delay, from 0 to this.")
@click.option("--bandwidth-mbit", default=0.0, show_default=True, help="Mbit/s each way, 0 for no limit.")
@click.option("--seed", default=0, show_default=True, help="Fixes the jitter.")
def main(
    listen: tuple[str, int],
    upstream: tuple[str, int],
    delay_ms: float,
    jitter_ms: float,
    bandwidth_mbit: float,
    seed: int,
) -> None:
    """Relay TCP through an emulated network until SIGINT or SIGTERM."""

    async def serve() -> None:
        conditions = Conditions(delay_ms / 1e3, jitter_ms / 1e3, bandwidth_mbit * 1e6)
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        async with EmulatedLink(*upstream, conditions, seed=seed, listen=listen) as link:
            click.echo(f"listening on {link.host}:{link.port}")
            await stopped.wait()

    try:
        uvloop.run(serve())
    except EcdError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
