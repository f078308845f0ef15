"""The answers that run: what their generations ask for is done here, and here they end.

Owns the answers by number, their timers and the counters. Knows neither clouds nor drafters: frames go where
an answer is at.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from time import monotonic
from typing import assert_never

from ecd.edge.answer import Answer, Chunk, EdgeTotals
from ecd.edge.commands import Command, Emit, Finished, Send
from ecd.edge.generation import Phase
from ecd.errors import Code, EcdError
from ecd.wire.messages import Commit, Draft, Finish, Open, Reset

log = logging.getLogger(__name__)

Listener = Callable[[Answer, EcdError | Finish], None]


class Running:
    """`piece`: a token's bytes. `leaving` is told of each answer that ends before it is counted, `on_end`
    after that.
    """

    def __init__(self, piece: Callable[[int], bytes]):
        self.answers: dict[int, Answer] = {}
        self.totals = EdgeTotals()
        self.leaving: list[Listener] = []
        self.on_end: list[Listener] = []
        self._piece = piece
        self._loop = asyncio.get_running_loop()
        self._idle = asyncio.Event()

    def __iter__(self) -> Iterator[Answer]:
        """Those that run now, whatever is done to them meanwhile."""
        return iter(list(self.answers.values()))

    def __contains__(self, answer: Answer) -> bool:
        return answer.id in self.answers

    def begin(self, answer: Answer) -> None:
        """Takes up an answer."""
        self.answers[answer.id] = answer
        self.totals.answers += 1

    async def none_left(self) -> None:
        """Returns when the last answer is over."""
        while self.answers:
            self._idle.clear()
            await self._idle.wait()

    def perform(self, answer: Answer, commands: list[Command]) -> None:
        """Does what the generation wants, and sees to its timer."""
        if answer.timeline is not None:
            answer.timeline.performed(commands, monotonic())
        for command in commands:
            match command:
                case Send(message):
                    _send(answer, message)
                case Emit():
                    self._emit(answer, command)
                case Finished(reason):
                    self.totals.finished += 1
                    self.end(answer, reason)
                case other:
                    assert_never(other)
        due = answer.generation.next_timer()
        if due == answer.due:
            return
        answer.due = due
        if answer.timer is not None:
            answer.timer.cancel()
        answer.timer = (
            None
            if due is None
            else self._loop.call_later(max(0.0, due - monotonic()), self._on_timer, answer)
        )

    def end(self, answer: Answer, outcome: EcdError | Finish) -> None:
        """The answer is over; its client is told how."""
        if self.answers.pop(answer.id, None) is None:
            return
        answer.generation.phase = Phase.FINISHED
        for tell in self.leaving:
            tell(answer, outcome)
        self.totals.failed += isinstance(outcome, EcdError) and outcome.code is not Code.CANCELLED
        self.totals.add(answer)
        answer.chunks.put_nowait(outcome)
        tally = answer.generation.tally
        log.info(
            "answer ended: %s; %d tokens, %d forwards, %d of %d hints accepted",
            outcome if isinstance(outcome, EcdError) else outcome.name.lower(),
            len(answer.generation.origins),
            tally.forwards,
            tally.accepted,
            tally.verified,
            extra=answer.about,
        )
        for tell in self.on_end:
            tell(answer, outcome)
        if not self.answers:
            self._idle.set()

    def _emit(self, answer: Answer, emit: Emit) -> None:
        now = answer.waiting_since = answer.last_at = monotonic()
        if answer.first_at is None:
            answer.first_at, answer.first_tokens = now, len(emit.ids)
        done = answer.generation.phase is Phase.FINISHED
        last = len(emit.ids) - 1 if done else None
        pieces = tuple(
            answer.text.feed(self._piece(token), last=index == last) for index, token in enumerate(emit.ids)
        )
        names = tuple(origin.label for origin in emit.origins)
        answer.chunks.put_nowait(Chunk("".join(pieces), emit.ids, names, pieces, emit.logprobs))

    def _on_timer(self, answer: Answer) -> None:
        answer.timer = answer.due = None
        if answer in self:
            self.perform(answer, answer.generation.timeout(monotonic()))


def _send(answer: Answer, message: Open | Draft | Commit | Reset) -> None:
    link = answer.link
    if link is not None:
        size = link.send(message)
        answer.wire_up += size
        answer.open_bytes += size if isinstance(message, Open) else 0
        rtt_s = link.connection.rtt.smoothed_s
        answer.rtt_ms = None if rtt_s is None else rtt_s * 1000
