"""Texts whose KV cache is kept, and how much of one of them serves another: the longest prefix by token ids.

Pure: what a state is and how it comes out of an engine is not known here. Edge and cloud use it alike; they
differ in what a prefix must be so that the same is computed behind it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Tokens: TypeAlias = NDArray[np.int32]
# A sequence's KV cells as the engine writes them.
State: TypeAlias = NDArray[np.uint8]

# So many tokens more must a text that has to be copied or read from a disk have in common, and so many must a
# text lose, before moving megabytes is worth it.
WORTH_TOKENS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """Tokens that a sequence's cells hold.

    `solid`: the first so many serve whatever text begins with them. The others do only where the prompt is of
    the same length `prompt_len`, so that everything was cut into the same pieces. None serves another
    `tenant`, who could tell from the time that a prompt takes what was asked before.
    """

    tokens: Tokens
    prompt_len: int
    solid: int
    tenant: str = ""

    def covers(self, other: "Text") -> bool:
        """Whether whatever `other` serves is served by this one too."""
        length = len(other.tokens)
        serves = other.tenant == self.tenant and other.solid <= self.solid
        return serves and bool(np.array_equal(self.tokens[:length], other.tokens))


EMPTY = Text(np.empty(0, np.int32), 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """Tokens to be evaluated, the first `prompt_len` of them as a prompt, in chunks of `chunk`.

    The last token of all is always evaluated, since its logits are wanted. `tenant`: whose they are.
    """

    tokens: Tokens
    prompt_len: int
    chunk: int
    tenant: str = ""

    def common(self, text: Text) -> int:
        """Length of the longest common beginning; nothing is in common with a text of another tenant."""
        if text.tenant != self.tenant:
            return 0
        length = min(len(self.tokens), len(text.tokens))
        different = self.tokens[:length] != text.tokens[:length]
        return int(different.argmax()) if different.any() else length

    def held_by(self, text: Text) -> int:
        """How many of its first tokens need not be evaluated where the cells hold `text`."""
        common = self.common(text)
        behind = min(common, len(self.tokens) - 1)
        if text.prompt_len == self.prompt_len <= behind:
            return behind
        held = min(common, text.solid, self.prompt_len - 1)
        return held - held % self.chunk


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """A text and the state of the cells that hold it."""

    text: Text
    state: State

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return self.state.nbytes + self.text.tokens.nbytes


class PrefixCache:
    """Saved states of at most `max_bytes` together.

    Where there are too many the tenant that has most loses what it did not use for longest.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._saved: list[Saved] = []

    def __len__(self) -> int:
        return len(self._saved)

    def __iter__(self) -> Iterator[Saved]:
        """Least recently used first."""
        return iter(list(self._saved))

    def find(self, wanted: Wanted, more_than: int) -> tuple[int, Saved] | None:
        """What serves most of it, and how many tokens: WORTH_TOKENS more than `more_than` or nothing."""
        best = max(self._saved, key=lambda saved: wanted.held_by(saved.text), default=None)
        if best is None or (length := wanted.held_by(best.text)) < more_than + WORTH_TOKENS:
            return None
        self._saved.remove(best)
        self._saved.append(best)
        return length, best

    def covers(self, text: Text) -> bool:
        """Whether it has all of that already, which then counts as used."""
        for index, saved in enumerate(self._saved):
            if saved.text.covers(text):
                self._saved.append(self._saved.pop(index))
                return True
        return False

    def put(self, new: Saved) -> list[Saved]:
        """Keeps it in place of what it covers; what has to go for it, or itself if it is too large."""
        if new.size_bytes > self.max_bytes:
            return [new]
        self._saved = [saved for saved in self._saved if not new.text.covers(saved.text)]
        self._saved.append(new)
        self.size_bytes = sum(saved.size_bytes for saved in self._saved)
        gone: list[Saved] = []
        while self.size_bytes > self.max_bytes:
            gone.append(self._oldest_of_most(new))
            self._saved.remove(gone[-1])
            self.size_bytes -= gone[-1].size_bytes
        return gone

    def _oldest_of_most(self, new: Saved) -> Saved:
        """What has to go for `new`. Where a tenant has most by that alone, the oldest of all."""
        held: Counter[str] = Counter()
        for saved in self._saved:
            held[saved.text.tenant] += saved.size_bytes
        most = max(held, key=held.__getitem__)
        others = [saved for saved in self._saved if saved is not new]
        return next((saved for saved in others if saved.text.tenant == most), others[0])
