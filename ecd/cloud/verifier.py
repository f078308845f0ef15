"""The seam to the target's engine.

A verifier evaluates committed tokens and hints in one forward for many sessions and applies the sampling
rules. It does not know connections, patience or stop conditions. Methods are called from one thread, but for
`stats`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ecd.errors import EcdError
from ecd.logprobs import TokenLogprobs
from ecd.sampling import Hint, Sampling, Verdict


@dataclass(frozen=True, slots=True)
class Work:
    """One session's part in a step: all its `tokens` (prompt and answer), and hints to verify behind them.

    `logprobs`: how many of the most likely tokens to tell with each of the verdict's; None: no logprobs.
    `fresh`: nothing that was computed for other sessions may serve it. `tenant`: whose it is; nothing that
    was computed for another tenant may.
    """

    key: int
    tokens: Sequence[int]
    prompt_len: int
    sampling: Sampling
    hints: Sequence[Hint]
    logprobs: int | None = None
    fresh: bool = False
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, how many hints were looked at for it, and the logprobs of its tokens if asked for.

    `cached`: how many of the session's first tokens the engine held when it began.
    """

    verdict: Verdict
    verified: int
    logprobs: tuple[TokenLogprobs, ...] | None = None
    cached: int = 0


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
        """One forward; a key seen for the first time starts a sequence.

        Raises EngineError when it failed for the sessions of this step, and EngineLost when the whole engine
        had to be given up: it then knows no key any more, and a later step builds it anew.
        """
        ...

    def forget(self, key: int) -> None:
        """The session is over; unknown keys are ignored. What it holds may serve others."""
        ...

    def prepare(self, stop: Callable[[], bool]) -> bool:
        """Uses idle time for one piece of work that saves later sessions some; False when there is none.

        It returns soon after `stop` is true, which any thread may make it.
        """
        ...

    def stats(self) -> dict[str, int | float]:
        """What fills the engine now, and its counters since start. Any thread may ask."""
        ...

    def close(self) -> None:
        """Frees the engine."""
        ...
