"""One answer at the edge: what is committed, what is guessed ahead, and how the two stay in step.

A pure state machine. Events (a stream was opened or lost, tokens arrived, guesses are ready) come in as
method calls; what is to be sent or shown goes out as commands. It knows no sockets, engines, clocks or text:
time is passed in, in seconds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from ecd.edge.acceptance import DecayedRate, Rates
from ecd.edge.commands import Command, Emit, Finished, Send
from ecd.edge.departure import last_moment
from ecd.edge.drafter import Context, DraftTask
from ecd.edge.ending import Ending
from ecd.edge.lines import ALTERNATE_HINTS, Line, Lines
from ecd.edge.pacing import Conditions, Objective, Pace, Pacer
from ecd.edge.request import MAX_PATIENCE_US, UNSURE, Request, Tally
from ecd.edge.turns import Turns, positions_given
from ecd.errors import ProtocolError
from ecd.journal import Hearing, stimulus
from ecd.logprobs import TokenLogprobs, as_asked
from ecd.sampling import Guess, Rule
from ecd.wire.messages import Alternate, Audit, Draft, Finish, HintWeights, Open, Origin, Tokens
from ecd.wire.messages import Pace as WirePace

# Guesses over which the share of copied ones is told, and how many of the model's it begins with.
COPIED_MEMORY, COPIED_WEIGHT = 16.0, 4.0
NO_PATIENCE = WirePace(0, 1)
# Under `latency` no hint waits for company while the cloud has fewer than these to verify.
AT_ONCE = 6


class Phase(Enum):
    """WAITING for a connection, STREAMING from the cloud, ALONE for good without one, FINISHED."""

    WAITING = auto()
    STREAMING = auto()
    ALONE = auto()
    FINISHED = auto()


@dataclass(slots=True)
class Generation:
    """State of one answer. `acceptance` is shared by all answers of the edge; `journal` notes events.

    `turns` is there when the edge commits tokens too, `alone` while no cloud takes the answer and the draft
    goes on by itself.
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
    alone: Ending | None = None
    journal: Hearing | None = None
    lines: Lines = field(init=False)
    _conditions: Conditions | None = None
    _max_ahead: int = 0
    _alternates: bool = False
    _running: tuple[Line, ...] | None = None
    _told: WirePace = NO_PATIENCE
    _told_exhausted: bool = False
    _last_tokens_at: float = 0.0
    _in_step: int = 0
    _flush_at: float | None = None
    _copied: DecayedRate = field(default_factory=lambda: DecayedRate(COPIED_MEMORY))
    _switched: bool = False
    # What the committed tokens have shown of guesses, their places and whether they were right.
    _lessons: list[tuple[Guess, int, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens.extend(self.request.prompt + self.request.committed)
        self.origins.extend(Origin.TARGET for _ in self.request.committed)
        self.lines = Lines(len(self.tokens), self.acceptance)
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
    def copied_share(self) -> float:
        """Of the newest guesses, those that were copied text."""
        return self._copied.estimate(0.0, COPIED_WEIGHT)

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
    ) -> list[Command]:
        """`stream` on a new connection is this generation's: starts, or goes on from what is committed.

        `max_ahead` is how far the cloud takes hints, `alternates` whether it takes those, `commits` whether
        it takes tokens that the edge commits; to one that does not, the rest of the text is left. `prefix`:
        hash and length of a beginning of the prompt that it may have already.
        """
        self._conditions, self.alone = conditions, None
        if not commits:
            self.turns = None
        if self.turns is not None:
            self.turns.opened(len(self.tokens))
        request = self.request
        self.tally.resumed += self.stream != 0
        self.phase, self.stream, self._last_tokens_at = Phase.STREAMING, stream, now
        self._max_ahead = max_ahead if request.ahead is None else min(request.ahead, max_ahead)
        # A cloud drops an alternate that is longer than the hints it takes.
        self._alternates = (
            alternates
            and request.alternates
            and max_ahead >= ALTERNATE_HINTS
            and request.sampling.rule is not Rule.REJECTION
        )
        self._set_pace()
        # What was guessed before still holds; this cloud has not seen it.
        self.lines.unsend(self._max_ahead)
        # Nobody is to wait for an edge that still reads the prompt.
        waits = self.slot is not None and (request.fixed_pace is not None or self.tally.drafted > 0)
        self._told = self._wire_pace() if waits else NO_PATIENCE
        self._told_exhausted = False
        prefix_hash, prefix_len = prefix or (None, 0)
        self.tally.prefix_tokens = prefix_len
        opening = Open(
            stream,
            prefix_hash,
            prefix_len,
            request.prompt[prefix_len:],
            self.committed,
            request.sampling.to_map(),
            request.max_tokens,
            request.stop,
            self._told,
            request.logprobs,
            1 if request.fresh else None,
            None if self.turns is None else self.turns.limit,
        )
        return [Send(opening), *self._own_turn(), *self._send_hints()]

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
        if message.base != len(self.tokens) or not message.ids or message.accepted > len(message.ids):
            raise ProtocolError(
                f"TOKENS at {message.base} with {len(message.ids)} ids do not follow {len(self.tokens)}"
            )
        if len(message.ids) > self._remaining:
            raise ProtocolError(
                f"TOKENS at {message.base} with {len(message.ids)} ids go beyond max_tokens, "
                f"of which {self._remaining} are left"
            )
        if not as_asked(message.logprobs, len(message.ids), self.request.logprobs):
            raise ProtocolError(f"TOKENS at {message.base} do not carry the logprobs that were asked for")
        if self.turns is not None:
            self.turns.heard(len(self.tokens), message.ids)
        origins = tuple(
            Origin.DRAFT_ACCEPTED if index < message.accepted else Origin.TARGET
            for index in range(len(message.ids))
        )
        first = not self.tally.cached_tokens and (not self.tally.resumed or not self.origins)
        if message.cached is not None and first:
            self.tally.cached_tokens = min(message.cached or 0, len(self.request.prompt))
        for token in message.ids:
            self._switched = self._settle(token) or self._switched
        self.origins.extend(origins)
        self.logprobs.extend(message.logprobs or ())
        self._count(message)
        # The step under way has at most what still holds of what was sent, and hardly more than the last had.
        self._last_tokens_at, self._in_step = now, min(message.verified, self.lines.main.sent)
        commands: list[Command] = [Emit(message.ids, origins, message.logprobs)]
        if message.finish is not Finish.NONE:
            self.phase = Phase.FINISHED
            self._learn_lessons()
            commands.append(Finished(message.finish))
        return commands

    @stimulus()
    def steer(self, conditions: Conditions | None, now: float) -> list[Command]:
        """Learns and decides how to go on, once what was received has been shown: that does not wait."""
        self._learn_lessons()
        if self.phase is not Phase.STREAMING:
            return []
        self._conditions = conditions
        self._set_pace()
        # After a switch the cloud has nothing to go on with, if the alternate came too late.
        switched, self._switched = self._switched, False
        own = self._own_turn()
        return [*own, *(self._send_hints() if switched else self._send_or_wait(now))]

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
            self._told_exhausted = False
        origins = (Origin.EDGE_CONFIDENT,) * len(ids)
        self.origins.extend(origins)
        commands: list[Command] = [Emit(ids, origins)] if ids else []
        streaming = self.phase is Phase.STREAMING
        if finish is not Finish.NONE:
            self.phase = Phase.FINISHED
            last = turns.leave(self.stream, self.tokens) if streaming else ()
            return [*commands, *map(Send, last), Finished(finish)]
        if streaming:
            objective = self.request.objective
            given = positions_given(self._conditions, objective)
            renews = objective is Objective.LATENCY
            commands += map(Send, turns.tell(self.stream, self.tokens, self.lines, given, renews=renews))
        return commands

    def audited(self, message: Audit) -> list[Command]:
        """The cloud has compared tokens of the edge; possibly after the end of the answer.

        Raises ProtocolError for what was not asked for.
        """
        if self.turns is None or message.stream != self.stream:
            return []
        for confidence, agreed in self.turns.audited(message):
            if self.request.fixed_pace is None:
                self.acceptance.settle("model", confidence, agreed)
        self.tally.forwards += message.forwards
        return [Send(last) for last in self.turns.after_the_end(self.phase is Phase.FINISHED, self.stream)]

    # -- without a cloud

    def go_on_alone(self, ending: Ending) -> list[Command]:
        """No cloud takes the answer: until one does, what the draft model guesses is the text.

        `ending` has seen all tokens so far.
        """
        if self.phase is not Phase.WAITING or self.slot is None:
            return []
        # What is noted ends here: an ending could not be told again.
        self.alone, self.journal = ending, None
        return self._commit_guesses()

    def _commit_guesses(self) -> list[Command]:
        """The draft model's guesses are the text; what was copied is only a guess."""
        assert self.alone is not None
        ids: list[int] = []
        finish = Finish.NONE
        while (
            finish is Finish.NONE and (guesses := self.lines.main.guesses) and guesses[0].drafter == "model"
        ):
            token = guesses[0].token
            self.tokens.append(token)
            self.lines.settle(token)
            ids.append(token)
            finish = self.alone.after(token)
        self.lines.clear()
        if not ids:
            return []
        origins = (Origin.EDGE_OFFLINE,) * len(ids)
        self.origins.extend(origins)
        if finish is Finish.NONE:
            return [Emit(tuple(ids), origins)]
        self.phase = Phase.FINISHED
        return [Emit(tuple(ids), origins), Finished(finish)]

    def _count(self, message: Tokens) -> None:
        tally = self.tally
        tally.forwards += 1
        tally.forwards_without_hints += not message.verified
        tally.verified += message.verified
        tally.accepted += message.accepted
        tally.step_us = message.step_us
        if not self.pace.model:
            tally.quiet_tokens += len(message.ids)
        elif self.slot is not None and not self.pace.send:
            tally.probing_tokens += len(message.ids)

    def _settle(self, token: int) -> bool:
        """Appends a committed token; whether an alternate has become the main line by it."""
        self.tokens.append(token)
        settled = self.lines.settle(token)
        if settled.guess is not None:
            self._lessons.append((settled.guess, settled.place, settled.right))
            # At a fork both ends forget that there were no more hints.
            self._told_exhausted = self._told_exhausted and settled.right
        self.tally.alternates_used += settled.switched
        return settled.switched

    def _learn_lessons(self) -> None:
        for guess, place, right in self._lessons:
            self._learn(guess, place, right=right)
        self._lessons.clear()

    def _learn(self, guess: Guess, place: int, *, right: bool) -> None:
        self.tally.settled += 1
        self.tally.right += right
        # What is learned is for those who decide by it, from what they do.
        if self.request.fixed_pace is None:
            self.acceptance.settle(guess.drafter, guess.confidence, right)
            if self.pace.model:
                self.pacer.settle(place, right)

    # -- pacing

    def _set_pace(self) -> None:
        pace = self.request.fixed_pace
        if pace is None:
            unsure = self.request.first_pace
            conditions = self._conditions
            if conditions is not None:
                # Copied guesses take no time.
                conditions = replace(conditions, draft_s=(1 - self.copied_share) * conditions.draft_s)
            pace = self.pacer.pace(conditions, len(self.origins), self._max_ahead, unsure)
        self.pace = replace(pace, ahead=min(pace.ahead, self._max_ahead))

    def _wire_pace(self) -> WirePace:
        patience_us = min(self.pace.patience_s * 1e6, MAX_PATIENCE_US)
        return WirePace(int(patience_us), self.pace.gather)

    @property
    def _remaining(self) -> int:
        return len(self.request.prompt) + self.request.max_tokens - len(self.tokens)

    @property
    def _room(self) -> int:
        """Guesses that may still be added: the last token is the target's own, whatever was guessed."""
        return min(self.pace.ahead, self._remaining - 1) - self.ahead

    @property
    def _room_for_copies(self) -> int:
        """Of copied text, which costs nothing, so many guesses may still be added."""
        if not self.pace.ahead:
            return 0
        return (
            min(max(self.pace.ahead, self.pace.copies_ahead), self._max_ahead, self._remaining - 1)
            - self.ahead
        )

    def _room_of(self, line: Line) -> int:
        """Guesses that the drafter may add to a line at once."""
        own = self._is_own_turn or self.alone is not None
        return self._room_for_copies if line is self.lines.main and not own else 1

    @property
    def _asks_model(self) -> bool:
        """Whether the model is to guess next; where it is not, text may still be copied."""
        return self.pace.model and self._room > 0

    def _may_guess(self) -> bool:
        model = self._asks_model
        if (self._room if model else self._room_for_copies) <= 0:
            return False
        # Whoever asks for strict rounds gets them, whatever the chances.
        strict = self.request.fixed_pace is not None or math.isinf(self.pace.patience_s)
        return (strict and self.ahead < self.pace.gather) or self.lines.main.worth_going_on(model=model)

    # -- the drafter

    @stimulus(polled=True)
    def next_tasks(self, branches: int) -> list[DraftTask]:
        """What the drafter should do now, for at most so many lines; `drafted` takes its answer."""
        if self.slot is None or self._running is not None or self.phase is Phase.FINISHED:
            return []
        if self.alone is not None:
            self._running = (self.lines.main,)
            return [self._task(self.lines.main, model=True)]
        if self._is_own_turn:
            # A guess that is there is not sure enough, and waits for the cloud.
            self._running = None if self.lines.main.guesses else (self.lines.main,)
            return [self._task(line, model=True) for line in self._running or ()]
        model = self._asks_model
        alternates = branches - 1 if self._alternates and self.pace.send and self.pace.model else 0
        lines = self.lines.to_extend(
            self._may_guess(), alternates, self.pace.alternate_worth, self._remaining
        )
        if not lines:
            return []
        self._running = tuple(lines)
        return [self._task(line, model=model or line is not self.lines.main) for line in lines]

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
            not self._is_own_turn and self.alone is None,
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
        if self.alone is not None:
            return self._commit_guesses()
        own = self._own_turn()
        return [*own, *(self._ask_to_wait() if any(late) else ()), *self._send_or_wait(now)]

    def _take(self, line: Line, task: DraftTask, guesses: Sequence[Guess]) -> bool:
        """Keeps what still holds; whether the guesses were overtaken by the committed text."""
        position = len(task.context)
        for guess in guesses:
            self.tally.drafted += 1
            self.acceptance.drafted(guess.drafter)
            self._copied.add(guess.drafter != "model")
        if self.lines.holds(line) and position == line.end:
            if not guesses and not task.model:
                line.dry = True
            line.extend(guesses[: max(0, self._room_of(line))], self.acceptance, self.slot)
            self.tally.most_ahead = max(self.tally.most_ahead, self.ahead)
        elif line is self.lines.main and guesses and position < len(self.tokens):
            # Too late to be sent, and still a lesson: the text before it was right.
            self._learn(guesses[0], 0, right=guesses[0].token == self.tokens[position])
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
        commands: list[Command] = []
        if self.turns is not None:
            # All that is left is the cloud's.
            commit = self.turns.frame(self.stream, self.tokens, len(self.tokens) + self._remaining)
            commands.append(Send(commit))
        return [*commands, *self._send_exhausted()] if self.phase is Phase.STREAMING else []

    # -- frames

    def next_timer(self) -> float | None:
        """When `timeout` is to be called; None for never."""
        return self._flush_at if self.phase is Phase.STREAMING else None

    @stimulus()
    def timeout(self, now: float) -> list[Command]:
        """The time of `next_timer` has come."""
        return self._send_hints() if self._flush_at is not None and now >= self._flush_at else []

    def _send_or_wait(self, now: float) -> list[Command]:
        """Sends hints at once where a step might begin without them, else together with those that follow."""
        if not self._takes_hints:
            self._flush_at = None
            return []
        due = self._flush_at is not None and now >= self._flush_at
        if due or self._is_urgent():
            return self._send_hints()
        may_wait = self.lines.unsent(alternates=self._alternates) and not self._gathers()
        self._flush_at = self._last_moment(now) if may_wait else None
        return self._send_hints() if self._flush_at == now else []

    def _last_moment(self, now: float) -> float:
        assert self._conditions is not None
        return last_moment(self._conditions, self._last_tokens_at, self._in_step, now)

    def _gathers(self) -> bool:
        """Whether hints wait for their number whatever the time: no step begins without them, or so asked."""
        endless = math.isinf(self.pace.patience_s) and self._waited_for(self._wire_pace())
        return endless or self.request.fixed_pace is not None

    def _is_urgent(self) -> bool:
        main, pace = self.lines.main, self.pace
        fixed, waited_for = self.request.fixed_pace is not None, self._waited_for(self._wire_pace())
        if (self._conditions is None and not fixed) or not (pace.send and pace.model):
            return True
        if fixed or waited_for:
            missing = pace.gather - main.sent if waited_for else pace.gather
            return main.unsent >= missing or not self._may_guess()
        if self._waited_for(self._told):
            # By an earlier pace, of which the cloud must hear that it is over.
            return main.unsent > 0 or not self._may_guess()
        if self.request.sampling.rule is Rule.REJECTION:
            # When a hint leaves must not depend on what its token leads to.
            return main.unsent > 0
        return self.request.objective is Objective.LATENCY and main.unsent > 0 and main.sent < AT_ONCE

    def _send_hints(self) -> list[Command]:
        """Everything that is not sent yet, in one frame."""
        self._flush_at = None
        if self.phase is not Phase.STREAMING or self.slot is None or not self._takes_hints:
            return []
        pace, main, wire_pace = self.pace, self.lines.main, self._wire_pace()
        commands: list[Command] = []
        if self._told.patience_us and not (pace.send and pace.model):
            # What was sent is not taken back; there is just no more of it to wait for.
            commands += self._send_exhausted()
        if not pace.send:
            return commands
        alternates = self.lines.send_alternates() if self._alternates else ()
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
                self.stream,
                len(self.tokens),
                base if hints else len(self.tokens),
                tuple(hint.token for hint in hints),
                chances or None,
                q,
                tuple(Alternate(a.first, tuple(g.token for g in a.guesses)) for a in alternates) or None,
                wire_pace if wire_pace != self._told else None,
            )
            self._told = wire_pace
            # Alternates alone do not take back that no more hints come.
            self._told_exhausted = self._told_exhausted and not hints
            commands.append(Send(draft))
        if self._waited_for(self._told) and not self._may_guess():
            commands += self._send_exhausted()
        return commands

    def _ask_to_wait(self) -> list[Command]:
        """Where hints come too late to tell that the cloud is to wait for them, a token of its own does."""
        wire_pace = self._wire_pace()
        wanted = self.pace.send and wire_pace.patience_us and not self._told.patience_us
        if self.phase is not Phase.STREAMING or not wanted or not self._takes_hints:
            return []
        self._told, self._told_exhausted = wire_pace, False
        last = len(self.tokens) - 1
        return [Send(Draft(self.stream, last, last, (self.tokens[last],), pace=wire_pace))]

    def _waited_for(self, pace: WirePace) -> bool:
        """Whether a cloud of this pace holds its next step back."""
        return pace.patience_us > 0 and self.lines.main.sent < pace.gather and not self._told_exhausted

    def _send_exhausted(self) -> list[Command]:
        wire_pace = self._wire_pace()
        changed = wire_pace != self._told
        self._told, self._told_exhausted = wire_pace, True
        seen = len(self.tokens)
        return [Send(Draft(self.stream, seen, seen, (), pace=wire_pace if changed else None))]
