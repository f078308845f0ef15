"""Tokens of texts that went over the wire, so that an OPEN need not bring them again.

Pure; knows token ids and hashes, not what an engine has cached for them. Blocks that a tenant's texts have in
common are kept once. What one tenant sent is not there for another, which could else ask what was said.
"""

from collections import OrderedDict
from collections.abc import Sequence

from ecd.errors import BadRequest, UnknownPrefix
from ecd.wire.prefix import BLOCK_TOKENS, ROOT, blocks, unpack

# Of all texts and tenants together; a block takes some 600 bytes.
MAX_BLOCKS = 1 << 16


class Prefixes:
    """Texts in blocks, each by the hash of all up to its end; the least recently used blocks go first."""

    def __init__(self, max_blocks: int = MAX_BLOCKS):
        self._max_blocks = max_blocks
        # By tenant and hash, each with the hash of the block before it. Within a text the earlier blocks are
        # the newer ones, since the later ones are of no use without them.
        self._blocks: OrderedDict[tuple[str, bytes], tuple[bytes, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def remember(self, tenant: str, tokens: Sequence[int]) -> None:
        """Keeps the whole blocks of a tenant's text."""
        before, chain = ROOT, []
        for block_hash, packed in blocks(tokens):
            chain.append(((tenant, block_hash), (before, packed)))
            before = block_hash
        for name, block in reversed(chain):
            self._blocks[name] = block
            self._blocks.move_to_end(name)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)

    def resolve(self, tenant: str, prefix_hash: bytes | None, length: int) -> tuple[int, ...]:
        """The `length` tokens with this hash.

        Raises BadRequest for a length that no prefix has, UnknownPrefix for tokens that are not held of this
        tenant.
        """
        if length % BLOCK_TOKENS:
            raise BadRequest(f"prefix_len {length} is not a multiple of {BLOCK_TOKENS}")
        found: list[bytes] = []
        at = prefix_hash or ROOT
        while len(found) * BLOCK_TOKENS < length and (tenant, at) in self._blocks:
            at, packed = self._blocks[tenant, at]
            found.append(packed)
        if at != ROOT or len(found) * BLOCK_TOKENS != length:
            raise UnknownPrefix(f"this cloud does not hold these {length} tokens; send the whole prompt")
        return tuple(token for packed in reversed(found) for token in unpack(packed))
