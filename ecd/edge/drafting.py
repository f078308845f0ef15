"""The drafter's thread, and which answers it drafts for.

Owns the drafting slots, and that one call of the drafter runs at a time: guesses for all answers that want
some, pages that become cells, cells that are taken for another edge. Knows no links.
"""

import asyncio
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from ecd.edge.answer import Answer
from ecd.edge.assisting import Assisting, Put, put
from ecd.edge.drafter import Drafter, DraftTask
from ecd.edge.meters import Meters
from ecd.edge.request import Mode, Request
from ecd.edge.running import Running
from ecd.edge.uplink import Uplink
from ecd.errors import EcdError, EngineError, Overloaded
from ecd.pages import Cells
from ecd.sampling import Guess
from ecd.wire.messages import Finish

log = logging.getLogger(__name__)


class Drafting:
    """`forever` drafts; `wake` tells it that there may be something to do."""

    def __init__(self, drafter: Drafter, running: Running, assisting: Assisting, meters: Meters[Uplink]):
        self._drafter = drafter
        self._running = running
        self._assisting = assisting
        self._meters = meters
        self._thread = ThreadPoolExecutor(1, "drafter")
        self._loop = asyncio.get_running_loop()
        self._free_slots = list(range(drafter.slots - 1, -1, -1))
        self._to_release: list[int] = []
        self._wanted = asyncio.Event()
        running.leaving.append(self._leaves)

    @property
    def slot_tokens(self) -> int:
        """Tokens that fit a drafting slot."""
        return self._drafter.slot_tokens

    def slot_for(self, request: Request) -> int | None:
        """A drafting slot, if the answer is to have one and one is free that it fits.

        Raises Overloaded where it cannot do without.
        """
        fits = request.tokens <= self.slot_tokens
        drafts = request.draft and (request.ahead != 0 or request.mode.edge_commits)
        if drafts and fits and self._free_slots:
            return self._free_slots.pop()
        if request.mode is Mode.EDGE_ONLY:
            raise Overloaded(
                f"all {self._drafter.slots} drafting slots are in use, and mode edge-only needs one; "
                "try again later, or raise sessions at the edge"
            )
        return None

    def free(self, answer: Answer) -> None:
        """The answer is not drafted for any more."""
        slot = answer.generation.slot
        if slot is not None:
            answer.draft_prefill = self._drafter.prefill(slot)
            self._to_release.append(slot)
            self._free_slots.append(slot)
            answer.generation.slot = None
            self._assisting.forget(answer)
            self.wake()

    def wake(self) -> None:
        """Something has happened after which there may be something to draft."""
        self._wanted.set()

    async def forever(self) -> None:
        """Drafts for every answer that may be drafted for; sleeps while none may."""
        puts = self._assisting.puts
        while True:
            while puts:
                await self._put(puts.popleft())
            wanted = [
                (answer, tasks)
                for answer in self._running
                if not self._assisting.holds_back(answer)
                and (tasks := answer.generation.next_tasks(self._drafter.branches))
            ]
            if not wanted and not self._to_release and not puts:
                self._wanted.clear()
                await self._wanted.wait()
                continue
            release, self._to_release = self._to_release, []
            batch = [task for _, tasks in wanted for task in tasks]
            results = await self._loop.run_in_executor(self._thread, self._run, release, batch)
            self._drafted(wanted, results)

    async def turn(self) -> None:
        """Returns once the drafter's thread has had a turn: not before a forward under way has ended."""
        await self._loop.run_in_executor(self._thread, lambda: None)

    async def take_cells(self, answer: Answer) -> Cells | None:
        """The draft model's cells of the answer's text, as far as they hold it. Raises EngineError."""
        holder, slot = self._assisting.holder, answer.generation.slot
        if holder is None or slot is None:
            return None
        tokens = tuple(answer.generation.tokens)
        return await self._loop.run_in_executor(self._thread, holder.take, slot, tokens)

    def kv_stats(self) -> dict[str, int]:
        """What the drafter keeps of texts that are over."""
        return self._drafter.stats()

    def close(self) -> None:
        """Frees the drafter; nothing may be asked of it any more."""
        self._thread.submit(self._drafter.close)
        self._thread.shutdown()

    # -- inside

    def _leaves(self, answer: Answer, outcome: EcdError | Finish) -> None:
        self.free(answer)

    async def _put(self, job: Put) -> None:
        """Pages become cells; without them the drafter reads the prompt by itself."""
        error: Exception | None = None
        try:
            assert self._assisting.holder is not None
            await self._loop.run_in_executor(self._thread, put, self._assisting.holder, job)
        except Exception as e:
            error = e
        self._assisting.done(job, error)

    def _run(
        self, release: list[int], tasks: list[DraftTask]
    ) -> tuple[list[tuple[Guess, ...]] | Exception, float]:
        """In the drafter's thread. A failure ends the drafting of those that took part, not the answers."""
        start = monotonic()
        try:
            for slot in release:
                self._drafter.release(slot)
            return (list(self._drafter.draft(tasks)) if tasks else []), monotonic() - start
        except Exception as e:
            log.exception("drafting %d lines failed; their answers go on without", len(tasks))
            return e, 0.0

    def _drafted(
        self,
        wanted: list[tuple[Answer, list[DraftTask]]],
        drafted: tuple[list[tuple[Guess, ...]] | Exception, float],
    ) -> None:
        results, seconds = drafted
        if isinstance(results, Exception):
            for answer, _ in wanted:
                if answer in self._running:
                    self._give_up(answer, results)
            return
        # Forwards that read a prompt, or that only copied, say nothing of what a guess costs.
        reading = any(answer.drafted_at is None for answer, _ in wanted)
        if not reading and all(guesses and guesses[0].drafter == "model" for guesses in results):
            self._meters.drafted(seconds)
        left = iter(results)
        for answer, tasks in wanted:
            guesses = list(itertools.islice(left, len(tasks)))
            if answer in self._running:
                now = monotonic()
                if answer.drafted_at is None and any(g.drafter == "model" for run in guesses for g in run):
                    answer.drafted_at = now
                if answer.timeline is not None:
                    answer.timeline.drafted(tasks, guesses, now - seconds, now)
                self._running.perform(answer, answer.generation.drafted(tasks, guesses, now))
        self._assisting.read([answer for answer, _ in wanted if answer in self._running], seconds)

    def _give_up(self, answer: Answer, error: Exception) -> None:
        self.free(answer)
        self._running.perform(answer, answer.generation.stop_drafting())
        if answer.generation.request.mode is Mode.EDGE_ONLY:
            self._running.end(answer, EngineError(f"the draft model failed: {error}"))
