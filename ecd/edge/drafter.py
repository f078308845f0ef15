"""The seam to what guesses the target's next tokens.

A drafter keeps each slot's context in its own cache and guesses one token per task. It does not know the
cloud, frames or what became of its guesses. Methods are called from one thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ecd.sampling import Guess, Sampling


@dataclass(frozen=True, slots=True)
class DraftTask:
    """For one slot: keep `keep` evaluated tokens, evaluate `tokens` behind them, guess the next.

    `context` are all tokens before the guess (prompt, answer, guesses; `prompt_len` of them prompt);
    `wants_guess` is False for a piece of a long prompt.
    """

    slot: int
    keep: int
    tokens: Sequence[int]
    context: Sequence[int]
    prompt_len: int
    sampling: Sampling
    wants_guess: bool


class Drafter(Protocol):
    """A source of guesses. `slots`: generations at once; `slot_tokens`: what each context may hold."""

    slots: int
    slot_tokens: int

    def draft(self, tasks: Sequence[DraftTask]) -> list[Guess | None]:
        """One guess per task that wants one, in order. Raises EngineError if the forward fails."""
        ...

    def release(self, slot: int) -> None:
        """Forgets what the slot held."""
        ...

    def close(self) -> None:
        """Frees the engine."""
        ...
