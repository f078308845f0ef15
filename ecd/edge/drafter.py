"""The seam to what guesses the target's next tokens.

A drafter keeps what it needs of each slot's text to itself: a task names the whole text, and the drafter
finds out what of it is new. It does not know the cloud, frames or what became of its guesses. Methods are
called from one thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ecd.sampling import Guess, Sampling


@dataclass(frozen=True, slots=True)
class DraftTask:
    """Guess what follows `context`, all tokens of prompt (`prompt_len` of them), answer and earlier guesses.

    A slot's `branch` 0 is its main line; others leave it somewhere and share its beginning. `committed`: so
    many tokens of the context are the target's and stay; the number only grows until the slot is released.
    `at_most`: guesses wanted; a drafter may return fewer. `model`: whether the draft model may be run for it.
    """

    slot: int
    branch: int
    context: Sequence[int]
    prompt_len: int
    committed: int
    sampling: Sampling
    at_most: int = 1
    model: bool = True


class Drafter(Protocol):
    """A source of guesses. `slots` generations at once, `branches` lines in each, `slot_tokens` in a line."""

    slots: int
    branches: int
    slot_tokens: int

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        """Each task's next guesses, in order; none while a prompt is still being read, or when it has none.

        Raises EngineError if the forward fails.
        """
        ...

    def release(self, slot: int) -> None:
        """Forgets what the slot held."""
        ...

    def close(self) -> None:
        """Frees the engine."""
        ...
