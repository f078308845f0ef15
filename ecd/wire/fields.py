"""Field types: how one field of a message travels, and what is refused in its place.

Owns the plain types, lists, optional values and packed ids. Knows no message: those, and the types that only
one message has, are in `messages`.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

from ecd.control_characters import CONTROL
from ecd.wire.frames import is_uint, pack_ids, unpack_ids

# What a peer tells of itself is shown to others, in frames, as JSON and on terminals. Encoders have no room
# for more than some hundred levels, and terminals obey control characters: C0, DEL and C1.
MAX_MAP_DEPTH = 16


class Codec(NamedTuple):
    """How one field travels: functions of a value and the id width; `decode` raises ValueError."""

    name: str
    encode: Callable[[Any, int], Any]
    decode: Callable[[Any, int], Any]


def need(condition: bool) -> None:
    """Raises ValueError unless the condition holds; for use in a codec's `decode`."""
    if not condition:
        raise ValueError


def plain(name: str, valid: Callable[[Any], bool]) -> Codec:
    """A value that msgpack carries as it is."""

    def decode(value: Any, width: int) -> Any:
        need(valid(value))
        return value

    return Codec(name, lambda value, width: value, decode)


def optional(codec: Codec) -> Codec:
    """The codec's value, or None."""
    return Codec(
        f"{codec.name} or nil",
        lambda value, width: None if value is None else codec.encode(value, width),
        lambda value, width: None if value is None else codec.decode(value, width),
    )


def array_of(codec: Codec) -> Codec:
    """A tuple of any number of the codec's values."""

    def decode(value: Any, width: int) -> Any:
        need(isinstance(value, list))
        return tuple(codec.decode(item, width) for item in value)

    return Codec(f"array of {codec.name}", lambda v, width: [codec.encode(item, width) for item in v], decode)


def enum(kind: type[IntEnum]) -> Codec:
    """A member of the enum, as its number."""

    def decode(value: Any, width: int) -> IntEnum:
        need(is_uint(value))
        return kind(value)

    return Codec(kind.__name__, lambda value, width: int(value), decode)


def _uint(bits: int) -> Codec:
    return plain(f"u{bits}", lambda value: is_uint(value, bits))


def _can_be_told(value: Any, depth: int) -> bool:
    """Whether a value can be shown and be JSON: no binaries, no control characters, arrays and maps nested no
    deeper; never recurses itself deeper than that.
    """
    match value:
        case str():
            return CONTROL.search(value) is None
        case dict():
            return depth > 0 and all(
                isinstance(key, str) and _can_be_told(key, 0) and _can_be_told(inner, depth - 1)
                for key, inner in value.items()
            )
        case list():
            return depth > 0 and all(_can_be_told(inner, depth - 1) for inner in value)
        case _:
            return not isinstance(value, bytes)


def decode_ids(value: Any, width: int) -> tuple[int, ...]:
    """Packed ids, inside a field of more than ids. Raises ValueError or ProtocolError."""
    need(isinstance(value, bytes))
    return unpack_ids(value, width)


U8, U16, U32, U64 = _uint(8), _uint(16), _uint(32), _uint(64)
TEXT = plain("str", lambda value: isinstance(value, str))
BYTES = plain("bin", lambda value: isinstance(value, bytes))
MAP = plain("map", lambda value: isinstance(value, dict) and _can_be_told(value, MAX_MAP_DEPTH))
IDS = Codec("ids", lambda value, width: pack_ids(value, width), decode_ids)
