"""A relayed connection: its two sockets, and the lanes that lead to them.

Owns how bytes, ends and resets go from one socket to the other when the lanes let them. When they do is
`ecd.lab.lane`'s to say, and who connects is `ecd.lab.link`'s.
"""

import asyncio
import fcntl
import socket
import struct
import termios
import time
from collections import Counter
from collections.abc import Callable
from typing import assert_never, cast

from ecd.lab.lane import QUEUE_LIMIT_BYTES, Direction, Lane, Mark

DRAIN_POLL_S = 0.001  # the kernel has no event for "all of it is acknowledged"


def _reset(transport: asyncio.Transport) -> None:
    # with a linger of zero seconds closing sends RST in place of FIN
    sock: socket.socket = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Refused(asyncio.Protocol):
    """A connection that is reset as soon as it is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        _reset(cast(asyncio.Transport, transport))


class Side(asyncio.Protocol):
    """One socket of a relayed connection and the lane that leads to it; `peer` is the other socket."""

    peer: "Side"

    def __init__(self, direction: Direction, lane: Lane, open_sides: set["Side"], tally: Counter[str]):
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
