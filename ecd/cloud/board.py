"""The draft board: one session's hints for the positions behind its committed tokens.

Pure. Whatever arrives, late, twice, contradicting or hostile, the board holds at most `max_ahead` hints that
continue the committed tokens as far as anyone can tell, and at most MAX_ALTERNATES branches that leave them,
and never raises. It does not know the target or how hints are judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ecd.sampling import Hint

MAX_ALTERNATES = 8


@dataclass(slots=True)
class Board:
    """Hints for positions `length`, `length + 1`, ... where `length` is the number of committed tokens.

    `fork` is the last position at which the edge's line was seen to differ from the committed tokens:
    whatever was drafted without knowing the token there continues a text that does not exist. `fork_before`
    is the one before that.

    `alternates`: what follows if the token at a position is another than the line's, by (position, that
    token), oldest first. All text before the position is committed or on the line, so `length` <= position <=
    `length + len(line)`.
    """

    length: int
    max_ahead: int
    fork: int = -1
    fork_before: int = -1
    exhausted: bool = False
    line: list[Hint] = field(default_factory=list)
    alternates: dict[tuple[int, int], tuple[Hint, ...]] = field(default_factory=dict)
    dropped: int = 0
    alternates_used: int = 0

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
        new = hints[at - base : at - base + max(0, room)]
        self._forget_branches_of_another_line(at, new)
        self.line[at - self.length :] = new
        self.dropped += max(0, len(hints) - (at - base) - max(0, room))

    def offer_alternate(
        self, seen: int, position: int, branch: Sequence[Hint], committed: Sequence[int]
    ) -> None:
        """Takes a branch: if the token at `position` is the first of `branch`, the others follow it.

        It left the edge's line when the edge knew `seen` tokens. One for a position that is committed already
        is used at once if it is right there and nothing newer is on the line.
        """
        along_the_text = self.fork < seen or (self.fork == position and self.fork_before < seen)
        if not along_the_text or not seen <= self.length or not seen <= position or len(branch) < 2:
            self.dropped += len(branch)
        elif position >= self.length:
            self._keep(position, branch)
        elif self._comes_true(position, branch, committed):
            self._switch(position, branch[self.length - position :])
        else:
            self.dropped += len(branch)

    def advance(self, tokens: Sequence[int]) -> None:
        """`tokens` were committed; hints that foretold them are used up, others fall off the board.

        A token that an alternate foretold in place of the line makes what follows it the line.
        """
        for token in tokens:
            here = self.length
            self.length += 1
            if self.line and self.line[0].token == token:
                self.line.pop(0)
            elif (here, token) in self.alternates:
                self._switch(here, self.alternates.pop((here, token))[1:])
            elif self.line:
                self._diverge(here)
            if self.alternates:
                for key in [key for key in self.alternates if key[0] <= here]:
                    self.dropped += len(self.alternates.pop(key))

    def take(self, at_most: int) -> list[Hint]:
        """The next hints, left on the board until `advance` settles them."""
        return self.line[: max(0, at_most)]

    def _keep(self, position: int, branch: Sequence[Hint]) -> None:
        if position > self.length + len(self.line):
            self.dropped += len(branch)
            return
        key = position, branch[0].token
        self.dropped += len(self.alternates.pop(key, ()))
        if len(self.alternates) == MAX_ALTERNATES:
            self.dropped += len(self.alternates.pop(next(iter(self.alternates))))
        self.alternates[key] = tuple(branch[: self.max_ahead + 1])

    def _comes_true(self, position: int, branch: Sequence[Hint], committed: Sequence[int]) -> bool:
        """Whether a branch that comes late foretold what was committed, and more, and nothing is newer."""
        past = self.length - position
        known = zip(branch, committed[position : position + len(branch)], strict=False)
        return not self.line and past < len(branch) and all(hint.token == token for hint, token in known)

    def _switch(self, position: int, rest: Sequence[Hint]) -> None:
        self._diverge(position)
        self.line = list(rest[: self.max_ahead])
        self.alternates_used += 1

    def _diverge(self, position: int) -> None:
        if position > self.fork:
            self.fork_before, self.fork = self.fork, position
            # What the edge had come to the end of was another line.
            self.exhausted = False
        self.dropped += len(self.line) + sum(map(len, self.alternates.values()))
        self.line.clear()
        self.alternates.clear()

    def _forget_branches_of_another_line(self, at: int, new: Sequence[Hint]) -> None:
        """The line from position `at` on becomes `new`: branches that left it behind a change are void."""
        if not self.alternates:
            return
        old = self.line[at - self.length :]
        same = at
        for before, after in zip(old, new, strict=False):
            if before.token != after.token:
                break
            same += 1
        for key in [key for key in self.alternates if key[0] > same]:
            self.dropped += len(self.alternates.pop(key))
