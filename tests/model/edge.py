"""An edge in virtual time: as `EdgeService`, with its real state machines and without asyncio."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ecd.edge.acceptance import Acceptance
from ecd.edge.commands import Command, Emit, Finished, Send
from ecd.edge.drafter import DraftTask
from ecd.edge.generation import Generation, Phase
from ecd.edge.meter import Meter
from ecd.edge.pacing import Pacer
from ecd.edge.reopening import Reopen, Reopening
from ecd.edge.request import Request
from ecd.edge.survival import EDGE_MEMORY, Survival
from ecd.errors import Code, ProtocolError
from ecd.sampling import Guess
from ecd.wire.connection import Closed, Connected, Connection, Event, Received
from ecd.wire.messages import Finish, Reset, Tokens
from tests.model.wire import Wire
from tests.toy import SIZE, target_only

SLOTS = 2
LINES = 3


@dataclass(slots=True)
class Asked:
    """One answer, what the target alone says, and what has come of it."""

    generation: Generation
    expected: tuple[list[int], Finish]
    reopening: Reopening = field(default_factory=Reopening)
    emitted: list[int] = field(default_factory=list)
    finish: Finish | None = None
    error: Code | None = None
    engine_losses: int = 0

    @property
    def over(self) -> bool:
        return self.finish is not None or self.error is not None


class Edge:
    """As `EdgeService`, without asyncio: answers, drafting slots, one link."""

    def __init__(self, guess: Callable[[DraftTask], tuple[Guess, ...]]) -> None:
        self.answers: list[Asked] = []
        self.wire: Wire | None = None
        self.linked = False
        self._guess = guess
        self._limits: dict[str, int] = {}
        self._by_stream: dict[int, Asked] = {}
        self._to_steer: list[Asked] = []
        self._free = list(range(SLOTS))
        self._acceptance, self._meter, self._survival = Acceptance(), Meter(), Survival(EDGE_MEMORY)
        self._drafting: tuple[float, list[tuple[Asked, list[DraftTask]]]] | None = None

    @property
    def live(self) -> list[Asked]:
        return [asked for asked in self.answers if not asked.over]

    def ask(self, request: Request, now: float) -> None:
        pacer = Pacer(request.objective, self._survival)
        asked = Asked(Generation(request, self._acceptance, pacer), target_only(request))
        if request.draft and request.ahead != 0 and self._free:
            asked.generation.slot = self._free.pop()
        self.answers.append(asked)
        self._open(asked, now)

    def cancel(self, asked: Asked) -> None:
        if asked.generation.phase is Phase.STREAMING and self.linked:
            self._connection.send(Reset(asked.generation.stream, Code.CANCELLED, "cancelled"))
        self._end(asked, error=Code.CANCELLED)

    @property
    def _connection(self) -> Connection:
        assert self.wire is not None
        return self.wire.edge.connection

    def on_event(self, wire: Wire, event: Event, now: float) -> None:
        assert wire is self.wire
        match event:
            case Connected():
                self.linked, self._limits = True, event.peer.limits
                for asked in self.live:
                    self._open(asked, now)
            case Received(message=Tokens() as message) if message.stream in self._by_stream:
                self._tokens(self._by_stream[message.stream], message, now)
            case Received(message=Reset() as message) if message.stream in self._by_stream:
                self._reset(self._by_stream.pop(message.stream), message.code, now)
            case Closed():
                self.linked, self.wire = False, None
                self._by_stream.clear()
                for asked in self.live:
                    asked.generation.lost()

    def _open(self, asked: Asked, now: float) -> None:
        g = asked.generation
        if not self.linked or self._connection.peer_draining or g.phase is not Phase.WAITING:
            return
        stream = self._connection.new_stream()
        self._by_stream[stream] = asked
        conditions = self._meter.conditions
        commands = g.open(stream, self._limits["max_ahead"], alternates=True, conditions=conditions, now=now)
        self._perform(asked, commands)

    def _tokens(self, asked: Asked, message: Tokens, now: float) -> None:
        g, connection = asked.generation, self._connection
        try:
            if max(message.ids, default=0) >= SIZE:
                raise ProtocolError("an id that is not in the vocabulary")
            if g.origins:
                self._meter.stepped(message.step_us / 1e6, message.verified)
            self._meter.told(connection.peer_load)
            self._meter.rtt_s, self._meter.jitter_s = connection.rtt.smoothed_s, connection.rtt.variation_s
            self._perform(asked, g.receive(message, now))
            asked.engine_losses = 0
            self._to_steer.append(asked)
        except ProtocolError as e:
            wire = self.wire
            assert wire is not None
            wire.tell(wire.edge, connection.close(e.code, str(e)))

    def _reset(self, asked: Asked, code: Code, now: float) -> None:
        g = asked.generation
        g.lost()
        asked.engine_losses += code is Code.ENGINE_RESTARTED
        match asked.reopening.after(code, len(g.committed), elsewhere=False):
            case Reopen.NOW:
                self._open(asked, now)
            case Reopen.LATER:
                pass
            case Reopen.NEVER:
                self._end(asked, error=code)

    def steer(self, now: float) -> None:
        """What answers do once their clients have what came; other things may have happened in between."""
        to_steer, self._to_steer = self._to_steer, []
        for asked in to_steer:
            if not asked.over:
                self._perform(asked, asked.generation.steer(self._meter.conditions, now))

    def tend(self, now: float) -> None:
        """What is done four times a second, and what is due."""
        for asked in self.live:
            self._open(asked, now)
            due = asked.generation.next_timer()
            if due is not None and due <= now:
                self._perform(asked, asked.generation.timeout(now))

    def _perform(self, asked: Asked, commands: Iterable[Command]) -> None:
        for command in commands:
            assert not asked.over
            match command:
                case Send(message):
                    assert message.stream == asked.generation.stream
                    self._connection.send(message)
                case Emit(ids):
                    asked.emitted.extend(ids)
                case Finished(reason):
                    self._end(asked, finish=reason)

    def _end(self, asked: Asked, *, finish: Finish | None = None, error: Code | None = None) -> None:
        g = asked.generation
        asked.finish, asked.error = finish, error
        self._by_stream.pop(g.stream, None)
        g.phase = Phase.FINISHED
        if g.slot is not None:
            self._free.append(g.slot)
            g.slot = None

    def begin_draft(self, now: float) -> bool:
        """Whether there is something to draft."""
        if self._drafting is None:
            wanted = [(asked, tasks) for asked in self.live if (tasks := asked.generation.next_tasks(LINES))]
            self._drafting = (now, wanted) if wanted else None
            return bool(wanted)
        return False

    def end_draft(self, now: float) -> bool:
        """The guesses are there; whether there were any."""
        if self._drafting is None:
            return False
        (start, wanted), self._drafting = self._drafting, None
        for asked, tasks in wanted:
            guesses = [self._guess(task) for task in tasks]
            if all(guesses):
                self._meter.drafted(max(1e-3, now - start))
            if not asked.over:
                self._perform(asked, asked.generation.drafted(tasks, guesses, now))
        return True

    def check(self) -> None:
        """What holds at every moment."""
        used = [asked.generation.slot for asked in self.live if asked.generation.slot is not None]
        assert sorted([*used, *self._free]) == list(range(SLOTS))
        for asked in self.answers:
            g, (tokens, finish) = asked.generation, asked.expected
            assert asked.emitted == tokens[: len(asked.emitted)], "the target's text, whatever happened"
            assert list(g.committed) == asked.emitted
            if asked.finish is not None:
                assert (asked.emitted, asked.finish) == (tokens, finish)
        if self.linked:
            streaming = {a.generation.stream for a in self.live if a.generation.phase is Phase.STREAMING}
            assert self._connection.streams == streaming == self._by_stream.keys()
