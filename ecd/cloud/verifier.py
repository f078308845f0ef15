"""The seam to the target's engine.

A verifier evaluates committed tokens and hints in one forward for many sessions and applies the sampling
rules. It does not know connections, patience or stop conditions. Methods are called from one thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ecd.errors import EcdError
from ecd.sampling import Hint, Sampling, Verdict


@dataclass(frozen=True, slots=True)
class Work:
    """One session's part in a step: all its `tokens` (prompt and answer), and hints to verify behind them."""

    key: int
    tokens: Sequence[int]
    prompt_len: int
    sampling: Sampling
    hints: Sequence[Hint]


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict and how many hints were looked at for it."""

    verdict: Verdict
    verified: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brought: verdicts by session (none while its prompt is read), failures, and its size.

    `one_pass`: its tokens were evaluated together, so its time tells what a batch of so many costs.
    """

    judged: dict[int, Judged] = field(default_factory=dict)
    failed: dict[int, EcdError] = field(default_factory=dict)
    batch_tokens: int = 0
    batch_sessions: int = 0
    one_pass: bool = True


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the engine can hold: sessions at once, and tokens of prompt and answer in each of them."""

    sessions: int
    session_tokens: int


class Verifier(Protocol):
    """A target engine."""

    capacity: Capacity

    def step(self, work: Sequence[Work]) -> StepResult:
        """One forward; a key seen for the first time starts a sequence. Raises EngineError."""
        ...

    def forget(self, key: int) -> None:
        """Frees what the session holds; unknown keys are ignored."""
        ...

    def close(self) -> None:
        """Frees the engine."""
        ...
