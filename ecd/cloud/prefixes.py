"""Tokens of texts that went over the wire, so that an OPEN need not bring them again.

Pure; knows token ids and hashes, not what an engine has cached for them. Blocks that a tenant's texts have in
common are kept once. What one tenant sent is not there for another, which could else ask what was said; nor
can a tenant take the room that is another's share.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from ecd.errors import BadRequest, UnknownPrefix
from ecd.wire.prefix import BLOCK_TOKENS, ROOT, blocks, unpack

# Of all texts and tenants together; a block takes some 600 bytes.
MAX_BLOCKS = 1 << 16


class Known(NamedTuple):
    """The beginning of a text that needs no hashing any more: so many tokens, and the hash of them all."""

    length: int = 0
    hash: bytes = ROOT


NOTHING = Known()


class Prefixes:
    """Texts in blocks, each by the hash of all up to its end.

    Where there are too many the tenant that has most loses those that it used least recently.
    """

    def __init__(self, max_blocks: int = MAX_BLOCKS):
        self._max_blocks = max_blocks
        # By tenant, and then by hash, each with the hash of the block before it. Within a text the earlier
        # blocks are the newer ones, since the later ones are of no use without them.
        self._of: dict[str, OrderedDict[bytes, tuple[bytes, bytes]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def remember(self, tenant: str, tokens: Sequence[int], known: Known = NOTHING) -> Known:
        """Keeps the whole blocks of a tenant's text; gives what is then known of it.

        `known`: what was of its beginning, which is not hashed again if it is still there.
        """
        own = self._of.setdefault(tenant, OrderedDict())
        if known.hash not in own:
            known = NOTHING
        before, chain = known.hash, []
        for block_hash, packed in blocks(tokens, known.length, known.hash):
            chain.append((block_hash, (before, packed)))
            before = block_hash
        for block_hash, block in reversed(chain):
            own[block_hash] = block
            own.move_to_end(block_hash)
        self._walk(own, known)
        self._make_room()
        return Known(known.length + len(chain) * BLOCK_TOKENS, before)

    def resolve(self, tenant: str, prefix_hash: bytes | None, length: int) -> tuple[int, ...]:
        """The `length` tokens with this hash.

        Raises BadRequest for a length that no prefix has, UnknownPrefix for tokens that are not held of this
        tenant.
        """
        if length % BLOCK_TOKENS:
            raise BadRequest(f"prefix_len {length} is not a multiple of {BLOCK_TOKENS}")
        found = self._walk(self._of.get(tenant, OrderedDict()), Known(length, prefix_hash or ROOT))
        if found is None:
            raise UnknownPrefix(f"this cloud does not hold these {length} tokens; send the whole prompt")
        return unpack(b"".join(reversed(found)))

    def _walk(self, own: OrderedDict[bytes, tuple[bytes, bytes]], known: Known) -> list[bytes] | None:
        """The blocks of a beginning, the last one first, which count as used now; None: they are not held."""
        found: list[bytes] = []
        at = known.hash
        while len(found) * BLOCK_TOKENS < known.length and at in own:
            own.move_to_end(at)
            at, packed = own[at]
            found.append(packed)
        return found if at == ROOT and len(found) * BLOCK_TOKENS == known.length else None

    def _make_room(self) -> None:
        excess = len(self) - self._max_blocks
        while excess > 0:
            holding = [own for own in self._of.values() if own]
            most = max(holding, key=len)
            # Down to a share at once: whoever has most has more than that.
            for _ in range(min(excess, len(most) - self._max_blocks // len(holding))):
                most.popitem(last=False)
                excess -= 1
