"""Which beginnings of prompts each cloud was sent before, and need not be sent again.

Pure; knows hashes, not texts. It may be wrong: the cloud forgets, and says so.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from ecd.wire.prefix import BLOCK_TOKENS, blocks

MAX_HASHES = 1 << 16

Cloud = TypeVar("Cloud", bound=Hashable)


class KnownPrefixes:
    """Hashes of blocks that the cloud has got, or has told as an answer; the oldest go first."""

    def __init__(self, max_hashes: int = MAX_HASHES) -> None:
        self._max_hashes = max_hashes
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def add(self, tokens: Sequence[int]) -> None:
        """The cloud has this text."""
        # The later blocks of a text are of no use without the earlier ones, so they are the older ones here.
        for block_hash, _ in reversed(list(blocks(tokens))):
            self._hashes[block_hash] = None
            self._hashes.move_to_end(block_hash)
        while len(self._hashes) > self._max_hashes:
            self._hashes.popitem(last=False)

    def longest(self, prompt: Sequence[int]) -> tuple[bytes, int] | None:
        """Hash and length of the longest beginning that it has; at least one token is left behind it."""
        hashes = _hashes(prompt)
        held = self.held(hashes)
        return (hashes[held - 1], held * BLOCK_TOKENS) if held else None

    def held(self, hashes: Sequence[bytes]) -> int:
        """How many of a prompt's blocks it has, from the first on."""
        return next((n for n, each in enumerate(hashes) if each not in self._hashes), len(hashes))

    def forget(self) -> None:
        """The cloud has none of it any more."""
        self._hashes.clear()


def _hashes(prompt: Sequence[int]) -> list[bytes]:
    return [block_hash for block_hash, _ in blocks(prompt[:-1])]


class CloudPrefixes(Generic[Cloud]):
    """What each cloud has got; they know nothing of each other's."""

    def __init__(self) -> None:
        self._own: WeakKeyDictionary[Cloud, KnownPrefixes] = WeakKeyDictionary()

    def at(self, cloud: Cloud) -> KnownPrefixes:
        """What one cloud has got."""
        return self._own.setdefault(cloud, KnownPrefixes())

    def shares(self, prompt: Sequence[int]) -> dict[Cloud, float]:
        """Of the prompt, how much each cloud has that has any of it."""
        hashes = _hashes(prompt)
        held = {cloud: known.held(hashes) * BLOCK_TOKENS for cloud, known in self._own.items()}
        return {cloud: tokens / len(prompt) for cloud, tokens in held.items() if tokens}
