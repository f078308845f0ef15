"""How the beginning of a prompt is named on the wire: a hash for every whole block of its tokens.

Pure. docs/PROTOCOL.md says the same in prose.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence

BLOCK_TOKENS = 64
_BLOCK = struct.Struct(f">{BLOCK_TOKENS}I")
_TOKEN_BYTES = 4
# The hash of no tokens at all, on which the first block builds.
ROOT = b""


def blocks(tokens: Sequence[int], start: int = 0, before: bytes = ROOT) -> Iterator[tuple[bytes, bytes]]:
    """Of each whole block of the tokens from `start` on, in order: its hash, and the block as bytes.

    `before`: the hash of all before `start`, which is a multiple of BLOCK_TOKENS. A block's hash covers all
    tokens up to its end: it is the SHA-256 of the hash before it and of its tokens, each a u32 in big-endian
    byte order.
    """
    for first in range(start, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        packed = _BLOCK.pack(*tokens[first : first + BLOCK_TOKENS])
        before = hashlib.sha256(before + packed).digest()
        yield before, packed


def unpack(packed: bytes) -> tuple[int, ...]:
    """The tokens of blocks, one behind the other."""
    return struct.unpack(f">{len(packed) // _TOKEN_BYTES}I", packed)
