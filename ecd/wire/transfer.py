"""Pages on their way: what the end that asks for them takes, and what the end that has them may send.

Pure state machines of the KV frames of one stream, for either role. They own order, chunks, checksums, credit
and going on after a lost connection. They know nothing of what pages hold, and no sockets; time is passed in,
in seconds. docs/PROTOCOL.md, section 9.1, says the same in prose.
"""

import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ecd.errors import PageError
from ecd.wire.messages import Credit, Kv, KvOp

# Every chunk but a run's last: small enough that nothing urgent waits long behind it.
CHUNK_BYTES = 16 << 10
# Positions of a run at most, so that what has to be kept of one that is not complete is bounded.
MAX_RUN_TOKENS = 1024
# Credit that is given at first, to see what the link is like, and at most at any time.
FIRST_WINDOW_BYTES, MOST_WINDOW_BYTES = 128 << 10, 4 << 20


@dataclass(frozen=True, slots=True)
class Run:
    """Complete pages of positions `first` to `last` - 1; their checksum was right."""

    first: int
    last: int
    data: bytes


@dataclass(slots=True)
class _Part:
    """A run that is not complete."""

    last: int
    chunks: int
    checksum: int
    held: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Wanted:
    """The pages of positions `first` to `last` - 1 that one end wants; what it gets of them.

    model, encoding: what is asked for. most_bytes: the longest that pages of a range of positions may be.
    `next` grows with each complete run; the object outlives connections.
    """

    model: bytes
    last: int
    encoding: str
    most_bytes: Callable[[int, int], int]
    next: int = 0
    received_bytes: int = 0
    link_s: float = 0.0
    link_bytes: int = 0
    _window: int = FIRST_WINDOW_BYTES
    _credit: int = 0
    _part: _Part | None = None
    _asked: bool = False
    _last_at: float | None = None

    @property
    def complete(self) -> bool:
        return self.next == self.last

    def ask(self, stream: int) -> Kv:
        """What to send on a new stream: for all of it, or for what is missing. It brings the first credit."""
        part = self._part
        held, checksum = (len(part.held), part.checksum) if part else (0, 0)
        self._credit, self._asked, self._last_at = self._window, True, None
        window = self._window // CHUNK_BYTES
        return Kv(
            stream, KvOp.WANT, self.model, self.next, self.last, held, window, self.encoding, checksum, b""
        )

    def give_up(self, stream: int) -> Kv:
        """What to send when the rest is not wanted any more."""
        return Kv(stream, KvOp.DROP, self.model, self.next, self.next, 0, 0, "", 0, b"")

    def receive(self, message: Kv, now: float) -> Run | None:
        """A frame of the other end's; a run when it was the last of one. A DROP ends it with what has come.

        Raises PageError for whatever does not follow: there will be no more, and nothing of it is kept.
        """
        if message.op is KvOp.DROP:
            if not self.next:
                raise PageError("the other end has no such pages, or no time to make them")
            self.last, self._part = self.next, None
            return None
        self._check(message)
        fresh, self._asked = self._asked, False
        part = self._part
        if message.chunk == 0 and (part is None or fresh):
            # A run begins, or the other end has made another one than was held when the connection was lost.
            part = self._part = _Part(message.last, message.chunks, message.checksum)
        if part is None or (message.last, message.chunks, message.checksum, message.chunk) != (
            part.last,
            part.chunks,
            part.checksum,
            len(part.held),
        ):
            raise PageError(f"chunk {message.chunk} of pages from {message.first} on is not the next one")
        self._measure(message, now)
        part.held.append(message.payload)
        if len(part.held) < part.chunks:
            return None
        run = Run(self.next, part.last, b"".join(part.held))
        self._part = None
        if zlib.crc32(run.data) != part.checksum:
            raise PageError(f"pages from {run.first} on are damaged: their checksum is wrong")
        self.next = run.last
        return run

    def grant(self, stream: int) -> Credit | None:
        """Credit for what has come meanwhile, once half of the window is used; the window grows by it."""
        if self._credit > self._window // 2:
            return None
        self._window = min(2 * self._window, MOST_WINDOW_BYTES)
        amount, self._credit = self._window - self._credit, self._window
        return Credit(stream, amount)

    @property
    def link_bytes_per_s(self) -> float | None:
        """What the link brings while it is used; None before enough has come to tell."""
        if self.link_bytes < FIRST_WINDOW_BYTES // 2 or self.link_s <= 0:
            return None
        return self.link_bytes / self.link_s

    def _check(self, message: Kv) -> None:
        first, last, size = message.first, message.last, len(message.payload)
        if message.op is not KvOp.PAGES or message.model != self.model or message.encoding != self.encoding:
            raise PageError("pages are of another model or encoding than those that were asked for")
        if first != self.next or not first < last <= min(self.last, first + MAX_RUN_TOKENS):
            raise PageError(f"pages of {first} to {last} do not follow {self.next}")
        most_chunks = -(-self.most_bytes(first, last) // CHUNK_BYTES)
        if not message.chunk < message.chunks <= most_chunks:
            raise PageError(f"pages in {message.chunks} chunks where there are at most {most_chunks}")
        whole = message.chunk < message.chunks - 1
        if size != CHUNK_BYTES if whole else not 0 < size <= CHUNK_BYTES:
            raise PageError(f"a chunk of {size} bytes is not one of {CHUNK_BYTES}")
        if size > self._credit:
            raise PageError("more pages came than there was credit for")
        self._credit -= size
        self.received_bytes += size

    def _measure(self, message: Kv, now: float) -> None:
        # Before a run's first chunk the other end may have been busy making it.
        if message.chunk and self._last_at is not None:
            self.link_s += now - self._last_at
            self.link_bytes += len(message.payload)
        self._last_at = now


@dataclass(slots=True)
class Sending:
    """The pages that the peer of one stream asked for with `want`, and what of them may be sent."""

    want: Kv
    next: int = field(init=False)
    _credit: int = 0
    _skip: bool = True
    _waiting: deque[Kv] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.next = self.want.first
        self.credit(self.want.chunks * CHUNK_BYTES)

    @property
    def complete(self) -> bool:
        """Whether all of it has been sent."""
        return self.next >= self.want.last and not self._waiting

    @property
    def backlog(self) -> int:
        """Chunks that wait for credit."""
        return len(self._waiting)

    def add(self, run: Run) -> None:
        """The next run; what the peer holds of it already is left out if it is the same."""
        want, checksum = self.want, zlib.crc32(run.data)
        pieces = [run.data[at : at + CHUNK_BYTES] for at in range(0, len(run.data), CHUNK_BYTES)]
        skip, self._skip = want.chunk if self._skip and want.checksum == checksum else 0, False
        for number in range(skip if skip < len(pieces) else 0, len(pieces)):
            self._waiting.append(
                Kv(
                    want.stream,
                    KvOp.PAGES,
                    want.model,
                    run.first,
                    run.last,
                    number,
                    len(pieces),
                    want.encoding,
                    checksum,
                    pieces[number],
                )
            )
        self.next = run.last

    def credit(self, amount: int) -> None:
        """The peer takes so many bytes more; credit beyond a window is no promise that it reads."""
        self._credit = min(self._credit + amount, MOST_WINDOW_BYTES)

    def due(self) -> list[Kv]:
        """What may be sent now."""
        frames = []
        while self._waiting and len(self._waiting[0].payload) <= self._credit:
            self._credit -= len(self._waiting[0].payload)
            frames.append(self._waiting.popleft())
        return frames

    def give_up(self) -> Kv:
        """What to send when there will be no more."""
        return Kv(self.want.stream, KvOp.DROP, self.want.model, self.next, self.next, 0, 0, "", 0, b"")
