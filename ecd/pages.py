"""KV pages: the keys and values of a run of positions as bytes that can travel, and back.

Pure. Owns shape, header, the two encodings, compression and what is refused. Knows no engine and no frames.
Cells are float16[positions, width]: for each layer its keys and then its values, as attention uses them.
docs/PROTOCOL.md, section 9.1, has the bytes.
"""

import struct
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import zstandard
from numpy.typing import NDArray

from ecd.errors import PageError

Cells = NDArray[np.float16]

MAGIC = b"ECDK"
# Positions of one run: what is compressed, checked and begun again as a whole.
RUN_TOKENS = 256
# Numbers with one scale in q8_0, as in ggml.
BLOCK = 32
# Faster than any link that this is for; slower levels find little more in such numbers.
ZSTD_LEVEL = 1


class Encoding(StrEnum):
    """How numbers travel: as they are, or as bytes with a scale for each 32 of them, half as long."""

    F16 = "f16+zstd"
    Q8_0 = "q8_0+zstd"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's cells are like.

    model: digest of the model. heads: those of keys and values. layers: numbers of a position's keys and
    values in each layer.
    """

    model: bytes
    heads: int
    layers: tuple[tuple[int, int], ...]

    @property
    def width(self) -> int:
        """Numbers of one position."""
        return sum(keys + values for keys, values in self.layers)

    def position_bytes(self, encoding: Encoding) -> int:
        """What a position takes before compression, which is hardly more than after it."""
        match encoding:
            case Encoding.F16:
                return 2 * self.width
            case Encoding.Q8_0:
                return self.width + 2 * (self.width // BLOCK)

    def header(self, encoding: Encoding, first: int, last: int) -> bytes:
        """What pages of positions `first` to `last` - 1 begin with: all that must agree at both ends."""
        fixed = struct.pack(">4s16sHHII", MAGIC, encoding.encode(), len(self.layers), self.heads, first, last)
        widths = struct.pack(f">{2 * len(self.layers)}I", *(n for layer in self.layers for n in layer))
        return fixed + self.model + widths

    def content_bytes(self, encoding: Encoding, first: int, last: int) -> int:
        """Bytes of such pages before compression."""
        return len(self.header(encoding, first, last)) + (last - first) * self.position_bytes(encoding)

    def most_bytes(self, encoding: Encoding, first: int, last: int) -> int:
        """Most bytes of such pages once compressed (zstd.h, ZSTD_COMPRESSBOUND)."""
        size = self.content_bytes(encoding, first, last)
        return size + (size >> 8) + (64 << 10)


def pack(shape: Shape, encoding: Encoding, first: int, cells: Cells) -> bytes:
    """The cells of the positions from `first` on as pages."""
    match encoding:
        case Encoding.F16:
            body = _planes(cells)
        case Encoding.Q8_0:
            body = _quantised(cells)
    content = shape.header(encoding, first, first + len(cells)) + body
    data: bytes = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(content)
    return data


def unpack(shape: Shape, encoding: Encoding, first: int, last: int, data: bytes) -> Cells:
    """The cells in pages of positions `first` to `last` - 1; never NaN or infinite.

    Raises PageError for anything else than such pages of this shape, before memory is taken for it.
    """
    expected = shape.content_bytes(encoding, first, last)
    try:
        declared = zstandard.frame_content_size(data)
        if declared != expected:
            raise PageError(f"pages of {declared} bytes came where there are {expected}")
        content = zstandard.ZstdDecompressor().decompress(
            data, max_output_size=expected, allow_extra_data=False
        )
    except zstandard.ZstdError as e:
        raise PageError(f"pages could not be decompressed: {e}") from None
    header = shape.header(encoding, first, last)
    if len(content) != expected or not content.startswith(header):
        raise PageError("pages are of another model, encoding or position than those that were asked for")
    body = np.frombuffer(content, np.uint8, offset=len(header))
    match encoding:
        case Encoding.F16:
            cells = _from_planes(body, last - first)
        case Encoding.Q8_0:
            cells = _dequantised(body, last - first, shape.width)
    if not np.isfinite(cells).all():
        raise PageError("pages hold numbers that are not finite")
    return cells


def _planes(cells: Cells) -> bytes:
    """All low bytes, then all high ones: sign and exponent are alike and compress, mantissas do not."""
    pairs: NDArray[np.uint8] = np.ascontiguousarray(cells, "<f2").reshape(-1, 1).view(np.uint8)
    return pairs.T.tobytes()


def _from_planes(body: NDArray[np.uint8], positions: int) -> Cells:
    pairs = np.ascontiguousarray(body.reshape(2, -1).T)
    return pairs.view("<f2").astype(np.float16, copy=False).reshape(positions, -1)


def _quantised(cells: Cells) -> bytes:
    """All scales, then all bytes; a scale is the largest of its 32 numbers through 127 (ggml's q8_0)."""
    blocks = cells.astype(np.float32).reshape(-1, BLOCK)
    scales = (np.abs(blocks).max(axis=1) / 127).astype("<f2")
    divisors = np.where(scales > 0, scales.astype(np.float32), 1)
    numbers = np.clip(np.rint(blocks / divisors[:, None]), -127, 127).astype(np.int8)
    return b"".join((scales.tobytes(), numbers.tobytes()))


def _dequantised(body: NDArray[np.uint8], positions: int, width: int) -> Cells:
    split = 2 * (positions * width // BLOCK)
    scales = body[:split].view("<f2").astype(np.float32)
    numbers = body[split:].view(np.int8).reshape(-1, BLOCK)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by the caller
        return (numbers * scales[:, None]).astype(np.float16).reshape(positions, width)
