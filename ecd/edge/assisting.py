"""The assists of all answers of an edge: performs what `Assist` decides.

Owns which answer has which, frames and the drafter's calls for them. Called from the event loop; pages are
unpacked and put into cells in the drafter's thread, which has nothing better to do for such an answer.
"""

import logging
from collections import deque
from dataclasses import dataclass
from time import monotonic

from ecd.edge.answer import Answer, EdgeTotals
from ecd.edge.assist import Assist, Speeds, Stage, cloud_speeds
from ecd.edge.meters import Meters
from ecd.edge.page_holder import PageHolder
from ecd.edge.uplink import Uplink
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

    answer: Answer
    slot: int
    tokens: tuple[int, ...]
    shape: Shape
    encoding: Encoding
    runs: tuple[Run, ...]


def put(holder: PageHolder, job: Put) -> None:
    """In the drafter's thread. Raises PageError or EngineError; the text is then read there as ever."""
    parts = [unpack(job.shape, job.encoding, run.first, run.last, run.data) for run in job.runs]
    holder.put(job.slot, job.tokens[: job.runs[-1].last], parts)


@dataclass(slots=True)
class _Way:
    """An assist, and where its pages come from: `stream` of another edge's link, or else the answer's own."""

    assist: Assist
    link: Link | None = None
    stream: int = 0


class Assisting:
    """`holder`: the drafter's cells. `encoding`: of pages that the cloud is asked for; None: it is not."""

    def __init__(
        self,
        holder: PageHolder | None,
        encoding: Encoding | None,
        meters: Meters[Uplink],
        totals: EdgeTotals,
    ):
        self.holder = holder if holder is not None and holder.shape is not None else None
        # Jobs for the drafter's thread; `done` is told what came of each.
        self.puts: deque[Put] = deque()
        self._encoding = encoding
        self._meters = meters
        self._totals = totals
        self._ways: dict[int, _Way] = {}
        self._held: dict[int, int] = {}

    def holds_back(self, answer: Answer) -> bool:
        """Whether the answer's text is not to be read here, since its pages are on their way."""
        way = self._ways.get(answer.id)
        return way is not None and way.assist.stage is Stage.WAITING

    def read(self, answers: list[Answer], seconds: float) -> None:
        """A call of the drafter took so long; what of these answers' prompts was read by it?"""
        if self.holder is None or self._encoding is None:
            return
        fresh = 0
        for answer in answers:
            if (slot := answer.generation.slot) is not None:
                held = self.holder.held(slot)
                before = self._held.get(answer.id)
                # What was taken over took no time.
                fresh += max(0, held - (self.holder.prefill(slot).cached if before is None else before))
                self._held[answer.id] = held
        if LEAST_READ_TOKENS <= fresh <= MOST_READ_TOKENS:
            self._meters.read(fresh, seconds)
        for answer in answers:
            self._consider(answer)

    def adopt(self, answer: Answer, link: Link, stream: int) -> None:
        """The answer comes from the edge at the other end of `link`, which has its pages."""
        generation = answer.generation
        if generation.slot is None or self.holder is None or self.holder.shape is None:
            return
        if link.connection.peer is None or PAGES not in link.connection.peer.features:
            return
        # Nothing is lost by the numbers as they are: a hand-over is once, and between neighbours.
        assist = Assist(self.holder.shape, Encoding.F16, len(generation.tokens))
        assist.adopt(monotonic())
        way = self._ways[answer.id] = _Way(assist, link, stream)
        self._ask(answer, way)

    def received(self, answer: Answer, message: Kv | Credit) -> None:
        """A frame about the answer's pages."""
        way = self._ways.get(answer.id)
        if way is None or way.assist.wanted is None or not isinstance(message, Kv):
            return
        assist, speeds = way.assist, None if way.link else self._speeds(answer, way)
        if assist.stage is Stage.OVER:
            return
        assist.receive(message, speeds, monotonic())
        self._totals.page_bytes += len(message.payload)
        if way.link is None and (rate := way.assist.wanted.link_bytes_per_s) is not None:
            self._meters.at(answer.cloud).link_bytes_per_s = rate
        match assist.stage:
            case Stage.OVER:
                self._give_up(answer, way)
            case Stage.WAITING if assist.complete:
                self._put(answer, assist)
            case Stage.WAITING:
                if credit := way.assist.wanted.grant(self._stream(answer, way)):
                    self._send(answer, way, credit)
            case _:
                pass

    def check(self, answer: Answer) -> None:
        """Time passes for the answer."""
        way = self._ways.get(answer.id)
        if way is not None and way.assist.late(monotonic()):
            self._give_up(answer, way)

    def done(self, job: Put, error: Exception | None) -> None:
        """The drafter's thread has put the pages into cells, or could not."""
        if way := self._ways.get(job.answer.id):
            way.assist.stage = Stage.OVER
        if error is None:
            self._totals.assisted += 1
            self._totals.assisted_tokens += job.runs[-1].last
        else:
            self._totals.assists_failed += 1
            log.warning("the text is read here: %s", error, extra=job.answer.about)

    def reopened(self, answer: Answer) -> None:
        """The answer has a new stream at the cloud: what is missing of its pages is asked for on it."""
        way = self._ways.get(answer.id)
        if way is None or way.link is not None or way.assist.wanted is None:
            return
        if way.assist.stage is Stage.OVER or way.assist.complete:
            return
        if not self._offered(answer):
            # This cloud is another one.
            way.assist.stage = Stage.OVER
            return
        self._ask(answer, way)

    def forget(self, answer: Answer) -> None:
        """The answer is over, or is not drafted for any more."""
        way = self._ways.pop(answer.id, None)
        self._held.pop(answer.id, None)
        if way and way.assist.wanted and way.assist.stage in (Stage.TRYING, Stage.WAITING):
            self._send(answer, way, way.assist.wanted.give_up(self._stream(answer, way)))

    # -- inside

    def _offered(self, answer: Answer) -> bool:
        link = _cloud(answer)
        if link is None or link.connection.peer is None or self.holder is None or self.holder.shape is None:
            return False
        peer = link.connection.peer
        return (
            PAGES in peer.features and getattr(peer, "model", {}).get(PAGES) == self.holder.shape.model.hex()
        )

    def _speeds(self, answer: Answer, way: _Way) -> Speeds | None:
        link, meter = _cloud(answer), self._meters.at(answer.cloud)
        local_s = meter.read_s
        cloud = None if link is None else cloud_speeds(link.connection.peer_load)
        if link is None or local_s is None or cloud is None:
            return None
        rate = way.assist.wanted.link_bytes_per_s if way.assist.wanted else None
        rtt_s = link.connection.rtt.smoothed_s or 0.0
        return Speeds(local_s, *cloud, rate or meter.link_bytes_per_s, rtt_s)

    def _consider(self, answer: Answer) -> None:
        generation = answer.generation
        if generation.slot is None or not generation.stream or not self._offered(answer):
            return
        if generation.request.fresh:
            # The cloud may hold some of it for another text.
            return
        assert self.holder is not None
        assert self.holder.shape is not None
        assert self._encoding is not None
        way = self._ways.get(answer.id)
        if way is None:
            assist = Assist(self.holder.shape, self._encoding, len(generation.request.prompt))
            way = self._ways[answer.id] = _Way(assist)
        speeds = self._speeds(answer, way)
        if speeds is not None and way.assist.consider(self._held.get(answer.id, 0), speeds, monotonic()):
            self._ask(answer, way)

    def _ask(self, answer: Answer, way: _Way) -> None:
        assert way.assist.wanted is not None
        self._send(answer, way, way.assist.wanted.ask(self._stream(answer, way)))

    def _give_up(self, answer: Answer, way: _Way) -> None:
        assist = way.assist
        assert assist.wanted is not None
        self._send(answer, way, assist.wanted.give_up(self._stream(answer, way)))
        if assist.failed is None:
            log.debug("the link is too slow for pages", extra=answer.about)
            return
        self._totals.assists_failed += 1
        log.warning("the text is read here: %s", assist.failed, extra=answer.about)
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
        tokens = tuple(answer.generation.tokens[: runs[-1].last])
        self.puts.append(Put(answer, slot, tokens, assist.shape, assist.encoding, runs))

    def _stream(self, answer: Answer, way: _Way) -> int:
        return way.stream or answer.generation.stream

    def _send(self, answer: Answer, way: _Way, message: Kv | Credit) -> None:
        link = way.link or _cloud(answer)
        if link is not None:
            link.send(message)


def _cloud(answer: Answer) -> Link | None:
    """The link to the cloud where the answer runs."""
    return None if answer.cloud is None else answer.cloud.link
