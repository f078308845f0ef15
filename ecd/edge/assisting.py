"""The assists of all answers of an edge: performs what `Assist` decides.

Owns which answer has which, frames and the drafter's calls for them. Called from the event loop; pages are
unpacked and put into cells in the drafter's thread, which has nothing better to do for such an answer.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from ecd.edge.answer import Answer, EdgeTotals
from ecd.edge.assist import Assist, Speeds, Stage, cloud_speeds
from ecd.edge.meter import Meter
from ecd.edge.page_holder import PageHolder
from ecd.pages import Encoding, Shape, unpack
from ecd.wire.connection import PAGES
from ecd.wire.link import Link
from ecd.wire.messages import Credit, Kv
from ecd.wire.transfer import Run

log = logging.getLogger(__name__)

# A drafter's call that brought fewer tokens of a prompt into its cells does not tell how fast it reads.
LEAST_READ_TOKENS, MOST_READ_TOKENS = 32, 1024


@dataclass(frozen=True, slots=True)
class Put:
    """A job for the drafter's thread: these pages are the beginning of a slot's text."""

    answer: int
    slot: int
    tokens: tuple[int, ...]
    shape: Shape
    encoding: Encoding
    runs: tuple[Run, ...]


def put(holder: PageHolder, job: Put) -> None:
    """In the drafter's thread. Raises PageError or EngineError; the text is then read there as ever."""
    parts = [unpack(job.shape, job.encoding, run.first, run.last, run.data) for run in job.runs]
    holder.put(job.slot, job.tokens[: job.runs[-1].last], parts)


class Assisting:
    """`holder`: the drafter's cells. `encoding`: of the pages that are asked for; None to ask for none."""

    def __init__(
        self,
        holder: PageHolder | None,
        encoding: Encoding | None,
        meter: Meter,
        link: Callable[[], Link | None],
    ):
        self._holder = holder if holder is not None and holder.shape is not None else None
        self._encoding = encoding
        self._meter = meter
        self._link = link
        self._assists: dict[int, Assist] = {}
        self._held: dict[int, int] = {}
        # Jobs for the drafter's thread; `done` is told what came of each.
        self.puts: deque[Put] = deque()

    @property
    def holder(self) -> PageHolder:
        """The drafter's cells; only where there are such."""
        assert self._holder is not None
        return self._holder

    def holds_back(self, answer: Answer) -> bool:
        """Whether the answer's prompt is not to be read here, since its pages are on their way."""
        assist = self._assists.get(answer.id)
        return assist is not None and assist.stage is Stage.WAITING

    def read(self, answers: list[Answer], seconds: float) -> None:
        """A call of the drafter took so long; what of these answers' prompts was read by it?"""
        if self._holder is None or self._encoding is None:
            return
        fresh = 0
        for answer in answers:
            if answer.generation.slot is not None:
                held = self._holder.held(answer.generation.slot)
                fresh += max(0, held - self._held.get(answer.id, 0))
                self._held[answer.id] = held
        if LEAST_READ_TOKENS <= fresh <= MOST_READ_TOKENS:
            self._meter.read(fresh, seconds)
        for answer in answers:
            self._consider(answer)

    def received(self, answer: Answer, message: Kv | Credit, totals: EdgeTotals) -> None:
        """A frame on the answer's stream that is about pages."""
        assist, speeds = self._assists.get(answer.id), self._speeds(answer.id)
        if assist is None or assist.wanted is None or not isinstance(message, Kv) or speeds is None:
            return
        if assist.stage is Stage.OVER:
            return
        assist.receive(message, speeds, monotonic())
        totals.page_bytes += len(message.payload)
        if (rate := assist.wanted.link_bytes_per_s) is not None:
            self._meter.link_bytes_per_s = rate
        match assist.stage:
            case Stage.OVER:
                self._give_up(answer, assist, totals)
            case Stage.WAITING if assist.complete:
                self._put(answer, assist)
            case Stage.WAITING:
                if credit := assist.wanted.grant(answer.generation.stream):
                    self._send(credit)
            case _:
                pass

    def check(self, answer: Answer, totals: EdgeTotals) -> None:
        """Time passes for the answer."""
        assist = self._assists.get(answer.id)
        if assist is not None and assist.late(monotonic()):
            self._give_up(answer, assist, totals)

    def done(self, job: Put, error: Exception | None, totals: EdgeTotals) -> None:
        """The drafter's thread has put the pages into cells, or could not."""
        if assist := self._assists.get(job.answer):
            assist.stage = Stage.OVER
        if error is None:
            totals.assisted += 1
            totals.assisted_tokens += job.runs[-1].last
        else:
            totals.assists_failed += 1
            log.warning("the prompt of session %d is read here: %s", job.answer, error)

    def reopened(self, answer: Answer) -> None:
        """The answer has a new stream: what is missing of its pages is asked for on it."""
        assist = self._assists.get(answer.id)
        if assist is None or assist.wanted is None or assist.stage is Stage.OVER or assist.complete:
            return
        if not self._offered():
            # This cloud is another one.
            assist.stage = Stage.OVER
            return
        self._ask(answer, assist)

    def forget(self, answer: Answer) -> None:
        """The answer is over, or is not drafted for any more."""
        assist = self._assists.pop(answer.id, None)
        self._held.pop(answer.id, None)
        if assist and assist.wanted and assist.stage in (Stage.TRYING, Stage.WAITING):
            self._send(assist.wanted.give_up(answer.generation.stream))

    # -- inside

    def _offered(self) -> bool:
        link = self._link()
        if link is None or link.connection.peer is None or self._holder is None or self._holder.shape is None:
            return False
        peer = link.connection.peer
        return (
            PAGES in peer.features and getattr(peer, "model", {}).get(PAGES) == self._holder.shape.model.hex()
        )

    def _speeds(self, answer_id: int) -> Speeds | None:
        link, local_s = self._link(), self._meter.read_s
        cloud = None if link is None else cloud_speeds(link.connection.peer_load)
        if link is None or local_s is None or cloud is None:
            return None
        assist = self._assists.get(answer_id)
        rate = assist.wanted.link_bytes_per_s if assist and assist.wanted else None
        rtt_s = link.connection.rtt.smoothed_s or 0.0
        return Speeds(local_s, *cloud, rate or self._meter.link_bytes_per_s, rtt_s)

    def _consider(self, answer: Answer) -> None:
        generation = answer.generation
        if generation.slot is None or not generation.stream or not self._offered():
            return
        assert self._holder is not None
        assert self._holder.shape is not None
        assert self._encoding is not None
        assist = self._assists.get(answer.id)
        if assist is None:
            assist = Assist(self._holder.shape, self._encoding, len(generation.request.prompt))
            self._assists[answer.id] = assist
        speeds = self._speeds(answer.id)
        if speeds is not None and assist.consider(self._held.get(answer.id, 0), speeds, monotonic()):
            self._ask(answer, assist)

    def _ask(self, answer: Answer, assist: Assist) -> None:
        assert assist.wanted is not None
        self._send(assist.wanted.ask(answer.generation.stream))

    def _give_up(self, answer: Answer, assist: Assist, totals: EdgeTotals) -> None:
        assert assist.wanted is not None
        self._send(assist.wanted.give_up(answer.generation.stream))
        if assist.failed is None:
            log.debug("the link is too slow for pages of session %d", answer.id)
            return
        totals.assists_failed += 1
        log.warning("the prompt of session %d is read here: %s", answer.id, assist.failed)
        if assist.runs:
            # What came before is as good as ever.
            self._put(answer, assist)

    def _put(self, answer: Answer, assist: Assist) -> None:
        slot = answer.generation.slot
        runs, assist.runs = tuple(assist.runs), []
        if slot is None or runs[-1].last <= assist.held:
            # All of it has been read here meanwhile.
            assist.stage = Stage.OVER
            return
        prompt = answer.generation.request.prompt
        self.puts.append(Put(answer.id, slot, prompt, assist.shape, assist.encoding, runs))

    def _send(self, message: Kv | Credit) -> None:
        if (link := self._link()) is not None:
            link.send(message)
