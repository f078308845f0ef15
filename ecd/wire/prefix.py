"""How the beginning of a prompt is named on the wire: a hash for every whole block of its tokens.

Pure. docs/PROTOCOL.md says the same in prose.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence

BLOCK_TOKENS = 64
_BLOCK = struct.Struct(f">{BLOCK_TOKENS}I")
# The hash of no tokens at all, on which the first block builds.
ROOT = b""


def blocks(tokens: Sequence[int]) -> Iterator[tuple[bytes, bytes]]:
    """Of each whole block of the tokens, in order: its hash, and the block as bytes.

    A block's hash covers all tokens up to its end: it is the SHA-256 of the hash before it and of its tokens,
    each a u32 in big-endian byte order.
    """
    before = ROOT
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        packed = _BLOCK.pack(*tokens[start : start + BLOCK_TOKENS])
        before = hashlib.sha256(before + packed).digest()
        yield before, packed


def unpack(block: bytes) -> tuple[int, ...]:
    """The tokens of a block."""
    return _BLOCK.unpack(block)
