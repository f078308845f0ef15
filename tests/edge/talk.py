"""A generation and what it is told, for its tests as conversations."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ecd.edge.acceptance import Acceptance
from ecd.edge.commands import Command, Send
from ecd.edge.drafter import DraftTask
from ecd.edge.generation import Generation
from ecd.edge.pacing import Conditions, Objective, Pace, Pacer
from ecd.edge.request import Request
from ecd.edge.survival import Survival
from ecd.sampling import Guess, Sampling
from ecd.wire.messages import ENDLESS_US, Draft, Finish, Open, Tokens

PROMPT = (90, 91, 92)
GREEDY = Sampling()
# A step of 100 ms, hints that cost nothing, 1050 ms there and back: what leaves now comes between two steps.
CONDITIONS = Conditions(rtt_s=1.05, jitter_s=0.0, draft_s=0.01, step_s=0.1, token_s=0.0)
ROUNDS = {"patience_us": ENDLESS_US, "hint_tokens": 3, "ahead": 3}


@dataclass
class Scripted(Pacer):
    """Says what the test says, once there are conditions."""

    objective: Objective = Objective.BALANCED
    edge: Survival = field(default_factory=lambda: Survival(100.0))
    says: Pace = field(default_factory=lambda: Pace(16))
    places: list[tuple[int, bool]] = field(default_factory=list)

    def pace(self, conditions: Conditions | None, committed: int, max_ahead: int, unsure: Pace) -> Pace:
        return unsure if conditions is None else self.says

    def settle(self, place: int, right: bool) -> None:
        self.places.append((place, right))


class Talk:
    """Nothing is measured unless `pace` scripts the controller."""

    def __init__(self, slot: int | None = 0, pace: Pace | None = None, **changes: Any) -> None:
        request = Request(**({"prompt": PROMPT, "sampling": GREEDY, "max_tokens": 20} | changes))
        self.pacer = Scripted(request.objective, says=pace or Pace(16))
        self.conditions = None if pace is None else CONDITIONS
        self.acceptance = Acceptance()
        self.g = Generation(request, self.acceptance, self.pacer)
        self.g.slot = slot
        self.now = 0.0

    def open(self, stream: int = 1, max_ahead: int = 64, *, alternates: bool = False) -> list[Command]:
        return self.g.open(stream, max_ahead, alternates=alternates, conditions=self.conditions, now=self.now)

    def task(self) -> DraftTask:
        (task,) = self.g.next_tasks(1)
        return task

    def done(self, task: DraftTask, *guesses: Guess) -> list[Command]:
        return self.g.drafted([task], [guesses], self.now)

    def draft(self, *tokens: int, **told: Any) -> list[Command]:
        """One task for each token."""
        return [
            command
            for token in tokens
            for command in self.done(self.task(), Guess(token, **({"confidence": 0.9} | told)))
        ]

    def commit(
        self, *ids: int, accepted: int = 0, finish: Finish = Finish.NONE, **changes: Any
    ) -> list[Command]:
        message = Tokens(self.g.stream, len(self.g.tokens), ids, accepted, accepted, 900, finish)
        received = self.g.receive(replace(message, **changes), self.now)
        return [*received, *self.g.steer(self.conditions, self.now)]

    def at(self, now: float) -> "Talk":
        self.now = now
        return self

    def timer(self) -> float:
        """The time of the next timer, told what it says there."""
        due = self.g.next_timer()
        assert due is not None
        return due


def drafts(commands: Iterable[Command]) -> list[Draft]:
    return [c.message for c in commands if isinstance(c, Send) and isinstance(c.message, Draft)]


def hints(commands: Iterable[Command]) -> list[tuple[int, int, tuple[int, ...]]]:
    """(seen, base, ids) of every DRAFT."""
    return [(m.seen, m.base, m.ids) for m in drafts(commands)]


def copied(*tokens: int) -> list[Guess]:
    return [Guess(token, 0.9, "lookup") for token in tokens]


def guesses(g: Generation) -> list[int]:
    return [guess.token for guess in g.lines.main.guesses]


def opening(commands: Sequence[Command]) -> Open:
    (command,) = commands
    assert isinstance(command, Send)
    assert isinstance(command.message, Open)
    return command.message
