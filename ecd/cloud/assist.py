"""Pages of prompts for edges that ask for them: who asked, whose turn it is, what is on its way.

Owns the jobs and the thread in which prompts are read; it does not know engines. It never holds a session up:
whatever goes wrong here is answered with a DROP, and the edge reads its prompt by itself.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from ecd.errors import EcdError
from ecd.pages import RUN_TOKENS, Cells, Encoding, Shape, pack
from ecd.wire.link import Link
from ecd.wire.messages import Credit, Kv, KvOp
from ecd.wire.transfer import Run, Sending

log = logging.getLogger(__name__)

# Jobs that may wait for a place; more are sent away.
MAX_WAITING = 16
# Chunks that may wait for credit before the next run of a prompt is made.
MOST_BACKLOG = 64

Address = tuple[Link, int]


class AssistEngine(Protocol):
    """What reads prompts, in `places` places at a time. `cells` and `close` are called from one thread.

    What was read for one tenant serves no other.
    """

    places: int
    context_tokens: int
    shape: Shape
    token_s: float

    def common(self, place: int, tokens: Sequence[int], tenant: str) -> int:
        """How many of the tokens the place holds for the tenant, from the first on."""
        ...

    def cells(self, place: int, tokens: Sequence[int], tenant: str, first: int, last: int) -> Cells:
        """The cells of positions `first` to `last` - 1; raises EngineError."""
        ...

    def close(self) -> None:
        """Frees the engine."""
        ...


@dataclass(slots=True, eq=False)
class _Job:
    """One prompt that an edge wants pages of; without a place it waits for one."""

    address: Address
    tokens: tuple[int, ...]
    encoding: Encoding
    sending: Sending
    place: int | None = None

    @property
    def tenant(self) -> str:
        return self.address[0].connection.tenant

    @property
    def unread(self) -> int:
        return self.sending.want.last - self.sending.next


class Assist:
    """The jobs of all edges."""

    def __init__(self, engine: AssistEngine):
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, "assist")
        self._jobs: dict[Address, _Job] = {}
        # The place that has been free for longest first.
        self._free = list(range(engine.places))
        self._changed = asyncio.Event()

    @property
    def shape(self) -> Shape:
        """What the model's cells are like."""
        return self._engine.shape

    def load(self) -> dict[str, Any]:
        """For PONG: what a token takes here, and how many tokens wait to be read."""
        waiting = sum(job.unread for job in self._jobs.values())
        return {"assist_token_ms": self._engine.token_s * 1000, "assist_waiting": waiting}

    def on_message(self, link: Link, message: Kv | Credit, tokens: Sequence[int]) -> None:
        """A frame on the stream of a session that has these tokens."""
        address = (link, message.stream)
        job = self._jobs.get(address)
        match message:
            case Credit():
                if job is not None:
                    job.sending.credit(message.amount)
                    self._pump(job)
            case Kv(op=KvOp.WANT):
                self._begin(address, message, tokens, job)
            case Kv(op=KvOp.DROP):
                self.forget(link, message.stream)
            case Kv():
                log.debug("edge %s sent pages that nobody asked for", link.peername)

    def forget(self, link: Link, stream: int) -> None:
        """Nobody waits for pages on this stream any more."""
        job = self._jobs.pop((link, stream), None)
        if job is not None and job.place is not None:
            self._free.append(job.place)
            self._changed.set()

    async def run_forever(self) -> None:
        """Makes the next run of a job that has room for one; sleeps while none has."""
        loop = asyncio.get_running_loop()
        while True:
            job = self._next()
            if job is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            run: Run | EcdError
            try:
                run = await loop.run_in_executor(self._thread, self._make, job)
            except EcdError as e:
                log.warning("a prompt could not be read for an edge: %s", e)
                run = e
            if self._jobs.get(job.address) is not job:
                continue  # it was forgotten meanwhile
            if isinstance(run, EcdError):
                self._refuse(job.address[0], job.sending)
                self.forget(*job.address)
                continue
            # The others have their turn.
            self._jobs[job.address] = self._jobs.pop(job.address)
            job.sending.add(run)
            self._pump(job)

    def close(self) -> None:
        """Frees the engine; nothing may be asked of it any more."""
        self._thread.submit(self._engine.close)
        self._thread.shutdown()

    def _begin(self, address: Address, want: Kv, tokens: Sequence[int], job: _Job | None) -> None:
        sending = Sending(want)
        fits = want.first < want.last <= min(len(tokens), self._engine.context_tokens)
        waiting = sum(job.place is None for job in self._jobs.values())
        known = want.encoding in list(Encoding) and want.model == self.shape.model
        if job is not None or not fits or not known or waiting >= MAX_WAITING:
            self._refuse(address[0], sending)
            return
        self._jobs[address] = _Job(address, tuple(tokens[: want.last]), Encoding(want.encoding), sending)
        self._changed.set()

    def _refuse(self, link: Link, sending: Sending) -> None:
        link.send(sending.give_up())

    def _next(self) -> _Job | None:
        for job in self._jobs.values():
            if job.place is None and self._free:
                job.place = max(
                    self._free, key=lambda place: self._engine.common(place, job.tokens, job.tenant)
                )
                self._free.remove(job.place)
            if job.place is not None and job.unread and job.sending.backlog <= MOST_BACKLOG:
                return job
        return None

    def _make(self, job: _Job) -> Run:
        """In the thread."""
        assert job.place is not None
        first = job.sending.next
        last = min(first + RUN_TOKENS, job.sending.want.last)
        cells = self._engine.cells(job.place, job.tokens, job.tenant, first, last)
        return Run(first, last, pack(self.shape, job.encoding, first, cells))

    def _pump(self, job: _Job) -> None:
        for frame in job.sending.due():
            job.address[0].send(frame)
        if job.sending.complete:
            self.forget(*job.address)
        self._changed.set()
