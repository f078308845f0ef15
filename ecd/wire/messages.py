"""Messages: the typed content of the frames between edge and cloud, and their codec.

docs/PROTOCOL.md is normative and is checked against this table. Owns field types and their order; knows
nothing of connection state, tokens' meaning or I/O. `decode` validates everything that can be judged without
context.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple

from ecd.errors import Code, ProtocolError
from ecd.wire.frames import is_uint, pack_ids, unpack_ids


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
    """What a KV frame does: drop positions from `first` on, or carry a chunk of the pages [first, last)."""

    DROP = 0
    PAGES = 1


class HintWeights(NamedTuple):
    """q^ of one hint: token ids and weights in 1..255."""

    ids: tuple[int, ...]
    weights: bytes


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
    """Starts a session. The prompt is `prefix_len` tokens that hash to `prefix_hash`, then `prompt`."""

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
    time.
    """

    TYPE: ClassVar[int] = 5
    stream: int
    base: int
    ids: tuple[int, ...]
    accepted: int
    verified: int
    step_us: int
    finish: Finish = Finish.NONE
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """Tokens that the edge committed by itself from position `base` on."""

    TYPE: ClassVar[int] = 6
    stream: int
    base: int
    ids: tuple[int, ...]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Kv:
    """A KV-cache delta of the model with hash `model`.

    One of `chunks` chunks; `checksum` is the CRC-32 of the whole.
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


Message = (
    Hello | Welcome | Open | Draft | Tokens | Commit | Kv | Credit | Ping | Pong | Goaway | Reset | Error
)


class _Codec(NamedTuple):
    """How one field travels: functions of a value and the id width; `decode` raises ValueError."""

    name: str
    encode: Callable[[Any, int], Any]
    decode: Callable[[Any, int], Any]


def _need(condition: bool) -> None:
    if not condition:
        raise ValueError


def _plain(name: str, valid: Callable[[Any], bool]) -> _Codec:
    def decode(value: Any, width: int) -> Any:
        _need(valid(value))
        return value

    return _Codec(name, lambda value, width: value, decode)


def _optional(codec: _Codec) -> _Codec:
    return _Codec(
        f"{codec.name} or nil",
        lambda value, width: None if value is None else codec.encode(value, width),
        lambda value, width: None if value is None else codec.decode(value, width),
    )


def _list(codec: _Codec) -> _Codec:
    def decode(value: Any, width: int) -> Any:
        _need(isinstance(value, list))
        return tuple(codec.decode(item, width) for item in value)

    return _Codec(
        f"array of {codec.name}", lambda v, width: [codec.encode(item, width) for item in v], decode
    )


def _enum(kind: type[IntEnum]) -> _Codec:
    def decode(value: Any, width: int) -> IntEnum:
        _need(is_uint(value))
        return kind(value)

    return _Codec(kind.__name__, lambda value, width: int(value), decode)


def _uint(bits: int) -> _Codec:
    return _plain(f"u{bits}", lambda value: is_uint(value, bits))


def _decode_ids(value: Any, width: int) -> tuple[int, ...]:
    _need(isinstance(value, bytes))
    return unpack_ids(value, width)


def _decode_weights(value: Any, width: int) -> HintWeights:
    _need(isinstance(value, list) and len(value) == 2 and isinstance(value[1], bytes) and 0 not in value[1])
    ids = _decode_ids(value[0], width)
    _need(0 < len(ids) == len(value[1]) and len(set(ids)) == len(ids))
    return HintWeights(ids, value[1])


def _decode_pace(value: Any, width: int) -> Pace:
    _need(isinstance(value, list) and len(value) == 2 and all(is_uint(item) for item in value))
    return Pace(*value)


def _decode_alternate(value: Any, width: int) -> Alternate:
    _need(isinstance(value, list) and len(value) == 2 and is_uint(value[0]))
    return Alternate(value[0], _decode_ids(value[1], width))


U8, U16, U32, U64 = _uint(8), _uint(16), _uint(32), _uint(64)
TEXT = _plain("str", lambda value: isinstance(value, str))
BYTES = _plain("bin", lambda value: isinstance(value, bytes))
MAP = _plain("map", lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value))
FLOAT = _plain("float", lambda value: isinstance(value, float))
IDS = _Codec("ids", lambda value, width: pack_ids(value, width), _decode_ids)
WEIGHTS = _Codec("weights", lambda v, width: [pack_ids(v.ids, width), v.weights], _decode_weights)
PACE = _Codec("pace", lambda value, width: list(value), _decode_pace)
ALTERNATE = _Codec("alternate", lambda v, width: [v.position, pack_ids(v.ids, width)], _decode_alternate)

FIELDS: dict[type[Message], tuple[_Codec, ...]] = {
    Hello: (U16, U16, _list(TEXT), _optional(BYTES), MAP, MAP, TEXT),
    Welcome: (U16, U16, _list(TEXT), MAP, MAP, MAP, TEXT),
    Open: (_optional(BYTES), U32, IDS, IDS, MAP, U32, _list(TEXT), PACE),
    Draft: (
        U32,
        U32,
        IDS,
        _optional(BYTES),
        _optional(_list(WEIGHTS)),
        _optional(_list(ALTERNATE)),
        _optional(PACE),
    ),
    Tokens: (U32, IDS, U16, U16, U32, _enum(Finish), _optional(_list(FLOAT))),
    Commit: (U32, IDS, _enum(Origin)),
    Kv: (_enum(KvOp), BYTES, U32, U32, U32, U32, TEXT, U32, BYTES),
    Credit: (U32,),
    Ping: (U64,),
    Pong: (U64, MAP),
    Goaway: (_enum(Code), TEXT),
    Reset: (_enum(Code), TEXT),
    Error: (_enum(Code), TEXT),
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
