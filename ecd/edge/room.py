"""How many guesses may still be added to an answer's main line, and who makes the next one.

Pure. Knows the pace and how far the line reaches, and no text.
"""

import math
from dataclasses import dataclass

from ecd.edge.lines import Line
from ecd.edge.pacing import Pace


@dataclass(frozen=True, slots=True)
class Room:
    """`line` at this pace; `most`: hints that the cloud takes, `remaining`: tokens that the answer may have.

    `fixed`: the pace was asked for.
    """

    line: Line
    pace: Pace
    most: int
    remaining: int
    fixed: bool

    @property
    def guesses(self) -> int:
        """So many may still be added: the last token is the target's own, whatever was guessed."""
        return min(self.pace.ahead, self.remaining - 1) - len(self.line.guesses)

    @property
    def copies(self) -> int:
        """Of copied text, which costs nothing, so many may still be added."""
        if not self.pace.ahead:
            return 0
        ahead = max(self.pace.ahead, self.pace.copies_ahead)
        return min(ahead, self.most, self.remaining - 1) - len(self.line.guesses)

    @property
    def asks_model(self) -> bool:
        """Whether the model is to guess next; where it is not, text may still be copied."""
        return self.pace.model and self.guesses > 0

    @property
    def may_guess(self) -> bool:
        """Whether the line is to go on."""
        guesses = self.guesses
        model = self.pace.model and guesses > 0
        if not model and self.copies <= 0:
            return False
        # Whoever asks for strict rounds gets them, whatever the chances.
        strict = self.fixed or math.isinf(self.pace.patience_s)
        return (strict and len(self.line.guesses) < self.pace.gather) or self.line.worth_going_on(model=model)
