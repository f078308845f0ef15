"""What one answer took: counters, and how TOKENS add to them.

Pure. Knows nothing of how they are shown.
"""

from dataclasses import dataclass

from ecd.edge.pacing import Pace
from ecd.wire.messages import Tokens


@dataclass(slots=True)
class Tally:
    """What the answer took. `most_ahead`: the most guesses that lay beyond the committed text."""

    drafted: int = 0
    most_ahead: int = 0
    sent: int = 0
    settled: int = 0
    right: int = 0
    verified: int = 0
    accepted: int = 0
    alternates_sent: int = 0
    alternates_used: int = 0
    quiet_tokens: int = 0
    probing_tokens: int = 0
    forwards: int = 0
    forwards_without_hints: int = 0
    resumed: int = 0
    step_us: int = 0
    cached_tokens: int = 0
    prefix_tokens: int = 0

    def stepped(self, message: Tokens, pace: Pace, *, drafts: bool) -> None:
        """A forward of the target brought these tokens. `drafts`: whether the answer has a drafter."""
        self.forwards += 1
        self.forwards_without_hints += not message.verified
        self.verified += message.verified
        self.accepted += message.accepted
        self.step_us = message.step_us
        if not pace.model:
            self.quiet_tokens += len(message.ids)
        elif drafts and not pace.send:
            self.probing_tokens += len(message.ids)
