"""An online suffix automaton over token ids: where the end of a text has been seen before.

Owns the automaton and nothing else; it knows no drafters and no sampling. Construction after Blumer, Blumer,
Haussler, Ehrenfeucht, Chen, Seiferas 1985, 'The smallest automaton recognizing the subwords of a text'.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Repeat:
    """The longest end of a text that occurred before, `length` tokens, and where that occurrence ended.

    The text goes on behind the earlier occurrence at index `end`. `length` 0: not even the last token did.
    """

    length: int
    end: int


class SuffixAutomaton:
    """All substrings of a growing text, each with the place where it first ended.

    `extend` is amortised O(1). A text of n tokens has at most 2n states and 3n transitions. The first
    occurrence is kept and not the latest because it never changes: the latest would have to be noted for
    every suffix at every token, and foretells source files and their edits no better.
    """

    def __init__(self) -> None:
        # State 0 is the empty text. A state's substrings are the suffixes of one longest one of `_length`
        # tokens, down to those longer than its link's.
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._end = [0]
        self._whole = 0

    def __len__(self) -> int:
        return self._length[self._whole]

    def extend(self, token: int) -> None:
        """Adds a token to the text."""
        end = len(self) + 1
        new = self._add({}, 0, end, end)
        state = self._whole
        while state != -1 and token not in self._next[state]:
            self._next[state][token] = new
            state = self._link[state]
        if state != -1:
            self._link[new] = self._exact(state, token)
        self._whole = new

    def _exact(self, state: int, token: int) -> int:
        """The state whose longest substring is that of `state` and `token`; split off where there is none."""
        target = self._next[state][token]
        length = self._length[state] + 1
        if self._length[target] == length:
            return target
        clone = self._add(dict(self._next[target]), self._link[target], length, self._end[target])
        self._link[target] = clone
        while state != -1 and self._next[state].get(token) == target:
            self._next[state][token] = clone
            state = self._link[state]
        return clone

    def _add(self, following: dict[int, int], link: int, length: int, end: int) -> int:
        self._next.append(following)
        self._link.append(link)
        self._length.append(length)
        self._end.append(end)
        return len(self._link) - 1

    def repeat(self, further: Sequence[int] = ()) -> Repeat:
        """The longest suffix of the text and `further` tokens that occurred before, inside the text alone.

        `further` is not added. O(len(further)) amortised over the text.
        """
        state, length = self._whole, len(self)
        if not further:
            state = max(0, self._link[state])
            return Repeat(self._length[state], self._end[state])
        for token in further:
            while state and token not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            if token in self._next[state]:
                state = self._next[state][token]
                length += 1
        return Repeat(length, self._end[state])
