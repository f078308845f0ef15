"""The seam to what guesses the target's next tokens.

A drafter keeps what it needs of each slot's text to itself: a task names the whole text, and the drafter
finds out what of it is new. It does not know the cloud, frames or what became of its guesses. Methods are
called from one thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, overload

from ecd.journal import UNTOLD
from ecd.sampling import Guess, Sampling


@dataclass(frozen=True, slots=True)
class Context(Sequence[int]):
    """The first `known` tokens of `text` and the `guesses` behind them, read as one sequence.

    `text` is shared with whoever appends to it, so that a long one is not copied for every guess.
    """

    text: Sequence[int] = field(metadata=UNTOLD)
    known: int
    guesses: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.known + len(self.guesses)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        known = self.known
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"a context is cut into runs, not by steps of {step}")
            if start >= known:
                return list(self.guesses[start - known : max(0, stop - known)])
            return [*self.text[start : min(stop, known)], *self.guesses[: max(0, stop - known)]]
        at = index if index >= 0 else index + len(self)
        return self.text[at] if 0 <= at < known else self.guesses[at - known]


@dataclass(frozen=True, slots=True)
class DraftTask:
    """Guess what follows `context`, all tokens of prompt (`prompt_len` of them), answer and earlier guesses.

    A slot's `branch` 0 is its main line; others leave it somewhere and share its beginning. `committed`: so
    many tokens of the context are the target's and stay; the number only grows until the slot is released.
    `at_most`: guesses wanted; a drafter may return fewer. `model`: whether the draft model may be run for it.
    `copies`: whether text may be copied instead. `fresh`: nothing that was computed for another text may be
    used.
    """

    slot: int
    branch: int
    context: Sequence[int]
    prompt_len: int
    committed: int
    sampling: Sampling
    at_most: int = 1
    model: bool = True
    copies: bool = True
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Prefill:
    """Of a slot's tokens when the model was first asked: those it need not read, and those it has read."""

    cached: int = 0
    read: int = 0


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
        """The slot's text is over; what the slot holds of it may serve others."""
        ...

    def prefill(self, slot: int) -> Prefill:
        """What the slot's text took before its first guess; any thread may ask, before `release`."""
        ...

    def stats(self) -> dict[str, int]:
        """What is kept of texts that are over. Any thread may ask."""
        ...

    def close(self) -> None:
        """Frees the engine."""
        ...
