"""What a draft and a target step take here and now: running means of what was measured.

Pure. It does not know what is decided by them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ecd.edge.pacing import Conditions

# Weight of a new sample, and how many times the mean it may count at most: one stall is no new normal.
NEW_SAMPLE = 0.1
OUTLIER = 3.0
# What a hint adds to a step before the cloud has told: memory-bound targets verify a few almost for nothing.
FIRST_SLOPE = 0.03
# Hints that a step may verify at most, likewise.
FIRST_MAX_VERIFY = 16


def _mean(old: float | None, sample: float) -> float:
    return sample if old is None else old + NEW_SAMPLE * (min(sample, OUTLIER * old) - old)


@dataclass(slots=True)
class Meter:
    """Seconds: `rtt_s` and how it varies, `draft_s` for one guess, `step_s` for a target step without hints,
    `token_s` for each hint in it, `read_s` for a token of a prompt that the draft model reads. What the link
    brings when it is full. None where nothing is measured yet.
    """

    rtt_s: float | None = None
    jitter_s: float = 0.0
    draft_s: float | None = None
    step_s: float | None = None
    token_s: float | None = None
    read_s: float | None = None
    link_bytes_per_s: float | None = None
    max_verify: int = FIRST_MAX_VERIFY
    sole: bool = True

    def drafted(self, seconds: float) -> None:
        """A forward of the draft model brought a guess for each line it was asked for."""
        self.draft_s = _mean(self.draft_s, seconds)

    def read(self, tokens: int, seconds: float) -> None:
        """The draft model read so many tokens of prompts."""
        self.read_s = _mean(self.read_s, seconds / tokens)

    def stepped(self, seconds: float, verified: int) -> None:
        """A target step took so long and verified so many of our hints; one of no time was not measured."""
        if seconds <= 0:
            return
        token_s = FIRST_SLOPE * seconds if self.token_s is None else self.token_s
        self.step_s = _mean(self.step_s, max(seconds - token_s * verified, 0.1 * seconds))

    def told(self, load: Mapping[str, Any]) -> None:
        """What the cloud says of its load in a PONG; anything may be missing from it, or be nonsense."""
        match load:
            # A cloud that has measured nothing yet says 0 for both.
            case {"step_ms": int() | float() as step_ms, "token_ms": int() | float() as token_ms} if (
                0 < step_ms < 1e6 and 0 <= token_ms < 1e6
            ):
                self.token_s = token_ms / 1000
        match load:
            case {"max_verify": int() as max_verify} if 0 <= max_verify <= 1024:
                self.max_verify = max_verify
        match load:
            case {"running": int() as running}:
                self.sole = running <= 1

    @property
    def conditions(self) -> Conditions | None:
        """For the pacing controller; None while something is not measured yet."""
        if self.rtt_s is None or self.draft_s is None or self.step_s is None:
            return None
        token_s = FIRST_SLOPE * self.step_s if self.token_s is None else self.token_s
        return Conditions(self.rtt_s, self.jitter_s, self.draft_s, self.step_s, token_s, self.sole)
