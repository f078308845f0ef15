"""One answer at the edge: what is committed, what is guessed ahead, and how the two stay in step.

A pure state machine. Events (a stream was opened or lost, tokens arrived, a guess is ready) come in as method
calls; what is to be sent or shown goes out as commands. It knows no sockets, engines, clocks or text.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

from ecd.edge.drafter import DraftTask
from ecd.engine.packing import next_piece
from ecd.errors import ProtocolError
from ecd.sampling import Guess, Rule, Sampling
from ecd.wire.messages import Draft, Finish, HintWeights, Open, Origin, Tokens


class Phase(Enum):
    """WAITING for a connection, STREAMING from the cloud, FINISHED."""

    WAITING = auto()
    STREAMING = auto()
    FINISHED = auto()


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for, as token ids and settings.

    `ahead`: how far to draft beyond the committed text, 0: not. `patience_us` as in OPEN; `hint_tokens`:
    hints gathered into one frame before it is sent.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    ahead: int = 16
    patience_us: int = 0
    hint_tokens: int = 1


@dataclass(frozen=True, slots=True)
class Send:
    """A frame for the cloud."""

    message: Open | Draft


@dataclass(frozen=True, slots=True)
class Emit:
    """Newly committed tokens and who chose each of them."""

    ids: tuple[int, ...]
    origins: tuple[Origin, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete."""

    reason: Finish


Command = Send | Emit | Finished


@dataclass(slots=True)
class Tally:
    """What the answer took."""

    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    forwards: int = 0
    forwards_without_hints: int = 0
    resumed: int = 0
    step_us: int = 0


@dataclass(slots=True)
class Generation:
    """State of one answer.

    The drafter evaluated the first `_evaluated` tokens of committed + guesses. While a task runs, `_fork` is
    the first position at which its context has turned out wrong since.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    guesses: list[Guess] = field(default_factory=list)
    phase: Phase = Phase.WAITING
    stream: int = 0
    slot: int | None = None
    tally: Tally = field(default_factory=Tally)
    _ahead: int = 0
    _unsent: int = 0
    _evaluated: int = 0
    _fork: int | None = None
    _running: bool = False

    def __post_init__(self) -> None:
        self.tokens.extend(self.request.prompt)
        self._ahead = self.request.ahead

    @property
    def committed(self) -> tuple[int, ...]:
        """The answer's tokens so far."""
        return tuple(self.tokens[len(self.request.prompt) :])

    # -- the link

    def open(self, stream: int, max_ahead: int) -> list[Command]:
        """`stream` on a new connection is this generation's: starts, or goes on from what is committed.

        `max_ahead` is how far the cloud takes hints.
        """
        self.tally.resumed += self.stream != 0
        self._ahead = min(self.request.ahead, max_ahead)
        del self.guesses[self._ahead :]
        self._evaluated = min(self._evaluated, len(self.tokens) + len(self.guesses))
        self.phase, self.stream = Phase.STREAMING, stream
        request = self.request
        commands: list[Command] = [
            Send(
                Open(
                    stream,
                    None,
                    0,
                    request.prompt,
                    self.committed,
                    request.sampling.to_map(),
                    request.max_tokens,
                    request.stop,
                    request.patience_us if self.slot is not None else 0,
                )
            )
        ]
        # What was guessed before still holds; this cloud has not seen it.
        self._unsent = len(self.guesses)
        return commands + self._send_hints(flush=True)

    def lost(self) -> None:
        """The stream is gone, nothing else is."""
        if self.phase is Phase.STREAMING:
            self.phase = Phase.WAITING

    def receive(self, message: Tokens) -> list[Command]:
        """Committed tokens. Raises ProtocolError when they do not continue what is committed."""
        if self.phase is not Phase.STREAMING or message.stream != self.stream:
            return []
        if message.base != len(self.tokens) or not message.ids or message.accepted > len(message.ids):
            raise ProtocolError(
                f"TOKENS at {message.base} with {len(message.ids)} ids do not follow {len(self.tokens)}"
            )
        origins = tuple(
            Origin.DRAFT_ACCEPTED if index < message.accepted else Origin.TARGET
            for index in range(len(message.ids))
        )
        for token in message.ids:
            self._settle(token)
        self.origins.extend(origins)
        tally = self.tally
        tally.forwards += 1
        tally.forwards_without_hints += not message.verified
        tally.verified += message.verified
        tally.accepted += message.accepted
        tally.step_us = message.step_us
        commands: list[Command] = [Emit(message.ids, origins)]
        if message.finish is not Finish.NONE:
            self.phase = Phase.FINISHED
            commands.append(Finished(message.finish))
        return commands

    def _settle(self, token: int) -> None:
        """Appends a committed token; guesses that foretold something else are worth nothing from there on."""
        position = len(self.tokens)
        self.tokens.append(token)
        if self.guesses and self.guesses[0].token == token:
            self.guesses.pop(0)
            self._unsent = min(self._unsent, len(self.guesses))
            return
        if self.guesses or self._running:
            self.guesses.clear()
            self._unsent = 0
            self._fork = position if self._fork is None else min(self._fork, position)
        self._evaluated = min(self._evaluated, position)

    # -- the drafter

    def next_task(self, *, may_read: bool) -> DraftTask | None:
        """What the drafter should do now; None for nothing, or if it is a piece of the prompt and not
        `may_read`.
        """
        request = self.request
        room = min(self._ahead, self._remaining - 1) - len(self.guesses)
        if self.slot is None or self._running or self.phase is Phase.FINISHED or room <= 0:
            return None
        context = [*self.tokens, *(guess.token for guess in self.guesses)]
        # The token before the guess is always evaluated anew when nothing else is: its logits were not kept.
        evaluated = min(self._evaluated, len(context) - 1)
        keep, end = next_piece(evaluated, len(request.prompt), len(context))
        if keep < len(request.prompt) and not may_read:
            return None
        self._running, self._fork = True, None
        tokens, wants = context[keep:end], end == len(context)
        return DraftTask(self.slot, keep, tokens, context, len(request.prompt), request.sampling, wants)

    def drafted(self, task: DraftTask, guess: Guess | None) -> list[Command]:
        """The drafter did the task; its guess may have been overtaken."""
        self._running = False
        evaluated = task.keep + len(task.tokens)
        self._evaluated = evaluated if self._fork is None else min(evaluated, self._fork)
        fresh = self._fork is None and len(task.context) == len(self.tokens) + len(self.guesses)
        if guess is None or not fresh or self.slot is None or self.phase is Phase.FINISHED:
            return []
        self.tally.drafted += 1
        self.guesses.append(guess)
        self._unsent += 1
        return self._send_hints(flush=len(self.guesses) >= min(self._ahead, self._remaining - 1))

    def stop_drafting(self) -> list[Command]:
        """There will be no more guesses: the cloud must not wait for any."""
        self.slot = None
        self._running = False
        self.guesses.clear()
        self._unsent = 0
        if self.phase is not Phase.STREAMING:
            return []
        return [Send(Draft(self.stream, len(self.tokens), len(self.tokens), ()))]

    @property
    def _remaining(self) -> int:
        return len(self.request.prompt) + self.request.max_tokens - len(self.tokens)

    def _send_hints(self, *, flush: bool) -> list[Command]:
        if self.phase is not Phase.STREAMING or not self._unsent:
            return []
        if self._unsent < self.request.hint_tokens and not flush:
            return []
        hints = self.guesses[-self._unsent :]
        base = len(self.tokens) + len(self.guesses) - self._unsent
        self._unsent = 0
        q = None
        if self.request.sampling.rule is Rule.REJECTION:
            q = tuple(HintWeights(h.q.ids, bytes(h.q.weights)) for h in hints if h.q is not None)
        return [Send(Draft(self.stream, len(self.tokens), base, tuple(h.token for h in hints), q))]
