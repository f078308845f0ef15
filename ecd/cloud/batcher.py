"""Which sessions are in, and which of them take part in the next step.

Pure: admission, patience, failures. Time is passed in; how many hints a step takes is decided in `depth`,
what it computes is the verifier's business.
"""

import math
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Any

from ecd.cloud.depth import Depth
from ecd.cloud.session import Audited, Committed, Session
from ecd.cloud.verifier import Capacity, StepResult, Work
from ecd.errors import ContextOverflow, EcdError, Overloaded


@dataclass(slots=True)
class Totals:
    """Counters since start, as `stats` shows them."""

    steps: int = 0
    forwards: int = 0
    forwards_without_hints: int = 0
    committed: int = 0
    verified: int = 0
    accepted: int = 0
    batch_tokens: int = 0
    batch_sessions: int = 0
    sessions: int = 0
    failed: int = 0
    audited: int = 0
    agreed: int = 0
    dropped_hints: int = 0
    invalid_hints: int = 0
    alternates_used: int = 0


@dataclass(slots=True)
class Batcher:
    """All sessions of one engine, by key, oldest first: running, queued, or parked.

    One is parked when it is its edge's turn and another waits for its place; it waits again when it is its
    own. `max_verify`: most hints verified per session and step. `max_queue`: sessions that may wait for room.
    """

    capacity: Capacity
    max_verify: int
    max_queue: int
    totals: Totals = field(default_factory=Totals)
    running: dict[int, Session] = field(default_factory=dict)
    queue: OrderedDict[int, Session] = field(default_factory=OrderedDict)
    parked: dict[int, Session] = field(default_factory=dict)
    depth: Depth = field(init=False)

    def __post_init__(self) -> None:
        self.depth = Depth(self.max_verify)

    def check_fits(self, prompt_len: int, max_tokens: int) -> None:
        """Raises ContextOverflow when prompt and answer can never fit a session."""
        room = self.capacity.session_tokens
        if prompt_len + max_tokens > room:
            raise ContextOverflow(
                f"{prompt_len} prompt tokens and max_tokens {max_tokens} do not fit the cloud's context of "
                f"{room}; shorten one, or raise context_tokens at the cloud"
            )

    def add(self, key: int, session: Session) -> None:
        """Lets a session in, at once or when there is room. Raises Overloaded when too many wait."""
        if len(self.running) >= self.capacity.sessions and len(self.queue) >= self.max_queue:
            raise Overloaded(f"{len(self.queue)} sessions are waiting for room already; try again later")
        self.totals.sessions += 1
        self.queue[key] = session
        self._admit()

    def get(self, key: int) -> Session | None:
        """The session, wherever it is."""
        return self.running.get(key) or self.queue.get(key) or self.parked.get(key)

    def state(self, key: int) -> str:
        """Of a session, as `sessions` shows it: `running`, `queued`, or `held` in its edge's turn."""
        session = self.running.get(key)
        if key in self.parked or (session is not None and session.idle):
            return "held"
        return "queued" if session is None else "running"

    def remove(self, key: int) -> bool:
        """Forgets a session; whether it was running, so that the verifier must forget it too."""
        session = self.running.pop(key, None)
        gone = session or self.queue.pop(key, None) or self.parked.pop(key, None)
        if gone is not None:
            self.totals.dropped_hints += gone.board.dropped
            self.totals.invalid_hints += gone.invalid_hints
            self.totals.alternates_used += gone.board.alternates_used
        self._admit()
        return session is not None

    def plan(self, now: float) -> list[Work]:
        """The next step's work: every running session that is not being patient, with hints worth verifying.

        It is to be run: the choice of hints tries something new now and then and learns from what comes out.
        """
        if not any(s.ready_at() <= now for s in self.running.values()):
            return []
        # A step that begins without them holds up those who wait a little longer than they would have waited.
        ends = now + self.depth.cost.seconds(len(self.running))
        ready = [(key, s) for key, s in self.running.items() if s.ready_at() <= ends]
        counts = self.depth.choose([s.hinted(self.max_verify if s.may_verify(now) else 0) for _, s in ready])
        work = []
        for (key, s), count in zip(ready, counts, strict=True):
            tokens, hints = s.begin(count, self.max_verify)
            tenant = "" if s.tenant is None else s.tenant.name
            work.append(Work(key, tokens, s.prompt_len, s.sampling, hints, s.logprobs, s.fresh, tenant))
        return work

    def park(self) -> list[int]:
        """Gives the places of idle sessions to those that wait; which ones the verifier is to forget.

        Between two steps, before the next is planned.
        """
        for key in [key for key, session in self.parked.items() if not session.idle]:
            self.queue[key] = self.parked.pop(key)
        self._admit()
        left: list[int] = []
        while self.queue and (idle := [key for key, session in self.running.items() if session.idle]):
            self.parked[idle[0]] = self.running.pop(idle[0])
            left.append(idle[0])
            self._admit()
        return left

    def next_timer(self) -> float | None:
        """When the first running session may go on; None when none will by itself."""
        first = min((s.ready_at() for s in self.running.values()), default=math.inf)
        return None if first == math.inf else first

    def apply(
        self, result: StepResult, step_s: float, now: float
    ) -> list[tuple[int, Committed | Audited | EcdError]]:
        """What each session of a step committed or compared, or why it ended; of those removed meanwhile only
        the forward counts. One that ended comes no more.

        `step_s`: how long the step took.
        """
        rows = [judged.verified + 1 for judged in result.judged.values()]
        # A step that read prompts, or part of which failed, does not tell what tokens and hints cost.
        if result.one_pass and rows and sum(rows) == result.batch_tokens:
            self.depth.cost.learn(result.batch_tokens, len(set(rows)), step_s)
        self.totals.steps += 1
        self.totals.batch_tokens += result.batch_tokens
        self.totals.batch_sessions += result.batch_sessions
        outcome: list[tuple[int, Committed | Audited | EcdError]] = []
        for key, judged in result.judged.items():
            self.totals.forwards += 1
            self.totals.forwards_without_hints += not judged.verified
            session = self.running.get(key)
            if session is None:
                continue
            told = session.judged(judged.verdict, judged.verified, now, judged.logprobs, judged.cached)
            for each in told:
                match each:
                    case Committed():
                        self.totals.committed += len(each.ids)
                        self.totals.verified += each.verified
                        self.totals.accepted += each.accepted
                    case Audited():
                        self.totals.audited += len(each.agreed)
                        self.totals.agreed += sum(each.agreed)
                outcome.append((key, each))
        for key, error in result.failed.items():
            if key in self.running:
                self.totals.failed += 1
                outcome.append((key, error))
        return outcome

    def load(self) -> dict[str, int | float]:
        """What a PONG tells edges: who is in, and what steps cost now; the times are 0 before any is known.

        `step_ms`: a step with one token for each running session. `token_ms`: each token more, as the mean
        over four hints for each.
        """
        sessions = max(1, len(self.running))
        cost = self.depth.cost
        step_s = cost.seconds(sessions)
        return {
            "running": len(self.running),
            "queued": len(self.queue),
            "step_ms": step_s * 1000,
            "token_ms": (cost.seconds(5 * sessions) - step_s) / (4 * sessions) * 1000,
            "max_verify": self.max_verify,
        }

    def stats(self) -> dict[str, Any]:
        """Counters since start, what follows from them, and the load."""
        totals, sessions = self.totals, max(1, len(self.running))
        cost = self.depth.cost
        return {
            **asdict(totals),
            **self.load(),
            "split_ms": (cost.seconds(sessions, 2) - cost.seconds(sessions)) * 1000,
            "mean_batch_sessions": totals.batch_sessions / totals.steps if totals.steps else 0.0,
            "mean_batch_tokens": totals.batch_tokens / totals.steps if totals.steps else 0.0,
            "acceptance_rate": totals.accepted / totals.verified if totals.verified else 0.0,
            "forwards_per_token": totals.forwards / totals.committed if totals.committed else 0.0,
            "verified_per_forward": totals.verified / totals.forwards if totals.forwards else 0.0,
        }

    def _admit(self) -> None:
        """Moves queued sessions in, in order, while there is room."""
        while self.queue and len(self.running) < self.capacity.sessions:
            key, session = self.queue.popitem(last=False)
            self.running[key] = session
