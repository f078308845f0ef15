"""Messages: the typed content of the frames between edge and cloud, and their codec.

docs/PROTOCOL.md is normative and is checked against this table. Owns which fields a message has and their
order; knows nothing of connection state, tokens' meaning or I/O. Decoding validates everything that can be
judged without context.
"""

import math
import struct
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple

from ecd.errors import Code, ProtocolError
from ecd.logprobs import MAX_TOP, TokenLogprobs
from ecd.wire.fields import (
    BYTES,
    IDS,
    MAP,
    TEXT,
    U8,
    U16,
    U32,
    U64,
    Codec,
    array_of,
    decode_ids,
    enum,
    need,
    optional,
)
from ecd.wire.frames import is_uint, pack_ids


class Finish(IntEnum):
    """Why a session's text ends; NONE while it goes on."""

    NONE = 0
    STOP = 1
    LENGTH = 2


class Origin(IntEnum):
    """Who chose a committed token."""

    DRAFT_ACCEPTED = 0
    TARGET = 1
    EDGE_CONFIDENT = 2
    EDGE_OFFLINE = 3

    @property
    def label(self) -> str:
        """As results name it, for example `draft-accepted`."""
        return self.name.lower().replace("_", "-")


class KvOp(IntEnum):
    """What a KV frame does: give up positions from `first` on, carry a chunk of pages, or ask for some."""

    DROP = 0
    PAGES = 1
    WANT = 2


class HintWeights(NamedTuple):
    """q^ of one hint: token ids and weights in 1..255."""

    ids: tuple[int, ...]
    weights: bytes


# A patience without end: strict rounds.
ENDLESS_US = (1 << 32) - 1


class Pace(NamedTuple):
    """How long the cloud may hold a step back, and how many hints it then waits for."""

    patience_us: int
    gather: int


class Alternate(NamedTuple):
    """A second choice for `position` and the tokens that would follow it."""

    position: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of the edge."""

    TYPE: ClassVar[int] = 1
    stream: int
    major: int
    minor: int
    features: tuple[str, ...]
    auth: bytes | None
    limits: dict[str, Any]
    fingerprint: dict[str, Any]
    agent: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """First frame of the cloud: what both will use from here on."""

    TYPE: ClassVar[int] = 2
    stream: int
    major: int
    minor: int
    features: tuple[str, ...]
    limits: dict[str, Any]
    fingerprint: dict[str, Any]
    model: dict[str, Any]
    agent: str


@dataclass(frozen=True, slots=True)
class Open:
    """Starts a session. The prompt is `prefix_len` tokens that hash to `prefix_hash`, then `prompt`.

    `logprobs`: how many of the most likely tokens are told with each committed one; None: no logprobs at all.
    `fresh`: 1 where nothing that was computed for other sessions may serve this one.
    `limit`: positions below it are the cloud's to commit, the others the edge's; None: all are the cloud's.
    """

    TYPE: ClassVar[int] = 3
    stream: int
    prefix_hash: bytes | None
    prefix_len: int
    prompt: tuple[int, ...]
    committed: tuple[int, ...]
    sampling: dict[str, Any]
    max_tokens: int
    stop: tuple[str, ...]
    pace: Pace
    logprobs: int | None = None
    fresh: int | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """Hints for the positions from `base` on, drafted when the edge knew `seen` tokens (prompt included).

    No ids: the edge will not draft on from here, so the cloud must not hold a step back for it.
    `confidence`: one byte per id, 255 times the chance that it is right if those before it are. `pace`: the
    session's from here on.
    """

    TYPE: ClassVar[int] = 4
    stream: int
    seen: int
    base: int
    ids: tuple[int, ...]
    confidence: bytes | None = None
    q: tuple[HintWeights, ...] | None = None
    alternates: tuple[Alternate, ...] | None = None
    pace: Pace | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one target forward committed from position `base` on.

    The first `accepted` ids were hints, `verified` hints were looked at, `step_us` is the forward's wall
    time. `logprobs`: one for each id, if OPEN asked for them. `cached`: in the first of a stream, how many of
    the session's tokens the cloud held already.
    """

    TYPE: ClassVar[int] = 5
    stream: int
    base: int
    ids: tuple[int, ...]
    accepted: int
    verified: int
    step_us: int
    finish: Finish = Finish.NONE
    logprobs: tuple[TokenLogprobs, ...] | None = None
    cached: int | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """Tokens that the edge committed by itself from position `base` on, and whose turn it is from here on.

    `limit`: positions below it are the cloud's to commit. `audit`: so many of the ids, the last ones, are to
    be compared with what the target would have said.
    """

    TYPE: ClassVar[int] = 6
    stream: int
    base: int
    ids: tuple[int, ...]
    origin: Origin
    limit: int
    audit: int = 0


@dataclass(frozen=True, slots=True)
class Kv:
    """Pages of the KV cache of the model with hash `model`, one of `chunks` chunks; or what is wanted.

    `checksum` is the CRC-32 of the whole. What each field means for each op is in docs/PROTOCOL.md.
    """

    TYPE: ClassVar[int] = 7
    stream: int
    op: KvOp
    model: bytes
    first: int
    last: int
    chunk: int
    chunks: int
    encoding: str
    checksum: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Credit:
    """The receiver allows this many more bytes of bulk data on the stream."""

    TYPE: ClassVar[int] = 8
    stream: int
    amount: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a PONG with the same cookie."""

    TYPE: ClassVar[int] = 9
    stream: int
    cookie: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a PING; `load` tells the answerer's load, names as in `ecdctl stats`."""

    TYPE: ClassVar[int] = 10
    stream: int
    cookie: int
    load: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Goaway:
    """No new streams from here on; those that run may finish."""

    TYPE: ClassVar[int] = 11
    stream: int
    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Reset:
    """Ends one stream at once."""

    TYPE: ClassVar[int] = 12
    stream: int
    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Error:
    """Ends the connection and says why."""

    TYPE: ClassVar[int] = 13
    stream: int
    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Audit:
    """What the target says of tokens that the edge committed, from position `base` on.

    `agreed`: a byte for each, 1 where the target would have chosen it behind the same text. `forwards`:
    target forwards that were made for this alone.
    """

    TYPE: ClassVar[int] = 14
    stream: int
    base: int
    agreed: bytes
    forwards: int


Message = (
    Hello
    | Welcome
    | Open
    | Draft
    | Tokens
    | Commit
    | Kv
    | Credit
    | Ping
    | Pong
    | Goaway
    | Reset
    | Error
    | Audit
)


def _decode_weights(value: Any, width: int) -> HintWeights:
    need(isinstance(value, list) and len(value) == 2 and isinstance(value[1], bytes) and 0 not in value[1])
    ids = decode_ids(value[0], width)
    need(0 < len(ids) == len(value[1]) and len(set(ids)) == len(ids))
    return HintWeights(ids, value[1])


def _decode_pace(value: Any, width: int) -> Pace:
    need(isinstance(value, list) and len(value) == 2 and all(is_uint(item) for item in value))
    return Pace(*value)


def _decode_alternate(value: Any, width: int) -> Alternate:
    need(isinstance(value, list) and len(value) == 2 and is_uint(value[0]))
    return Alternate(value[0], decode_ids(value[1], width))


def _encode_logprob(value: TokenLogprobs, width: int) -> list[bytes]:
    numbers = [value.logprob, *(logprob for _, logprob in value.top)]
    return [pack_ids([token for token, _ in value.top], width), struct.pack(f">{len(numbers)}f", *numbers)]


def _decode_logprob(value: Any, width: int) -> TokenLogprobs:
    need(isinstance(value, list) and len(value) == 2 and isinstance(value[1], bytes))
    ids = decode_ids(value[0], width)
    need(len(ids) <= MAX_TOP and len(set(ids)) == len(ids) and len(value[1]) == 4 * (len(ids) + 1))
    own, *top = struct.unpack(f">{len(ids) + 1}f", value[1])
    need(all(math.isfinite(number) and number <= 0 for number in (own, *top)))
    need(top == sorted(top, reverse=True))
    return TokenLogprobs(own, tuple(zip(ids, top, strict=True)))


WEIGHTS = Codec("weights", lambda v, width: [pack_ids(v.ids, width), v.weights], _decode_weights)
PACE = Codec("pace", lambda value, width: list(value), _decode_pace)
ALTERNATE = Codec("alternate", lambda v, width: [v.position, pack_ids(v.ids, width)], _decode_alternate)
LOGPROB = Codec("logprob", _encode_logprob, _decode_logprob)

FIELDS: dict[type[Message], tuple[Codec, ...]] = {
    Hello: (U16, U16, array_of(TEXT), optional(BYTES), MAP, MAP, TEXT),
    Welcome: (U16, U16, array_of(TEXT), MAP, MAP, MAP, TEXT),
    Open: (
        *(optional(BYTES), U32, IDS, IDS, MAP, U32, array_of(TEXT), PACE),
        *(optional(U8), optional(U8), optional(U32)),
    ),
    Draft: (
        U32,
        U32,
        IDS,
        optional(BYTES),
        optional(array_of(WEIGHTS)),
        optional(array_of(ALTERNATE)),
        optional(PACE),
    ),
    Tokens: (U32, IDS, U16, U16, U32, enum(Finish), optional(array_of(LOGPROB)), optional(U32)),
    Commit: (U32, IDS, enum(Origin), U32, U16),
    Kv: (enum(KvOp), BYTES, U32, U32, U32, U32, TEXT, U32, BYTES),
    Credit: (U32,),
    Ping: (U64,),
    Pong: (U64, MAP),
    Goaway: (enum(Code), TEXT),
    Reset: (enum(Code), TEXT),
    Error: (enum(Code), TEXT),
    Audit: (U32, BYTES, U16),
}
BY_TYPE: dict[int, type[Message]] = {kind.TYPE: kind for kind in FIELDS}
_NAMES = {kind: tuple(f.name for f in fields(kind))[1:] for kind in FIELDS}


def to_fields(message: Message, width: int) -> list[Any]:
    """The message as a frame's array; token ids take `width` bytes. Trailing nils are left out."""
    kind = type(message)
    values = [
        codec.encode(getattr(message, name), width)
        for name, codec in zip(_NAMES[kind], FIELDS[kind], strict=True)
    ]
    while values and values[-1] is None:
        values.pop()
    return [kind.TYPE, message.stream, *values]


def from_fields(array: list[Any], width: int) -> Message | None:
    """The message in a frame's array; None for an unknown type, which is to be ignored.

    Fields beyond the known ones are ignored, so that a later minor version can add some. Raises
    ProtocolError, naming the message and the field, for anything that does not fit.
    """
    kind = BY_TYPE.get(array[0])
    if kind is None:
        return None
    names, codecs, given = _NAMES[kind], FIELDS[kind], array[2:]
    values = []
    for index, (name, codec) in enumerate(zip(names, codecs, strict=True)):
        try:
            values.append(codec.decode(given[index] if index < len(given) else None, width))
        except (ValueError, ProtocolError):
            raise ProtocolError(f"{kind.__name__.upper()}.{name} is no {codec.name}") from None
    return kind(array[1], *values)
