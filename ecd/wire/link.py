"""The asyncio adapter of `Connection`: one TCP socket, one timer, one priority queue of frames.

Owns socket options, write order and back-pressure. Decides nothing about the protocol.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import cast

from ecd.errors import Code
from ecd.wire.connection import Closed, Connection, Event, Outgoing, Priority, State
from ecd.wire.messages import Message

# What the kernel may hold unsent, and what the transport may hold before we do: short, so that order is ours
# to choose.
KERNEL_UNSENT_BYTES = 16 << 10
TRANSPORT_BYTES = 32 << 10
# A peer that lets this much pile up is not reading.
MAX_QUEUED_BYTES = 8 << 20
WRITE_BYTES = 16 << 10
# So much of a peer is looked at in one turn of the loop, then the others have theirs.
FAIR_BYTES = 8 << 10
# A peer that reads less than what the transport may hold in so long is not reading.
STUCK_S = 30.0

# Bytes before the payload of each segment: IP, TCP, and TCP's timestamps option.
IPV4_HEADER_BYTES = 20 + 20 + 12
IPV6_HEADER_BYTES = 40 + 20 + 12
# Where `tcpi_segs_out` and `tcpi_segs_in` stand in Linux's struct tcp_info (include/uapi/linux/tcp.h).
_SEGMENTS = struct.Struct("=136xII")


class PriorityQueue:
    """Frames waiting to be written: more urgent classes first, and every stream's frames in their own order.

    A frame never overtakes an earlier one of its stream, a RESET not the tokens before it, a hint not the
    prompt. Bulk data alone holds nothing up.
    """

    def __init__(self) -> None:
        self._classes: dict[Priority, deque[Outgoing]] = {p: deque() for p in Priority}
        self._waiting: dict[int, Counter[Priority]] = {}
        self.size_bytes = 0

    def push(self, frame: Outgoing) -> None:
        """Puts a frame in line."""
        priority = frame.priority
        if frame.stream and priority is not Priority.BULK:
            waiting = self._waiting.setdefault(frame.stream, Counter())
            priority = max((priority, *waiting))
            waiting[priority] += 1
        self._classes[priority].append(frame)
        self.size_bytes += len(frame.data)

    def pop(self, at_most_bytes: int) -> bytes:
        """The next frames as one piece: up to `at_most_bytes`, but at least one frame if any waits."""
        taken: list[bytes] = []
        room = at_most_bytes
        for priority, frames in self._classes.items():
            while frames and (not taken or len(frames[0].data) <= room):
                frame = frames.popleft()
                taken.append(frame.data)
                room -= len(frame.data)
                self._settle(frame.stream, priority)
            if frames:
                break
        data = b"".join(taken)
        self.size_bytes -= len(data)
        return data

    def _settle(self, stream: int, priority: Priority) -> None:
        waiting = self._waiting.get(stream)
        if waiting is None or priority is Priority.BULK:
            return
        waiting[priority] -= 1
        if not waiting[priority]:
            del waiting[priority]
        if not waiting:
            del self._waiting[stream]


@dataclass(slots=True)
class Traffic:
    """What one link carried: bytes of frames, and the reads and writes that they took."""

    bytes_in: int = 0
    bytes_out: int = 0
    reads: int = 0
    writes: int = 0


class Link(asyncio.Protocol):
    """Runs a `Connection` over a socket; events go to `on_event(link, event)`, `Closed` last and once."""

    def __init__(self, connection: Connection, on_event: Callable[["Link", Event], None]):
        self.connection = connection
        self.traffic = Traffic()
        self.peername = "?"
        # Told the bytes that were just taken in, and the frames that they completed.
        self.toll: Callable[[Link, int, int], None] = lambda link, size, frames: None
        # Seconds for which nothing more is to be read of the peer, nor done for it.
        self.wait_s: Callable[[Link], float] = lambda link: 0.0
        # Why the connection is over, and then that the transport is gone.
        self.closed: Closed | None = None
        self.ended = asyncio.Event()
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._queue = PriorityQueue()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None
        self._flush_due = False
        self._paused = False
        self._stuck: asyncio.TimerHandle | None = None
        self._unread = b""
        # What has come and is not to be done yet.
        self._held_back: list[Event] = []
        self._reading_on: asyncio.TimerHandle | None = None
        self._last_packet_bytes = (0, 0)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=TRANSPORT_BYTES)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.peername = "{}:{}".format(*peer[:2])
        else:
            # None of a peer that is gone again already; nobody has a name at a Unix socket.
            self.peername = "?:?" if peer is None else "a Unix socket"
        set_tcp_options(transport.get_extra_info("socket"), self.connection.settings.silence_s)
        self._after([])

    def data_received(self, data: bytes) -> None:
        self.traffic.bytes_in += len(data)
        self.traffic.reads += 1
        self._unread += data
        if self._reading_on is None:
            self._read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._last_packet_bytes = self.packet_bytes()
        self._transport = None
        if self._stuck is not None:
            self._stuck.cancel()
        if self._unread and not self._held_back and not self.wait_s(self):
            self._after(self.connection.receive(self._unread, monotonic()))
        self._unread = b""
        self.ended.set()
        self._after(
            self.connection.lost(f"the connection to {self.peername} was lost: {exc or 'closed by the peer'}")
        )

    def pause_writing(self) -> None:
        self._paused = True
        self._stuck = self._loop.call_later(STUCK_S, self._evict)

    def resume_writing(self) -> None:
        self._paused = False
        if self._stuck is not None:
            self._stuck.cancel()
        self._flush()

    # -- for the services

    def send(self, message: Message) -> int:
        """Queues a message; returns its bytes on the wire, 0 when its stream or the connection has ended."""
        size = self.connection.send(message)
        self._schedule_flush()
        return size

    def drain(self, message: str) -> None:
        """Asks the peer to open no more streams."""
        self.connection.drain(message)
        self._schedule_flush()

    def close(self, code: Code, message: str) -> None:
        """Tells the peer why and closes once that is written."""
        self._after(self.connection.close(code, message))

    def abort(self) -> None:
        """Drops the connection without a word."""
        if self._transport is not None:
            self._transport.abort()

    def peer_socket(self) -> socket.socket | None:
        """For what the kernel knows of the other end; None once it is gone."""
        sock: socket.socket | None = (
            None if self._transport is None else self._transport.get_extra_info("socket")
        )
        return sock

    def certificate_expires(self) -> float | None:
        """When the peer's certificate ends, in seconds since 1970; None where it has shown none."""
        shown = None if self._transport is None else self._transport.get_extra_info("peercert")
        return ssl.cert_time_to_seconds(shown["notAfter"]) if shown else None

    def packet_bytes(self) -> tuple[int, int]:
        """Bytes received and sent with TCP/IP headers, bare acknowledgements included; also of an ended link.

        Where the kernel does not count segments, each read and write is taken to be one and to be
        acknowledged by one.
        """
        if self._transport is None:
            return self._last_packet_bytes
        sock = self._transport.get_extra_info("socket")
        traffic = self.traffic
        guessed = traffic.reads + traffic.writes
        segments_in, segments_out = segments(sock) or (guessed, guessed)
        header = IPV6_HEADER_BYTES if sock and sock.family == socket.AF_INET6 else IPV4_HEADER_BYTES
        return traffic.bytes_in + segments_in * header, traffic.bytes_out + segments_out * header

    @property
    def held_bytes(self) -> int:
        """What is kept for the peer: what is not written yet, and what has come of an incomplete frame."""
        unwritten = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return self._queue.size_bytes + unwritten + len(self._unread) + self.connection.buffered_bytes

    # -- inside

    def _read_on(self, waited: bool = False) -> None:
        """Takes a piece of what came, and leaves the rest, and all further reading, for when it may go on."""
        paused, self._reading_on = self._reading_on is not None, None
        self.toll(self, 0, 0)
        if waited:
            self.connection.not_heard(monotonic())
        if self._held_back:
            events, self._held_back = self._held_back, []
            self._after(events)
        if self._unread and not self._held_back and not self.wait_s(self):
            piece, self._unread = self._unread[:FAIR_BYTES], self._unread[FAIR_BYTES:]
            frames = self.connection.frames_in
            self._after(self.connection.receive(piece, monotonic()))
            self.toll(self, len(piece), self.connection.frames_in - frames)
        if self._transport is None or self._transport.is_closing():
            return
        wait_s = self.wait_s(self)
        if wait_s or self._unread or self._held_back:
            if not paused:
                # uvloop would read on and on from a peer that floods.
                self._transport.pause_reading()
            self._reading_on = self._loop.call_later(wait_s, self._read_on, wait_s > 0)
        elif paused:
            self._transport.resume_reading()

    def _after(self, events: list[Event]) -> None:
        waiting = deque(events)
        # A handler of an earlier event may close the link.
        while waiting and self.closed is None:
            if self.wait_s(self):
                if not isinstance(waiting[-1], Closed):
                    self._held_back += waiting
                    break
                # The end does not wait, and what was to be done before it has no use any more.
                waiting = deque([waiting[-1]])
            event = waiting.popleft()
            if isinstance(event, Closed):
                self.closed = event
            self._on_event(self, event)
        self._schedule_flush()
        self._arm_timer()
        if self.closed is not None and self._transport is not None:
            self._flush()
            if self._transport is not None:
                self._transport.close()

    def _arm_timer(self) -> None:
        due = self.connection.next_timer()
        if due == self._due:
            return
        self._due = due
        if self._timer is not None:
            self._timer.cancel()
        # The loop's own clock may tick in whole milliseconds, too coarse to measure a round trip with.
        self._timer = (
            None if due is None else self._loop.call_later(max(0, due - monotonic()), self._on_timer)
        )

    def _on_timer(self) -> None:
        self._due = None
        self._after(self.connection.timeout(monotonic()))
        if self.connection.state is State.CLOSED:
            # A peer that fell silent does not acknowledge the farewell either.
            self.abort()

    def _schedule_flush(self) -> None:
        # Once per turn of the loop, so that what one engine step says to all sessions leaves in one packet.
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        for frame in self.connection.output():
            self._queue.push(frame)
        while self._transport is not None and not self._paused and self._queue.size_bytes:
            data = self._queue.pop(WRITE_BYTES)
            self.traffic.bytes_out += len(data)
            self.traffic.writes += 1
            self._transport.write(data)
        if self._queue.size_bytes > MAX_QUEUED_BYTES:
            self._evict()

    def _evict(self) -> None:
        if self.closed is None:
            self._after(self.connection.close(Code.SLOW_READER, f"{self.peername} does not read"))
        self.abort()


def set_tcp_options(sock: socket.socket | None, dead_after_s: float) -> None:
    """No Nagle, a short kernel queue, and an end to waiting for acknowledgements after `dead_after_s`."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    options = (
        ("TCP_NODELAY", 1),
        ("TCP_NOTSENT_LOWAT", KERNEL_UNSENT_BYTES),
        ("TCP_USER_TIMEOUT", int(dead_after_s * 1000)),
    )
    for name, value in options:
        with contextlib.suppress(AttributeError, OSError):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def segments(sock: socket.socket | None) -> tuple[int, int] | None:
    """TCP segments received and sent on a connected socket; None where the kernel does not tell."""
    if sock is None or sys.platform != "linux":
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SEGMENTS.size)
    except OSError:
        return None
    if len(info) < _SEGMENTS.size:
        return None  # a kernel before 4.2
    out, received = _SEGMENTS.unpack(info)
    return received, out
