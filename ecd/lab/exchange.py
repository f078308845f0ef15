"""Edge and cloud together in virtual time: the real state machines of both, any pair of models, any link.

Owns the events between the two ends and when they happen. Pure but for the models that it is given: no clock,
no socket, and whatever it waits for takes no time here.
"""

import heapq
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from ecd.cloud.batcher import Batcher
from ecd.cloud.depth import Depth
from ecd.cloud.session import Audited, Committed, Session, Vocabulary
from ecd.cloud.verifier import Capacity, StepResult, Work
from ecd.edge.acceptance import Acceptance
from ecd.edge.commands import Command, Emit, Finished, Send
from ecd.edge.drafter import DraftTask
from ecd.edge.generation import Generation, Phase
from ecd.edge.meter import Meter
from ecd.edge.pacing import Pacer
from ecd.edge.request import Mode, Request
from ecd.edge.survival import EDGE_MEMORY, Survival
from ecd.edge.threshold import Thresholds
from ecd.edge.turns import Turns
from ecd.logprobs import TokenLogprobs
from ecd.sampling import Guess
from ecd.wire.messages import Audit, Commit, Draft, Finish, Message, Open, Reset, Tokens

# Lines that a forward of the draft model may have.
BRANCHES = 3
# Events for each token of the longest answer, by which any answer has come to its end.
MOST_EVENTS = 300
SESSION_TOKENS = 10_000


class Drafts(Protocol):
    """What is needed of a `Drafter`. How long a forward takes is said elsewhere."""

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        """As `Drafter.draft`."""
        ...


class Steps(Protocol):
    """What is needed of a `Verifier`, likewise."""

    def step(self, work: Sequence[Work]) -> StepResult:
        """As `Verifier.step`."""
        ...


@dataclass(frozen=True)
class Circumstances:
    """What the link and the models cost in seconds, and what goes wrong.

    `slope`: what each hint adds to a step, and `line_cost` each further line to a forward of the draft, as
    shares. `jitter`: all times vary by up to this share. `cuts`: when the link is lost. `alternates`: whether
    the cloud takes them.
    """

    rtt_s: float = 0.05
    jitter: float = 0.0
    draft_s: float = 0.005
    step_s: float = 0.03
    slope: float = 0.02
    line_cost: float = 0.0
    cuts: tuple[float, ...] = ()
    max_ahead: int = 64
    max_verify: int = 16
    alternates: bool = True
    seed: int = 0


@dataclass
class Exchange:
    """One answer from its opening to its end, the first of its edge unless it is given what was learned.

    `meter`, `acceptance`, `survival`: what the edge has measured. `depth`: what the cloud has learned
    of its steps. `tokens_at` are the times at which its tokens came.
    """

    request: Request
    around: Circumstances
    drafter: Drafts
    verifier: Steps
    vocabulary: Vocabulary
    meter: Meter = field(default_factory=Meter)
    thresholds: Thresholds = field(default_factory=Thresholds)
    acceptance: Acceptance = field(default_factory=Acceptance)
    survival: Survival = field(default_factory=lambda: Survival(EDGE_MEMORY))
    depth: Depth | None = None
    now: float = 0.0
    emitted: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    tokens_at: list[float] = field(default_factory=list)
    finish: Finish | None = None
    frames: int = 0
    forwards: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.around.seed)
        asked = self.request
        turns = Turns.of(asked, self.thresholds, self.vocabulary.piece, self.vocabulary.end_of_generation)
        pacer = Pacer(asked.objective, self.survival)
        self.g = Generation(asked, self.acceptance, pacer, turns if asked.mode is Mode.CONFIDENT else None)
        self.g.slot = 0 if asked.draft else None
        self.batcher = Batcher(Capacity(1, SESSION_TOKENS), self.around.max_verify, 1)
        if self.depth is not None:
            self.batcher.depth = self.depth
        self.stream = 0
        self.stepping = False
        self.alarms: set[tuple[str, float]] = set()
        self.lane = {"up": 0.0, "down": 0.0}
        self.order = itertools.count()
        self.events: list[tuple[float, int, tuple[Any, ...]]] = []

    def run(self) -> Self:
        """The whole answer. Raises AssertionError when it does not come to an end."""
        self.later(0.0, "connect")
        for cut in self.around.cuts:
            self.later(cut, "cut")
        for _ in range(MOST_EVENTS * self.request.max_tokens):
            if self.finish is not None and (
                self.g.turns is None or not self.g.turns.pending or not self.events
            ):
                return self
            self.now, _, event = heapq.heappop(self.events)
            self.happen(*event)
            self.draft()
            self.step()
            self.alarm("edge", self.g.next_timer())
        raise AssertionError("it does not come to an end")

    @property
    def decode_s(self) -> float:
        """Seconds per token from the first one on."""
        return (self.tokens_at[-1] - self.tokens_at[0]) / (len(self.tokens_at) - 1)

    def at(self, when: float, *event: Any) -> None:
        """Something happens then."""
        heapq.heappush(self.events, (when, next(self.order), event))

    def later(self, seconds: float, *event: Any) -> None:
        """Something happens so much later."""
        self.at(self.now + seconds, *event)

    def about(self, seconds: float) -> float:
        """So long, give or take the jitter."""
        return seconds * (1 + self.around.jitter * self.rng.uniform(-1, 1))

    def alarm(self, whose: str, due: float | None) -> None:
        """A timer of one of the ends, if it has one."""
        if due is not None and due < float("inf") and (whose, due) not in self.alarms:
            self.alarms.add((whose, due))
            self.at(max(self.now, due), "alarm", whose)

    def happen(self, event: str, *what: Any) -> None:
        """An event whose time has come."""
        match event:
            case "connect" if self.g.phase is Phase.WAITING:
                self.stream += 1
                self.lane = dict.fromkeys(self.lane, self.now)
                self.perform(
                    self.g.open(
                        self.stream,
                        self.around.max_ahead,
                        alternates=self.around.alternates,
                        conditions=self.meter.conditions,
                        now=self.now,
                        max_verify=self.meter.max_verify,
                    )
                )
            case "cut":
                self.g.lost()
                self.batcher.remove(self.stream)
                self.events = [e for e in self.events if e[2][0] not in self.lane]
                heapq.heapify(self.events)
                self.later(self.rng.uniform(0, 0.2), "connect")
            case "alarm" if what == ("edge",) and self.finish is None:
                self.perform(self.g.timeout(self.now))
            case "up":
                self.arrive(*what)
            case "down":
                self.take(*what)
            case "drafted":
                tasks, results, seconds = what
                # Forwards that read a prompt, or that only copied, say nothing of what a guess costs.
                if all(guesses and guesses[0].drafter == "model" for guesses in results):
                    self.meter.drafted(seconds)
                self.perform(self.g.drafted(tasks, results, self.now))
            case "stepped":
                self.stepping = False
                self.commit(*what)

    def perform(self, commands: list[Command]) -> None:
        """What the edge has decided."""
        for command in commands:
            assert self.finish is None or isinstance(command, Send)
            match command:
                case Send(message):
                    assert message.stream == self.stream
                    self.frames += 1
                    self.send("up", message)
                case Emit(ids, origins, logprobs):
                    assert len(ids) == len(origins)
                    self.emitted.extend(ids)
                    assert (logprobs is None) == (self.request.logprobs is None)
                    self.logprobs.extend(logprobs or ())
                    self.tokens_at += [self.now] * len(ids)
                case Finished(reason):
                    self.finish = reason

    def send(self, way: str, message: Message) -> None:
        """Half a round trip; nothing overtakes what was sent before."""
        self.lane[way] = max(self.lane[way], self.now + self.about(self.around.rtt_s / 2))
        self.at(self.lane[way], way, message)

    # -- the edge

    def draft(self) -> None:
        """The drafter begins what the edge wants of it now."""
        tasks = self.g.next_tasks(BRANCHES)
        if not tasks:
            return
        results = self.drafter.draft(tasks)
        asked = sum(
            task.model and not (guesses and guesses[0].drafter == "lookup")
            for task, guesses in zip(tasks, results, strict=True)
        )
        share = 1 + self.around.line_cost * (asked - 1)
        # What only copies takes no time worth speaking of.
        seconds = self.about(self.around.draft_s * share) if asked else 1e-5
        self.later(seconds, "drafted", tasks, results, seconds)

    def take(self, message: Tokens | Audit) -> None:
        """A frame has come down."""
        if isinstance(message, Audit):
            self.perform(self.g.audited(message))
            return
        if not self.g.reads:
            self.meter.stepped(message.step_us / 1e6, message.verified)
        self.meter.rtt_s, self.meter.jitter_s = self.around.rtt_s, self.around.rtt_s * self.around.jitter / 2
        self.meter.told(self.batcher.load())
        self.forwards += 1
        self.perform(self.g.receive(message, self.now))
        self.perform(self.g.steer(self.meter.conditions, self.now))

    # -- the cloud

    def arrive(self, message: Open | Draft | Commit | Reset) -> None:
        """A frame has come up."""
        known = self.batcher.get(message.stream)
        match message:
            case Open():
                assert message.prompt == self.request.prompt
                session = Session.of(message, self.vocabulary, self.around.max_ahead, self.now)
                self.batcher.add(message.stream, session)
            case Reset():
                self.batcher.remove(message.stream)
            case Commit() if known is not None:
                known.take(message)
            case Draft() if known is not None:
                known.hint(message)
                assert known.invalid_hints == 0

    def step(self) -> None:
        """The cloud's next step begins, if one may."""
        if self.stepping or not (work := self.batcher.plan(self.now)):
            self.alarm("cloud", None if self.stepping else self.batcher.next_timer())
            return
        self.stepping = True
        result = self.verifier.step(work)
        hints = sum(len(part.hints) for part in work)
        seconds = self.about(self.around.step_s * (1 + self.around.slope * hints))
        self.later(seconds, "stepped", result, seconds)

    def commit(self, result: StepResult, seconds: float) -> None:
        """A step has ended."""
        for key, done in self.batcher.apply(result, seconds, self.now):
            match done:
                case Audited():
                    self.send("down", Audit(key, done.base, bytes(done.agreed), done.forwards))
                case Committed():
                    if done.finish is not Finish.NONE:
                        self.batcher.remove(key)
                    told = done.base, done.ids, done.accepted, done.verified, int(seconds * 1e6)
                    self.send("down", Tokens(key, *told, done.finish, done.logprobs))
                case error:
                    raise error
