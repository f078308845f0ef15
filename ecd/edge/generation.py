"""One answer at the edge: what is committed, what is guessed ahead, and how the two stay in step.

A pure state machine. Events (a stream was opened or lost, tokens arrived, guesses are ready) come in as
method calls; what is to be sent or shown goes out as commands. It knows no sockets, engines, clocks or text:
time is passed in, in seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from ecd.edge.acceptance import Rates
from ecd.edge.commands import Command, Emit, Finished, Send
from ecd.edge.drafter import Context, DraftTask
from ecd.edge.hints import NO_PATIENCE, Hints, Situation, wire_pace
from ecd.edge.lessons import Lessons
from ecd.edge.lines import Line, Lines
from ecd.edge.pacing import Conditions, Pace, Pacer
from ecd.edge.request import UNSURE, Mode, Request
from ecd.edge.room import Room
from ecd.edge.tally import Tally
from ecd.edge.turns import Turns
from ecd.errors import ProtocolError
from ecd.journal import Hearing, stimulus
from ecd.logprobs import TokenLogprobs, as_asked
from ecd.sampling import Guess
from ecd.wire.messages import Audit, Finish, Origin, Tokens


class Phase(Enum):
    """WAITING without a stream, STREAMING from the cloud, FINISHED."""

    WAITING = auto()
    STREAMING = auto()
    FINISHED = auto()


@dataclass(slots=True)
class Generation:
    """State of one answer. `acceptance` is shared by all answers of the edge; `journal` notes events.

    `turns` is there when the edge commits tokens too. `reads`: nothing has come on the stream yet, whose
    next step reads text too.
    """

    request: Request
    acceptance: Rates
    pacer: Pacer
    turns: Turns | None = None
    tokens: list[int] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    phase: Phase = Phase.WAITING
    stream: int = 0
    slot: int | None = None
    pace: Pace = UNSURE
    tally: Tally = field(default_factory=Tally)
    reads: bool = True
    journal: Hearing | None = None
    lines: Lines = field(init=False)
    hints: Hints = field(init=False)
    lessons: Lessons = field(init=False)
    _conditions: Conditions | None = None
    _max_ahead: int = 0
    _running: tuple[Line, ...] | None = None
    _switched: bool = False

    def __post_init__(self) -> None:
        self.tokens.extend(self.request.prompt + self.request.committed)
        self.origins.extend(Origin.TARGET for _ in self.request.committed)
        self.lines = Lines(len(self.tokens), self.acceptance)
        self.hints = Hints(self.request, self.lines, self.tally)
        teaches = self.request.fixed_pace is None
        self.lessons = Lessons(self.acceptance, self.pacer, self.tally, teaches)
        self._max_ahead = UNSURE.ahead if self.request.ahead is None else self.request.ahead
        self.pace = self.request.fixed_pace or replace(self.request.first_pace, ahead=self._max_ahead)

    @property
    def committed(self) -> tuple[int, ...]:
        """The answer's tokens so far."""
        return tuple(self.tokens[len(self.request.prompt) :])

    @property
    def ahead(self) -> int:
        """Guesses beyond the committed text."""
        return len(self.lines.main.guesses)

    @property
    def alone(self) -> bool:
        """Whether the edge goes on by itself, for now or for good."""
        return self.turns is not None and self.turns.alone

    @property
    def wants_cloud(self) -> bool:
        """Whether a cloud is to take it: it has no stream, and is not the edge's alone for good."""
        return self.phase is Phase.WAITING and self.request.mode is not Mode.EDGE_ONLY

    # -- the link

    # OPEN has the prompt and what is committed.
    @stimulus(ids=lambda self, *args, **kwargs: len(self.tokens))
    def open(
        self,
        stream: int,
        max_ahead: int,
        *,
        alternates: bool,
        conditions: Conditions | None,
        now: float,
        prefix: tuple[bytes, int] | None = None,
        commits: bool = True,
        max_verify: int | None = None,
    ) -> list[Command]:
        """`stream` on a new connection is this generation's: starts, or goes on from what is committed.

        `max_ahead` is how far the cloud takes hints, `alternates` whether it takes those, `commits` whether
        it takes tokens that the edge commits; to one that does not, the rest of the text is left. `prefix`:
        hash and length of a beginning of the prompt that it may have already. `max_verify`: most hints that a
        step of it verifies, where that is known.
        """
        self._conditions = conditions
        if not (commits and self.request.mode.edge_commits):
            self.turns = None
        if self.turns is not None:
            self.turns.opened(len(self.tokens))
        request = self.request
        self.tally.resumed += self.stream != 0
        self.phase, self.stream = Phase.STREAMING, stream
        self._max_ahead = max_ahead if request.ahead is None else min(request.ahead, max_ahead)
        if max_verify is not None:
            self.pacer.at_cloud(max_verify)
        self.reads = True
        self._set_pace()
        # What was guessed before still holds; this cloud has not seen it.
        self.lines.unsend(self._max_ahead)
        # Nobody is to wait for an edge that still reads the prompt.
        waits = self.slot is not None and (request.fixed_pace is not None or self.tally.drafted > 0)
        told = wire_pace(self.pace) if waits else NO_PATIENCE
        self.hints.opened(told, max_ahead, now, alternates=alternates)
        self.tally.prefix_tokens = 0 if prefix is None else prefix[1]
        limit = None if self.turns is None else self.turns.limit
        opening = request.opening(stream, self.committed, told, prefix, limit)
        return [Send(opening), *self._own_turn(), *self.hints.send(self._situation)]

    @stimulus()
    def lost(self) -> None:
        """The stream is gone, nothing else is."""
        if self.phase is Phase.STREAMING:
            self.phase = Phase.WAITING

    @stimulus()
    def refused(self) -> None:
        """The cloud did not take the stream: it is as if it had not been opened."""
        self.lost()
        self.stream = 0

    @stimulus(ids=lambda self, message, now: len(message.ids))
    def receive(self, message: Tokens, now: float) -> list[Command]:
        """Committed tokens; `steer` is to follow. Raises ProtocolError when they do not continue the text."""
        if self.phase is not Phase.STREAMING or message.stream != self.stream:
            return []
        self._check(message)
        self.reads = False
        if self.turns is not None:
            self.turns.heard(len(self.tokens), message.ids)
        others = len(message.ids) - message.accepted
        origins = (Origin.DRAFT_ACCEPTED,) * message.accepted + (Origin.TARGET,) * others
        if not (self.tally.resumed and self.origins):
            self.tally.held(message.cached or 0, len(self.request.prompt))
        self.tally.stepped(message, self.pace, drafts=self.slot is not None)
        for token in message.ids:
            self._settle(token)
        self.origins.extend(origins)
        self.logprobs.extend(message.logprobs or ())
        self.hints.arrived(message.verified, now)
        commands: list[Command] = [Emit(message.ids, origins, message.logprobs)]
        if message.finish is not Finish.NONE:
            self.phase = Phase.FINISHED
            self.lessons.learn(model=self.pace.model)
            commands.append(Finished(message.finish))
        return commands

    @stimulus()
    def steer(self, conditions: Conditions | None, now: float) -> list[Command]:
        """Learns and decides how to go on, once what was received has been shown: that does not wait."""
        self.lessons.learn(model=self.pace.model)
        if self.phase is not Phase.STREAMING:
            return []
        self._conditions = conditions
        self._set_pace()
        # After a switch the cloud has nothing to go on with, if the alternate came too late.
        switched, self._switched = self._switched, False
        own = self._own_turn()
        return [
            *own,
            *(
                self.hints.send(self._situation)
                if switched
                else self.hints.send_or_wait(self._situation, now)
            ),
        ]

    # -- tokens of the edge's own

    @property
    def _is_own_turn(self) -> bool:
        return self.turns is not None and self.turns.is_edges(len(self.tokens))

    @property
    def _takes_hints(self) -> bool:
        """Whether the cloud may commit a token beside its own next one."""
        return self.turns is None or self.turns.limit > len(self.tokens) + 1

    def _own_turn(self) -> list[Command]:
        """In the edge's turn, commits guesses that are sure enough; at one that is not, the cloud goes on."""
        turns = self.turns
        if turns is None or self.phase is Phase.FINISHED:
            return []
        ids, finish = turns.commit(self.tokens, self.lines)
        if ids:
            # Where they differ from its hints, the cloud forgets it too.
            self.hints.exhausted = False
        offline = self.alone and self.request.mode is not Mode.EDGE_ONLY
        origins = (Origin.EDGE_OFFLINE if offline else Origin.EDGE_CONFIDENT,) * len(ids)
        self.origins.extend(origins)
        commands: list[Command] = [Emit(ids, origins)] if ids else []
        streaming = self.phase is Phase.STREAMING
        if finish is not Finish.NONE:
            self.phase = Phase.FINISHED
            last = turns.leave(self.stream, self.tokens) if streaming else ()
            return [*commands, *map(Send, last), Finished(finish)]
        if streaming:
            told = turns.tell(self.stream, self.tokens, self.lines, self._conditions, self.request.objective)
            commands += map(Send, told)
        return commands

    def go_on_alone(self, turns: Turns) -> list[Command]:
        """No cloud takes the answer: until one does, what the draft model guesses is the text.

        `turns` is the answer's own, or has been told all its tokens.
        """
        if self.phase is not Phase.WAITING or self.slot is None:
            return []
        # What is noted ends here: whose turn it is could not be told again.
        self.turns, self.journal = turns, None
        turns.alone = True
        return self._own_turn()

    def audited(self, message: Audit) -> list[Command]:
        """The cloud has compared tokens of the edge; possibly after the end of the answer.

        Raises ProtocolError for what was not asked for.
        """
        if self.turns is None or message.stream != self.stream:
            return []
        for confidence, agreed in self.turns.audited(message):
            self.lessons.audited(confidence, agreed=agreed)
        self.tally.forwards += message.forwards
        return [Send(last) for last in self.turns.after_the_end(self.phase is Phase.FINISHED, self.stream)]

    def _check(self, message: Tokens) -> None:
        ids, base = message.ids, message.base
        if base != len(self.tokens) or not ids or message.accepted > len(ids):
            raise ProtocolError(f"TOKENS at {base} with {len(ids)} ids do not follow {len(self.tokens)}")
        if len(ids) > self._remaining:
            raise ProtocolError(
                f"TOKENS at {base} with {len(ids)} ids, where max_tokens leaves {self._remaining}"
            )
        if not as_asked(message.logprobs, len(ids), self.request.logprobs):
            raise ProtocolError(f"TOKENS at {base} do not carry the logprobs that were asked for")

    def _settle(self, token: int) -> None:
        """Appends a committed token."""
        self.tokens.append(token)
        settled = self.lines.settle(token)
        self.lessons.settled(settled)
        if settled.guess is not None:
            # At a fork both ends forget that there were no more hints.
            self.hints.exhausted = self.hints.exhausted and settled.right
        self.tally.alternates_used += settled.switched
        self._switched = self._switched or settled.switched

    # -- pacing

    def _set_pace(self) -> None:
        pace = self.request.fixed_pace
        if pace is None:
            unsure = self.request.first_pace
            conditions = self.lessons.applied(self._conditions)
            pace = self.pacer.pace(conditions, len(self.origins), self._max_ahead, unsure)
        self.pace = pace if pace.ahead <= self._max_ahead else replace(pace, ahead=self._max_ahead)

    @property
    def _remaining(self) -> int:
        return len(self.request.prompt) + self.request.max_tokens - len(self.tokens)

    @property
    def _room(self) -> Room:
        fixed = self.request.fixed_pace is not None
        return Room(self.lines.main, self.pace, self._max_ahead, self._remaining, fixed)

    def _room_of(self, line: Line) -> int:
        """Guesses that the drafter may add to a line at once."""
        return self._room.copies if line is self.lines.main and not self._is_own_turn else 1

    # -- the drafter

    @stimulus(polled=True)
    def next_tasks(self, branches: int) -> list[DraftTask]:
        """What the drafter should do now, for at most so many lines; `drafted` takes its answer."""
        if self.slot is None or self._running is not None or self.phase is Phase.FINISHED:
            return []
        if self._is_own_turn:
            # A guess that is there is not sure enough, and waits for the cloud.
            self._running = None if self.lines.main.guesses else (self.lines.main,)
            return [self._task(line, model=True) for line in self._running or ()]
        room = self._room
        alternates = branches - 1 if self.hints.alternates and self.pace.send and self.pace.model else 0
        lines = self.lines.to_extend(room.may_guess, alternates, self.pace.alternate_worth, self._remaining)
        if not lines:
            return []
        self._running = tuple(lines)
        return [self._task(line, model=room.asks_model or line is not self.lines.main) for line in lines]

    def _task(self, line: Line, *, model: bool) -> DraftTask:
        assert self.slot is not None
        main, request = self.lines.main, self.request
        before = main.guesses[: line.first - main.first]
        return DraftTask(
            self.slot,
            line.branch,
            Context(self.tokens, len(self.tokens), tuple(guess.token for guess in (*before, *line.guesses))),
            len(request.prompt),
            len(self.tokens),
            request.sampling,
            self._room_of(line),
            model,
            not self._is_own_turn,
            request.fresh,
        )

    @stimulus(untold={"tasks": "next_tasks"})
    def drafted(
        self, tasks: Sequence[DraftTask], results: Sequence[tuple[Guess, ...]], now: float
    ) -> list[Command]:
        """The drafter did the tasks that `next_tasks` gave; some guesses may have been overtaken."""
        running, self._running = self._running, None
        # Drafting may have stopped since, and begun anew.
        if running is None or self.slot is None or self.phase is Phase.FINISHED:
            return []
        late = [
            self._take(line, task, guesses)
            for line, task, guesses in zip(running, tasks, results, strict=True)
        ]
        own = self._own_turn()
        asked = self.hints.ask_to_wait(self._situation) if any(late) else ()
        return [*own, *asked, *self.hints.send_or_wait(self._situation, now)]

    def _take(self, line: Line, task: DraftTask, guesses: Sequence[Guess]) -> bool:
        """Keeps what still holds; whether the guesses were overtaken by the committed text."""
        position = len(task.context)
        self.lessons.drafted(guesses)
        if self.lines.holds(line) and position == line.end:
            if not guesses and not task.model:
                line.dry = True
            line.extend(guesses[: max(0, self._room_of(line))], self.acceptance, self.slot)
            self.tally.most_ahead = max(self.tally.most_ahead, self.ahead)
        elif line is self.lines.main and guesses and position < len(self.tokens):
            right = guesses[0].token == self.tokens[position]
            self.lessons.late(guesses[0], right=right, model=self.pace.model)
            return True
        return False

    @stimulus()
    def stop_drafting(self) -> list[Command]:
        """There will be no more guesses: the cloud must not wait for any."""
        self.slot = None
        self._running = None
        self.lines.clear()
        # A cloud that forked meanwhile takes no hints of this text, and not even their end; a pace it takes.
        self.pace = Pace(0, send=False)
        # All that is left is the cloud's.
        left = [] if self.turns is None else [self.turns.give_all(self.stream, self.tokens, self._remaining)]
        at = Situation(self.stream, self.tokens, self.pace, self._conditions, more=False)
        return [*map(Send, left), *self.hints.end(at)] if self.phase is Phase.STREAMING else []

    # -- hints

    def next_timer(self) -> float | None:
        """When `timeout` is to be called; None for never."""
        return self.hints.flush_at if self.phase is Phase.STREAMING else None

    @stimulus()
    def timeout(self, now: float) -> list[Command]:
        """The time of `next_timer` has come."""
        flush_at = self.hints.flush_at
        return self.hints.send(self._situation) if flush_at is not None and now >= flush_at else []

    @property
    def _situation(self) -> Situation | None:
        """None while the cloud is to get no hints."""
        if self.phase is not Phase.STREAMING or self.slot is None or not self._takes_hints:
            return None
        return Situation(self.stream, self.tokens, self.pace, self._conditions, self._room.may_guess)
