"""The connection between one edge and one cloud as a state machine: bytes and time in, events and bytes out.

Owns handshake, negotiation, fingerprint check, stream numbers, keep-alive, RTT, drain and which message is
allowed when. Knows no sockets, clocks or threads: time is passed in, seconds on any monotonic clock.
Receiving never raises; a broken peer becomes an ERROR frame and one `Closed` event. docs/PROTOCOL.md says the
same in prose.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum, auto
from typing import Any

from ecd.errors import AuthError, Code, ProtocolError
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.frames import MAX_FRAME_BYTES, MAX_ITEMS, FrameReader, encode_frame, id_width, is_uint
from ecd.wire.messages import (
    Audit,
    Commit,
    Credit,
    Draft,
    Error,
    Finish,
    Goaway,
    Hello,
    Kv,
    Message,
    Open,
    Ping,
    Pong,
    Reset,
    Tokens,
    Welcome,
    from_fields,
    to_fields,
)

MAJOR, MINOR = 1, 0
# What every end offers, and what only those offer that have pages to give or a use for them.
COMMIT = "commit"
FEATURES = ("q", "alternates", "prefix", COMMIT)
PAGES = "pages"
HANDSHAKE_FRAME_BYTES = 64 << 10
# Arrays that are nested as deep as the decoder allows are all reserved; a stranger's are to be small.
HANDSHAKE_ITEMS = 256
# Frames of unknown types are ignored, but not for as long as the handshake may take.
HANDSHAKE_FRAMES = 16
# A frame that was begun must be complete after so long, whatever else arrives of it.
FRAME_S = 60.0
MAX_STREAM = (1 << 31) - 1
MAX_UNANSWERED_PINGS = 16
MAX_REASON_CHARACTERS = 4096
# With its length. What it tells of a load is kept, and shown with everything else that is known of a link.
MAX_PONG_BYTES = 4096


class Role(Enum):
    """Which end of the connection this is."""

    EDGE = auto()
    CLOUD = auto()


class State(Enum):
    """HANDSHAKE until HELLO and WELCOME are exchanged, then OPEN, at last CLOSED."""

    HANDSHAKE = auto()
    OPEN = auto()
    CLOSED = auto()


class Priority(IntEnum):
    """Order in which queued frames leave; a cancel or a verdict never waits behind a prompt or a KV page."""

    CONTROL = 0
    TOKENS = 1
    PROMPT = 2
    BULK = 3


PRIORITY: dict[type[Message], Priority] = {
    Tokens: Priority.TOKENS,
    Draft: Priority.TOKENS,
    Commit: Priority.TOKENS,
    Audit: Priority.TOKENS,
    Open: Priority.PROMPT,
    Kv: Priority.BULK,
}

_BOTH_WAYS: frozenset[type[Message]] = frozenset({Kv, Credit, Ping, Pong, Goaway, Reset, Error})
ALLOWED: dict[tuple[Role, State], frozenset[type[Message]]] = {
    (Role.CLOUD, State.HANDSHAKE): frozenset({Hello}),
    (Role.EDGE, State.HANDSHAKE): frozenset({Welcome, Error}),
    (Role.CLOUD, State.OPEN): _BOTH_WAYS | {Open, Draft, Commit},
    (Role.EDGE, State.OPEN): _BOTH_WAYS | {Tokens, Audit},
}
ON_STREAM_ZERO: frozenset[type[Message]] = frozenset({Hello, Welcome, Ping, Pong, Goaway, Error})


@dataclass(frozen=True, slots=True)
class Settings:
    """One end's side of the negotiation.

    `token` is what an edge presents. `identify` gives the tenant that it stands for, or raises AuthError.
    ping_interval_s: how often RTT is measured. silence_s: a peer not heard of for so long is dead.
    handshake_s: how long the handshake may take. `limits`, `model` and `features` are told to the peer
    (names in docs/PROTOCOL.md).
    """

    role: Role
    agent: str
    fingerprint: Fingerprint
    limits: dict[str, int] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    token: str | None = None
    features: tuple[str, ...] = FEATURES
    identify: Callable[[bytes | None], str] = lambda shown: ""
    ping_interval_s: float = 2.0
    silence_s: float = 6.0
    handshake_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Connected:
    """The handshake is done; `peer` is what the other end said."""

    peer: Hello | Welcome


@dataclass(frozen=True, slots=True)
class Received:
    """A message for the application; `size` is its frame's length on the wire, bytes."""

    message: Open | Draft | Tokens | Commit | Audit | Kv | Credit | Reset
    size: int


@dataclass(frozen=True, slots=True)
class PeerDraining:
    """The peer takes no new streams; those that run may finish."""

    message: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection is over; `retry` is False where the same attempt would be refused again."""

    code: Code
    message: str

    @property
    def retry(self) -> bool:
        return self.code not in (Code.VERSION, Code.FINGERPRINT, Code.AUTH)


Event = Connected | Received | PeerDraining | Closed


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One encoded frame and where it stands in line."""

    priority: Priority
    stream: int
    data: bytes


@dataclass(slots=True)
class Rtt:
    """Smoothed round-trip time and its variation, seconds (RFC 6298, section 2)."""

    smoothed_s: float | None = None
    variation_s: float = 0.0

    def sample(self, rtt_s: float) -> None:
        """Takes one measurement."""
        if self.smoothed_s is None:
            self.smoothed_s, self.variation_s = rtt_s, rtt_s / 2
        else:
            self.variation_s += (abs(self.smoothed_s - rtt_s) - self.variation_s) / 4
            self.smoothed_s += (rtt_s - self.smoothed_s) / 8


def readable(text: str) -> str:
    """A peer's words as one line that can be logged and shown: control characters replaced, cut to a sane
    length.
    """
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_REASON_CHARACTERS])


class Connection:
    """One end of one connection. `now` is seconds on a monotonic clock, the same in every call."""

    def __init__(self, settings: Settings, now: float):
        self.settings = settings
        self.state = State.HANDSHAKE
        self.peer: Hello | Welcome | None = None
        # Whom the edge's token names (cloud only).
        self.tenant = ""
        self.frames_in = 0
        self.rtt = Rtt()
        # Asked for each PONG.
        self.load: Callable[[], dict[str, Any]] = dict
        self.peer_load: dict[str, Any] = {}
        self.draining = False
        self.peer_draining = False
        self.streams: set[int] = set()
        self._goaway: Goaway | None = None
        self._last_stream = 0
        self._reader = FrameReader(HANDSHAKE_FRAME_BYTES, HANDSHAKE_ITEMS)
        self._width = id_width(settings.fingerprint.n_vocab)
        self._output: deque[Outgoing] = deque()
        self._events: list[Event] = []
        self._heard_at = now
        self._frame_began: float | None = None
        self._next_ping = now
        self._handshake_deadline = now + settings.handshake_s
        self._pings: dict[int, float] = {}
        self._ping_count = 0
        if settings.role is Role.EDGE:
            auth = None if settings.token is None else settings.token.encode()
            self._queue(
                Hello(
                    0,
                    MAJOR,
                    MINOR,
                    settings.features,
                    auth,
                    dict(settings.limits),
                    settings.fingerprint.to_map(),
                    settings.agent,
                )
            )

    # -- bytes and time in

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Takes bytes from the peer; returns what they mean. Never raises."""
        if self.state is State.CLOSED:
            return []
        self._heard_at = now
        try:
            for fields, size in self._reader.feed(data):
                self.frames_in += 1
                self._frame_began = None
                if self.state is State.HANDSHAKE and self.frames_in > HANDSHAKE_FRAMES:
                    raise ProtocolError(f"{HANDSHAKE_FRAMES} frames and no handshake among them")
                message = from_fields(fields, self._width)
                if message is not None:
                    self._on_message(message, size, now)
                if self._is_closed():
                    break
        except ProtocolError as e:
            self._fail(e.code, str(e))
        if self._frame_began is None and self.buffered_bytes:
            self._frame_began = now
        return self._take_events()

    def not_heard(self, now: float) -> None:
        """Until now nobody listened to the peer: it was neither silent nor late with the rest of a frame."""
        self._heard_at = now
        if self._frame_began is not None:
            self._frame_began = now

    def timeout(self, now: float) -> list[Event]:
        """Does what is due at `now`; call it when `next_timer` says so."""
        if self.state is State.CLOSED:
            return []
        if self.state is State.HANDSHAKE:
            if now >= self._handshake_deadline:
                self._fail(Code.TIMEOUT, f"no handshake within {self.settings.handshake_s:g} s")
        elif now >= self._heard_at + self.settings.silence_s:
            self._fail(Code.TIMEOUT, f"the peer was silent for {self.settings.silence_s:g} s")
        elif self._frame_began is not None and now >= self._frame_began + FRAME_S:
            self._fail(Code.TIMEOUT, f"a frame was not complete within {FRAME_S:g} s of its beginning")
        elif now >= self._next_ping:
            self._ping(now)
        return self._take_events()

    def lost(self, reason: str) -> list[Event]:
        """The transport is gone."""
        self._close(Code.UNAVAILABLE, reason)
        return self._take_events()

    @property
    def heard_at(self) -> float:
        """When the peer was last heard of."""
        return self._heard_at

    def next_timer(self) -> float | None:
        """When `timeout` must be called next; None once closed."""
        match self.state:
            case State.HANDSHAKE:
                return self._handshake_deadline
            case State.OPEN:
                due = min(self._next_ping, self._heard_at + self.settings.silence_s)
                return due if self._frame_began is None else min(due, self._frame_began + FRAME_S)
            case State.CLOSED:
                return None

    @property
    def buffered_bytes(self) -> int:
        """What has come of a frame that is not complete yet."""
        return self._reader.buffered_bytes

    # -- what the application asks for

    def new_stream(self) -> int:
        """Number for a new session's stream (edge only)."""
        self._last_stream += 1
        self.streams.add(self._last_stream)
        return self._last_stream

    def send(self, message: Message) -> int:
        """Queues a message; returns its bytes on the wire, 0 if its stream or connection has ended."""
        if self.state is not State.OPEN or message.stream not in self.streams:
            return 0
        if isinstance(message, Reset) or (isinstance(message, Tokens) and message.finish is not Finish.NONE):
            self.streams.discard(message.stream)
        return self._queue(message)

    def drain(self, message: str) -> None:
        """Tells the peer to open no more streams here."""
        if self.draining:
            return
        self.draining = True
        self._goaway = Goaway(0, Code.DRAINING, message)
        if self.state is State.OPEN:
            self._queue(self._goaway)

    def close(self, code: Code, message: str) -> list[Event]:
        """Ends the connection, telling the peer why."""
        self._fail(code, message)
        return self._take_events()

    def output(self) -> list[Outgoing]:
        """Frames to write, oldest first; empties the queue."""
        queued = list(self._output)
        self._output.clear()
        return queued

    # -- inside

    def _is_closed(self) -> bool:
        return self.state is State.CLOSED

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _queue(self, message: Message) -> int:
        if isinstance(message, Goaway | Reset | Error):
            # A reason may quote what the peer sent; it must fit the smallest frame a peer accepts.
            message = replace(message, message=message.message[:MAX_REASON_CHARACTERS])
        data = encode_frame(to_fields(message, self._width))
        self._output.append(Outgoing(PRIORITY.get(type(message), Priority.CONTROL), message.stream, data))
        return len(data)

    def _fail(self, code: Code, message: str) -> None:
        if self.state is not State.CLOSED:
            # It may quote what the peer said.
            message = readable(message)
            self._queue(Error(0, code, message))
            self._close(code, message)

    def _close(self, code: Code, message: str) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self.streams.clear()
            self._events.append(Closed(code, message))

    def _ping(self, now: float) -> None:
        self._ping_count += 1
        self._pings[self._ping_count] = now
        self._pings.pop(self._ping_count - MAX_UNANSWERED_PINGS, None)
        self._next_ping = now + self.settings.ping_interval_s
        self._queue(Ping(0, self._ping_count))

    def _on_message(self, message: Message, size: int, now: float) -> None:
        name = type(message).__name__.upper()
        if type(message) not in ALLOWED[self.settings.role, self.state]:
            raise ProtocolError(f"{name} is not allowed from this peer in state {self.state.name}")
        if not isinstance(message, Credit) and (message.stream == 0) != (type(message) in ON_STREAM_ZERO):
            raise ProtocolError(f"{name} cannot travel on stream {message.stream}")
        match message:
            case Hello():
                self._on_hello(message, now)
            case Welcome():
                self._check_version(message.major)
                self._check_fingerprint(message.fingerprint)
                self._establish(message, now)
            case Ping():
                self._queue(Pong(0, message.cookie, self.load()))
            case Pong():
                if size > MAX_PONG_BYTES:
                    raise ProtocolError(f"a PONG of {size} bytes is over the limit of {MAX_PONG_BYTES}")
                self._on_pong(message, now)
            case Goaway():
                if not self.peer_draining:
                    self.peer_draining = True
                    self._events.append(PeerDraining(readable(message.message)))
            case Error():
                self._close(message.code, readable(message.message))
            case Open():
                self._on_open(message, size)
            case Tokens() | Draft() | Commit() | Audit() | Kv() | Credit() | Reset():
                self._on_stream(message, size)

    def _on_hello(self, message: Hello, now: float) -> None:
        settings = self.settings
        self._check_version(message.major)
        try:
            self.tenant = settings.identify(message.auth)
        except AuthError as e:
            return self._fail(e.code, str(e))
        self._check_fingerprint(message.fingerprint)
        if self.state is State.CLOSED:
            return None
        common = tuple(f for f in settings.features if f in message.features)
        minor = min(MINOR, message.minor)
        self._queue(
            Welcome(
                0,
                MAJOR,
                minor,
                common,
                dict(settings.limits),
                settings.fingerprint.to_map(),
                dict(settings.model),
                settings.agent,
            )
        )
        return self._establish(message, now)

    def _check_version(self, major: int) -> None:
        if major != MAJOR:
            self._fail(
                Code.VERSION,
                f"protocol version {major} is not {MAJOR}; run the same release of ecd on both ends",
            )

    def _check_fingerprint(self, given: dict[str, Any]) -> None:
        theirs, ours = Fingerprint.from_map(given), self.settings.fingerprint
        edge, cloud = (ours, theirs) if self.settings.role is Role.EDGE else (theirs, ours)
        found = edge.differences(cloud)
        if found:
            self._fail(
                Code.FINGERPRINT,
                f"draft and target models do not share a tokenizer; edge against cloud: {'; '.join(found)}. "
                "Choose a draft model of the target's family",
            )

    def _establish(self, peer: Hello | Welcome, now: float) -> None:
        if self.state is State.CLOSED:
            return
        if not all(isinstance(name, str) and is_uint(limit) for name, limit in peer.limits.items()):
            raise ProtocolError("limits must be numbers of at most 32 bits")
        self.state = State.OPEN
        self.peer = peer
        self._reader.max_frame_bytes, self._reader.max_items = MAX_FRAME_BYTES, MAX_ITEMS
        if self._goaway is not None:
            self._queue(self._goaway)
        self._ping(now)
        self._events.append(Connected(peer))

    def _on_pong(self, message: Pong, now: float) -> None:
        sent = self._pings.pop(message.cookie, None)
        if sent is None:
            return
        self.rtt.sample(now - sent)
        self.peer_load = message.load
        # Answers come in order: older cookies will never be answered.
        self._pings = {cookie: at for cookie, at in self._pings.items() if cookie > message.cookie}

    def _on_open(self, message: Open, size: int) -> None:
        if not self._last_stream < message.stream <= MAX_STREAM:
            raise ProtocolError(
                f"OPEN on stream {message.stream} after {self._last_stream}: numbers must grow"
            )
        self._last_stream = message.stream
        if self.draining:
            self._queue(
                Reset(message.stream, Code.DRAINING, "this cloud is draining; connect to another or wait")
            )
        elif len(self.streams) >= self.settings.limits.get("max_streams", MAX_STREAM):
            limit = self.settings.limits["max_streams"]
            self._queue(Reset(message.stream, Code.BUSY, f"this connection already has {limit} sessions"))
        else:
            self.streams.add(message.stream)
            self._events.append(Received(message, size))

    def _on_stream(self, message: Tokens | Draft | Commit | Audit | Kv | Credit | Reset, size: int) -> None:
        if message.stream > self._last_stream:
            raise ProtocolError(
                f"{type(message).__name__.upper()} on stream {message.stream}, which was never opened"
            )
        if message.stream not in self.streams:
            return  # it ended while this was on its way
        if isinstance(message, Reset) or (isinstance(message, Tokens) and message.finish is not Finish.NONE):
            self.streams.discard(message.stream)
        self._events.append(Received(message, size))
