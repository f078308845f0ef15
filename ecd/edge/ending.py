"""When an answer ends that the edge commits tokens to: by the same rules as in the cloud.

Pure; sees tokens and their bytes, and does not know who committed them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ecd.text import TextStream
from ecd.wire.messages import Finish


@dataclass(slots=True)
class Ending:
    """Told every token of an answer in order. `room`: tokens that it may still have.

    `ends`: ids that end a text, `piece` gives a token's bytes, `text` finds the stop texts.
    """

    text: TextStream
    piece: Callable[[int], bytes]
    ends: frozenset[int]
    room: int

    def after(self, token: int) -> Finish:
        """Why the answer ends with this token; NONE if it does not."""
        self.room -= 1
        if token in self.ends:
            return Finish.STOP
        self.text.feed(self.piece(token))
        if self.text.stopped:
            return Finish.STOP
        return Finish.NONE if self.room else Finish.LENGTH
