"""What happened during one answer, and when, for whoever draws it: drafts, frames, commits, roll-backs.

Pure: it is told what the edge does, with the time, and keeps the newest events until they are read. It
decides nothing and knows no sockets or clocks. What the cloud did is not seen from here; a TOKENS frame tells
how long its step took, and half the round-trip time about when it ended.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, assert_never

from ecd.edge.commands import Command, Emit, Finished, Send
from ecd.edge.drafter import DraftTask
from ecd.sampling import Guess
from ecd.wire.messages import Draft, Tokens

# Events kept for a reader that is late; the oldest go first.
MOST_EVENTS = 4096


@dataclass(frozen=True, slots=True)
class Drafted:
    """The drafter worked on `lines` lines, and the main one's `count` guesses are for `base` on."""

    start_ms: float
    end_ms: float
    base: int
    count: int
    lines: int


@dataclass(frozen=True, slots=True)
class HintsSent:
    """A DRAFT frame left: `count` hints for `base` on, and so many alternates."""

    at_ms: float
    base: int
    count: int
    alternates: int


@dataclass(frozen=True, slots=True)
class TokensArrived:
    """A TOKENS frame came. Its step took `step_ms` and ended about half of `rtt_ms` before."""

    at_ms: float
    base: int
    count: int
    accepted: int
    verified: int
    step_ms: float
    rtt_ms: float | None


@dataclass(frozen=True, slots=True)
class Committed:
    """`count` tokens from `base` on have become part of the text."""

    at_ms: float
    base: int
    count: int


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The token at `base` is not the one guessed: `count` guesses, that one and those behind it, are void."""

    at_ms: float
    base: int
    count: int


Happened = Drafted | HintsSent | TokensArrived | Committed | RolledBack


def as_map(event: Happened) -> dict[str, Any]:
    """An event as chunks carry it: its `kind` and fields; times are milliseconds since the answer began."""
    match event:
        case Drafted():
            kind = "drafted"
        case HintsSent():
            kind = "hints-sent"
        case TokensArrived():
            kind = "tokens-arrived"
        case Committed():
            kind = "committed"
        case RolledBack():
            kind = "rolled-back"
        case other:
            assert_never(other)
    return {
        "kind": kind,
        **{name: round(v, 3) if type(v) is float else v for name, v in asdict(event).items()},
    }


@dataclass(slots=True)
class Timeline:
    """The newest events of one answer that began at `began` (seconds) behind `prompt` tokens.

    Times are told in the seconds of that clock.
    """

    began: float
    prompt: int
    _committed: int = 0
    _events: deque[Happened] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))

    def drain(self) -> tuple[Happened, ...]:
        """The events since the last call, oldest first; of more than MOST_EVENTS the newest."""
        events = tuple(self._events)
        self._events.clear()
        return events

    def drafted(
        self, tasks: Sequence[DraftTask], results: Sequence[Sequence[Guess]], start: float, end: float
    ) -> None:
        """The drafter did these tasks."""
        base, count = self.prompt + self._committed, 0
        for task, guesses in zip(tasks, results, strict=True):
            if task.branch == 0:
                base, count = len(task.context), len(guesses)
        self._events.append(Drafted(self._ms(start), self._ms(end), base, count, len(tasks)))

    def arrived(self, message: Tokens, guesses: Sequence[Guess], rtt_s: float | None, now: float) -> None:
        """A frame came; the main line was `guesses`, of which the first is for the frame's first token."""
        at = self._ms(now)
        self._events.append(
            TokensArrived(
                at,
                message.base,
                len(message.ids),
                message.accepted,
                message.verified,
                message.step_us / 1000,
                None if rtt_s is None else rtt_s * 1000,
            )
        )
        pairs = enumerate(zip(message.ids, guesses, strict=False))
        fork = next((index for index, (token, guess) in pairs if token != guess.token), None)
        if fork is not None:
            self._events.append(RolledBack(at, message.base + fork, len(guesses) - fork))

    def performed(self, commands: Sequence[Command], now: float) -> None:
        """What the answer asks for is being done."""
        for command in commands:
            match command:
                case Send(Draft() as draft) if draft.ids or draft.alternates:
                    alternates = len(draft.alternates or ())
                    self._events.append(HintsSent(self._ms(now), draft.base, len(draft.ids), alternates))
                case Emit():
                    base = self.prompt + self._committed
                    self._events.append(Committed(self._ms(now), base, len(command.ids)))
                    self._committed += len(command.ids)
                case Send() | Finished():
                    pass
                case other:
                    assert_never(other)

    def _ms(self, at: float) -> float:
        return (at - self.began) * 1000
