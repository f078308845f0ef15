"""The draft board: one session's hints for the positions behind its committed tokens.

Pure. Whatever arrives, late, twice, contradicting or hostile, the board holds at most `max_ahead` hints that
continue the committed tokens as far as anyone can tell, and never raises. It does not know the target or how
hints are judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ecd.sampling import Hint


@dataclass(slots=True)
class Board:
    """Hints for positions `length`, `length + 1`, ... where `length` is the number of committed tokens.

    `fork` is the last position at which the edge's line was seen to differ from the committed tokens:
    whatever was drafted without knowing the token there continues a text that does not exist.
    """

    length: int
    max_ahead: int
    fork: int = -1
    exhausted: bool = False
    line: list[Hint] = field(default_factory=list)
    dropped: int = 0

    def offer(self, seen: int, base: int, hints: Sequence[Hint], committed: Sequence[int]) -> None:
        """Takes hints for positions from `base` on, drafted when the edge knew `seen` tokens.

        No hints at all: the edge will not draft on. `committed` are all tokens, prompt included.
        """
        if seen <= self.fork or seen > self.length or base < seen or base > self.length + len(self.line):
            self.dropped += len(hints)
            return
        self.exhausted = not hints
        for position, hint in zip(range(base, self.length), hints, strict=False):
            if committed[position] != hint.token:
                self._diverge(position)
                self.dropped += len(hints)
                return
        at = max(base, self.length)
        room = self.length + self.max_ahead - at
        self.line[at - self.length :] = hints[at - base : at - base + max(0, room)]
        self.dropped += max(0, len(hints) - (at - base) - max(0, room))

    def advance(self, tokens: Sequence[int]) -> None:
        """`tokens` were committed; hints that foretold them are used up, others fall off the board."""
        for token in tokens:
            if self.line:
                if self.line[0].token == token:
                    self.line.pop(0)
                else:
                    self._diverge(self.length)
            self.length += 1

    def take(self, at_most: int) -> list[Hint]:
        """The next hints, left on the board until `advance` settles them."""
        return self.line[: max(0, at_most)]

    def _diverge(self, position: int) -> None:
        self.fork = position
        self.dropped += len(self.line)
        self.line.clear()
