"""Hints on their way to the cloud: when they leave, and what it was told of the pace.

Pure. Owns the DRAFT frames of one answer. Knows neither drafters nor who decides how far to draft.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ecd.edge.commands import Command, Send
from ecd.edge.departure import last_moment
from ecd.edge.lines import ALTERNATE_HINTS, Lines
from ecd.edge.pacing import Conditions, Objective, Pace
from ecd.edge.request import Request
from ecd.edge.tally import Tally
from ecd.sampling import Rule
from ecd.wire.messages import ENDLESS_US, Alternate, Draft, HintWeights
from ecd.wire.messages import Pace as WirePace

NO_PATIENCE = WirePace(0, 1)
# Under `latency` no hint waits for company while the cloud has fewer than these to verify.
AT_ONCE = 6


def wire_pace(pace: Pace) -> WirePace:
    """What the cloud is told of a pace."""
    return WirePace(int(min(pace.patience_s * 1e6, ENDLESS_US)), pace.gather)


@dataclass(frozen=True, slots=True)
class Situation:
    """How the answer stands: its open stream, all its tokens, its pace, what was measured.

    `more`: whether further guesses are to come for the main line.
    """

    stream: int
    tokens: Sequence[int]
    pace: Pace
    conditions: Conditions | None
    more: bool


@dataclass(slots=True)
class Hints:
    """`told`: the pace that the cloud goes by, `exhausted`: it was told that no more hints come.

    `flush_at`: when hints that wait for company leave. `alternates`: whether those are sent. `last_tokens_at`
    is when the newest TOKENS came, `in_step`: so many hints the step after them has at most.
    """

    request: Request
    lines: Lines
    tally: Tally
    alternates: bool = False
    told: WirePace = NO_PATIENCE
    exhausted: bool = False
    flush_at: float | None = None
    last_tokens_at: float = 0.0
    in_step: int = 0

    def opened(self, told: WirePace, max_ahead: int, now: float, *, alternates: bool) -> None:
        """OPEN told the cloud this pace. It has no hints, and takes so many, and `alternates` or not."""
        self.told, self.exhausted, self.last_tokens_at = told, False, now
        # A cloud drops an alternate that is longer than the hints it takes.
        self.alternates = (
            alternates
            and self.request.alternates
            and max_ahead >= ALTERNATE_HINTS
            and self.request.sampling.rule is not Rule.REJECTION
        )

    def arrived(self, verified: int, now: float) -> None:
        """TOKENS came, of a step that looked at so many hints."""
        # The step under way has at most what still holds of what was sent, and hardly more than the last had.
        self.last_tokens_at, self.in_step = now, min(verified, self.lines.main.sent)

    def send_or_wait(self, at: Situation | None, now: float) -> list[Command]:
        """Sends hints at once where a step might begin without them, else together with those that follow."""
        if at is None:
            self.flush_at = None
            return []
        due = self.flush_at is not None and now >= self.flush_at
        if due or self._is_urgent(at):
            return self.send(at)
        may_wait = self.lines.unsent(alternates=self.alternates) and not self._gathers(at)
        self.flush_at = self._last_moment(at, now) if may_wait else None
        return self.send(at) if self.flush_at == now else []

    def send(self, at: Situation | None) -> list[Command]:
        """Everything that is not sent yet, in one frame."""
        self.flush_at = None
        if at is None:
            return []
        pace, main, new_pace = at.pace, self.lines.main, wire_pace(at.pace)
        commands: list[Command] = []
        if self.told.patience_us and not (pace.send and pace.model):
            # What was sent is not taken back; there is just no more of it to wait for.
            commands += self.end(at)
        if not pace.send:
            return commands
        alternates = self.lines.send_alternates() if self.alternates else ()
        if main.unsent or alternates:
            hints, base = main.guesses[main.sent :], main.first + main.sent
            chances = bytes(round(255 * chance) for chance in main.chances[main.sent :])
            main.sent = len(main.guesses)
            self.tally.sent += len(hints)
            self.tally.alternates_sent += len(alternates)
            q = None
            if self.request.sampling.rule is Rule.REJECTION:
                chances = b""
                q = tuple(HintWeights(h.q.ids, bytes(h.q.weights)) for h in hints if h.q is not None)
            draft = Draft(
                at.stream,
                len(at.tokens),
                base if hints else len(at.tokens),
                tuple(hint.token for hint in hints),
                chances or None,
                q,
                tuple(Alternate(a.first, tuple(g.token for g in a.guesses)) for a in alternates) or None,
                new_pace if new_pace != self.told else None,
            )
            self.told = new_pace
            # Alternates alone do not take back that no more hints come.
            self.exhausted = self.exhausted and not hints
            commands.append(Send(draft))
        if self._waited_for(self.told) and not at.more:
            commands += self.end(at)
        return commands

    def ask_to_wait(self, at: Situation | None) -> list[Command]:
        """Where hints come too late to tell that the cloud is to wait for them, a token of its own does."""
        if at is None:
            return []
        new_pace = wire_pace(at.pace)
        if not (at.pace.send and new_pace.patience_us) or self.told.patience_us:
            return []
        self.told, self.exhausted = new_pace, False
        last = len(at.tokens) - 1
        return [Send(Draft(at.stream, last, last, (at.tokens[last],), pace=new_pace))]

    def end(self, at: Situation) -> list[Command]:
        """There are no more hints."""
        new_pace = wire_pace(at.pace)
        changed = new_pace != self.told
        self.told, self.exhausted = new_pace, True
        seen = len(at.tokens)
        return [Send(Draft(at.stream, seen, seen, (), pace=new_pace if changed else None))]

    def _last_moment(self, at: Situation, now: float) -> float:
        assert at.conditions is not None
        return last_moment(at.conditions, self.last_tokens_at, self.in_step, now)

    def _gathers(self, at: Situation) -> bool:
        """Whether hints wait for their number whatever the time: no step begins without them, or so asked."""
        endless = math.isinf(at.pace.patience_s) and self._waited_for(wire_pace(at.pace))
        return endless or self.request.fixed_pace is not None

    def _is_urgent(self, at: Situation) -> bool:
        main, pace = self.lines.main, at.pace
        fixed, waited_for = self.request.fixed_pace is not None, self._waited_for(wire_pace(pace))
        if (at.conditions is None and not fixed) or not (pace.send and pace.model):
            return True
        if fixed or waited_for:
            missing = pace.gather - main.sent if waited_for else pace.gather
            return main.unsent >= missing or not at.more
        if self._waited_for(self.told):
            # By an earlier pace, of which the cloud must hear that it is over.
            return main.unsent > 0 or not at.more
        if self.request.sampling.rule is Rule.REJECTION:
            # When a hint leaves must not depend on what its token leads to.
            return main.unsent > 0
        return self.request.objective is Objective.LATENCY and main.unsent > 0 and main.sent < AT_ONCE

    def _waited_for(self, pace: WirePace) -> bool:
        """Whether a cloud of this pace holds its next step back."""
        return pace.patience_us > 0 and self.lines.main.sent < pace.gather and not self.exhausted
