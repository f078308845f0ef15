"""Frames: u32 big-endian length, then one msgpack array `[type, stream, ...]`; and packed token ids.

Owns how bytes become arrays and back, and the limits checked before memory is spent. Knows no message types,
sockets or clocks. Used by the link between the daemons and by the control socket.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np

from ecd.errors import ProtocolError

LENGTH_BYTES = 4
MAX_FRAME_BYTES = 4 << 20
MAX_ITEMS = 4096


def encode_frame(fields: Sequence[Any]) -> bytes:
    """One frame on the wire; raises ProtocolError when it is too long or not expressible."""
    try:
        body: bytes = msgpack.packb(fields, use_bin_type=True)
    except (UnicodeError, OverflowError) as e:
        raise ProtocolError(f"a frame cannot carry this: {e}") from None
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


@dataclass(slots=True)
class FrameReader:
    """Cuts a byte stream into frames; any chunking of the same bytes gives the same frames."""

    max_frame_bytes: int = MAX_FRAME_BYTES
    max_items: int = MAX_ITEMS
    _buffer: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> Iterator[tuple[list[Any], int]]:
        """Yields each completed frame's array and its length on the wire.

        Raises ProtocolError at the first frame that is too long or malformed. A length over the limit is
        refused from its four bytes alone, before anything is buffered for it.
        """
        self._buffer += data
        while len(self._buffer) >= LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
            if not 0 < length <= self.max_frame_bytes:
                raise ProtocolError(f"frame length {length} is not in 1..{self.max_frame_bytes}")
            end = LENGTH_BYTES + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[LENGTH_BYTES:end])
            del self._buffer[:end]
            yield decode_body(body, self.max_items), end

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)


def decode_body(body: bytes, max_items: int = MAX_ITEMS) -> list[Any]:
    """The array in one frame's body; raises ProtocolError when it is not `[type, stream, ...]`."""
    seen = itertools.count(1)

    def counted(container: Any) -> Any:
        if next(seen) > 2 * max_items:
            raise ValueError(f"more than {2 * max_items} arrays and maps")
        return container

    # Arrays are reserved as declared, so they are kept short; whatever is long travels as bytes. An empty one
    # is a byte on the wire and 64 in memory, so they are few: twice what a list of pairs may have.
    try:
        fields = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_str_len=len(body),
            max_bin_len=len(body),
            max_array_len=max_items,
            max_map_len=max_items,
            max_ext_len=0,
            list_hook=counted,
            object_hook=counted,
            ext_hook=_refuse_extension,
        )
    except (ValueError, msgpack.UnpackException, RecursionError, MemoryError) as e:
        raise ProtocolError(f"a frame's body is not msgpack: {type(e).__name__} {e}") from None
    if not (isinstance(fields, list) and len(fields) >= 2 and is_uint(fields[0]) and is_uint(fields[1])):
        raise ProtocolError("a frame must be an array that starts with its type and stream number")
    return fields


def _refuse_extension(kind: int, data: bytes) -> None:
    raise ValueError(f"extension type {kind}")


def is_uint(value: Any, bits: int = 32) -> bool:
    """Whether a decoded value is an integer (never a bool) of at most `bits` bits."""
    return type(value) is int and 0 <= value < 1 << bits


def id_width(n_vocab: int) -> int:
    """Bytes a token id takes on the wire; raises ProtocolError for a vocabulary that ids cannot cover."""
    if not 0 < n_vocab <= 1 << 24:
        raise ProtocolError(f"a vocabulary of {n_vocab} tokens is not in 1..{1 << 24}")
    return 2 if n_vocab <= 1 << 16 else 3


def pack_ids(ids: Sequence[int], width: int) -> bytes:
    """Token ids as `width` bytes each, big-endian. Raises ProtocolError for an id that does not fit."""
    if ids and max(ids) >> 8 * width:
        raise ProtocolError(f"token id {max(ids)} does not fit {width} bytes")
    wide = np.asarray(ids, dtype=">u4").reshape(-1, 1).view(np.uint8)
    return wide[:, 4 - width :].tobytes()


def unpack_ids(packed: bytes, width: int) -> tuple[int, ...]:
    """Inverse of `pack_ids`; raises ProtocolError for a length that is no multiple of `width`."""
    if len(packed) % width:
        raise ProtocolError(f"{len(packed)} bytes are no whole number of {width}-byte token ids")
    wide = np.zeros((len(packed) // width, 4), dtype=np.uint8)
    wide[:, 4 - width :] = np.frombuffer(packed, dtype=np.uint8).reshape(-1, width)
    return tuple(wide.view(">u4").ravel().tolist())
