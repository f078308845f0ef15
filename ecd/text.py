"""Committed tokens to text: whole UTF-8 characters only, stop strings found and cut.

Used by the cloud (to stop), the edge (to show) and the oracle (to do both), so that all three see the same
text. Knows tokens only as byte strings.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field

from ecd.errors import BadRequest

# Every token is looked at for every stop string.
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


def check_stop(stop: Sequence[str]) -> None:
    """Raises BadRequest for stop strings that are empty, too many or too long."""
    if len(stop) > MAX_STOPS:
        raise BadRequest(f"stop: {len(stop)} stop strings are more than {MAX_STOPS}")
    if not all(0 < len(s) <= MAX_STOP_CHARACTERS for s in stop):
        raise BadRequest(f"stop: each stop string needs 1 to {MAX_STOP_CHARACTERS} characters")


@dataclass(slots=True)
class TextStream:
    """Turns pieces of bytes into text that is safe to show.

    What may still become a stop string or the rest of a character is held back until the next piece decides.
    The stop string itself is never part of the text.
    """

    stop: tuple[str, ...] = ()
    stopped: bool = False
    _shown: list[str] = field(default_factory=list)
    _held: str = ""
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    @property
    def text(self) -> str:
        """All text that has become certain."""
        return "".join(self._shown)

    def feed(self, piece: bytes, *, last: bool = False) -> str:
        """Adds a token's bytes; returns the text that has become certain, none after a stop string.

        `last` says that nothing follows: what was held back comes out, an unfinished character as U+FFFD.
        """
        if self.stopped:
            return ""
        new = self._decoder.decode(piece, last)
        if not self.stop:
            self._shown.append(new)
            return new
        self._held += new
        # The stop string that is complete first decides, however the text was cut into pieces.
        found = [(at + len(s), at) for s in self.stop if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found)[1])
        return self._release(len(self._held) if last else len(self._held) - self._open_stop())

    def _release(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        self._shown.append(shown)
        return shown

    def _open_stop(self) -> int:
        """Length of the longest tail that is the beginning of a stop string."""
        longest = max((len(s) for s in self.stop), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-length:]) for s in self.stop):
                return length
        return 0
