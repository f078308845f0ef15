"""The target's engine in a thread of its own: one step at a time, and how long it stood still between them.

Knows the verifier; not sessions, nor which of them take part in a step.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from ecd.cloud.verifier import StepResult, Verifier, Work
from ecd.errors import EcdError, EngineError, EngineLost

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Gaps:
    """Times from the end of a step to the start of the next, where that one's work was there already.

    The engine stands still meanwhile: what the daemon costs it. Named as in `stats`.
    """

    gaps: int = 0
    gap_s: float = 0.0
    gaps_over_1ms: int = 0

    def add(self, gap_s: float) -> None:
        """One more, in seconds."""
        self.gaps += 1
        self.gap_s += gap_s
        self.gaps_over_1ms += gap_s > 1e-3


class EngineThread:
    """Runs what it is given in order; called from the event loop."""

    def __init__(self, verifier: Verifier):
        self._verifier = verifier
        self._thread = ThreadPoolExecutor(1, "engine")
        self._loop = asyncio.get_running_loop()
        self._gaps = Gaps()
        self._busy_until: float | None = None
        self._restarts = 0

    async def step(
        self, forget: Sequence[int], work: Sequence[Work]
    ) -> asyncio.Future[tuple[StepResult, float]]:
        """Begins a step, and returns when it runs: what comes of it, and how long it took, in seconds.

        A failure ends the sessions that took part and nothing else.
        """
        # Whatever else the event loop did at once, the thread would have to wait for.
        begun = asyncio.Event()
        result = self._loop.run_in_executor(self._thread, self._step, forget, work, begun)
        await begun.wait()
        return result

    def rest(self) -> None:
        """There is no work: what passes until the next step is no gap. Between steps only."""
        self._busy_until = None

    def prepare(self, stop: Callable[[], bool]) -> asyncio.Future[bool]:
        """As of `Verifier`."""
        return self._loop.run_in_executor(self._thread, self._verifier.prepare, stop)

    async def turn(self) -> None:
        """Returns once the thread has had a turn: not before a step that is under way has ended."""
        await self._loop.run_in_executor(self._thread, lambda: None)

    def stats(self) -> dict[str, Any]:
        """Since the start; `engine`: what the verifier tells."""
        return {
            **asdict(self._gaps),
            "engine_restarts": self._restarts,
            "engine": self._verifier.stats(),
        }

    def close(self) -> None:
        """Frees the engine; nothing may be asked of it any more."""
        self._thread.submit(self._verifier.close)
        self._thread.shutdown()

    def _step(
        self, forget: Sequence[int], work: Sequence[Work], begun: asyncio.Event
    ) -> tuple[StepResult, float]:
        start = perf_counter()
        self._loop.call_soon_threadsafe(begun.set)
        if work and self._busy_until is not None:
            self._gaps.add(start - self._busy_until)
        try:
            for key in forget:
                self._verifier.forget(key)
            result = self._verifier.step(work) if work else StepResult()
        except Exception as e:
            log.exception("a step with %d sessions failed", len(work))
            error = e if isinstance(e, EcdError) else EngineError(f"the engine failed: {e}")
            self._restarts += isinstance(error, EngineLost)
            result = StepResult(failed={item.key: error for item in work})
        end = perf_counter()
        self._busy_until = end if work else None
        return result, end - start
