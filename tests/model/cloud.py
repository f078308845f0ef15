"""A cloud in virtual time: as `CloudService`, with its real state machines and without asyncio."""

import itertools

import numpy as np

from ecd.cloud.batcher import Batcher
from ecd.cloud.session import Committed, Session
from ecd.cloud.verifier import Capacity, Judged, StepResult, Work
from ecd.errors import EcdError, EngineLost
from ecd.sampling import verify
from ecd.wire.connection import Closed, Connection, Event, Received, Role, Settings
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.messages import Draft, Finish, Message, Open, Reset, Tokens
from tests.model.wire import Wire
from tests.toy import SIZE, VOCABULARY, target_logits

FINGERPRINT = Fingerprint(SIZE, "toy", {"end_of_generation": [SIZE - 1]}, "toy", "toy")
SESSIONS, QUEUE, STREAMS, CONTEXT = 2, 2, 4, 64
# What a step of an engine that is left alone takes, and each hint in it.
STEP_S, HINT_S = 0.02, 0.0004


class Cloud:
    """As `CloudService`, without asyncio: connections, sessions, one step at a time."""

    def __init__(self, max_ahead: int, max_verify: int) -> None:
        limits = {"max_streams": STREAMS, "max_ahead": max_ahead, "max_context": CONTEXT}
        self.settings = Settings(Role.CLOUD, "cloud", FINGERPRINT, limits=limits)
        self.max_ahead = max_ahead
        self.batcher = Batcher(Capacity(SESSIONS, CONTEXT), max_verify, QUEUE)
        self.by_address: dict[tuple[Wire, int], int] = {}
        self.by_key: dict[int, tuple[Wire, int]] = {}
        self.wires: list[Wire] = []
        self.draining = False
        self._keys = itertools.count(1)
        self._step: tuple[float, list[tuple[Work, list[int]]]] | None = None

    def accept(self, now: float) -> Connection:
        connection = Connection(self.settings, now)
        connection.load = self.batcher.load
        if self.draining:
            connection.drain("draining")
        return connection

    def drain(self) -> None:
        self.draining = True
        for wire in self.wires:
            wire.cloud.connection.drain("draining")

    def on_event(self, wire: Wire, event: Event, now: float) -> None:
        match event:
            case Received(message=Open() as message):
                self._open(wire, message, now)
            case Received(message=Draft() as message):
                session = self.batcher.get(self.by_address.get((wire, message.stream), 0))
                if session is not None:
                    session.hint(message)
            case Received(message=Reset(stream=stream)):
                self._forget(self.by_address.get((wire, stream)))
            case Closed():
                for key in [key for key, (owner, _) in self.by_key.items() if owner is wire]:
                    self._forget(key)

    def _open(self, wire: Wire, message: Open, now: float) -> None:
        try:
            self.batcher.check_fits(len(message.prompt), message.max_tokens)
            session = Session.of(message, VOCABULARY, self.max_ahead, now)
            key = next(self._keys)
            self.batcher.add(key, session)
        except EcdError as e:
            wire.cloud.connection.send(Reset(message.stream, e.code, str(e)))
            return
        self.by_address[wire, message.stream] = key
        self.by_key[key] = (wire, message.stream)

    def _forget(self, key: int | None) -> None:
        if key is not None:
            del self.by_address[self.by_key.pop(key)]
            self.batcher.remove(key)

    def begin_step(self, now: float) -> bool:
        """Whether a step begins."""
        if self._step is None and (work := self.batcher.plan(now)):
            # What the session commits meanwhile is not in the engine's batch.
            self._step = now, [(item, list(item.tokens)) for item in work]
            return True
        return False

    @property
    def step_due(self) -> float | None:
        """When the step under way would be done; None for none."""
        if self._step is None:
            return None
        start, work = self._step
        return start + STEP_S + HINT_S * sum(len(item.hints) for item, _ in work)

    def end_step(self, now: float, *, lost: bool = False) -> bool:
        """The step is done, or its engine `lost`; whether there was one."""
        if self._step is None:
            return False
        (start, work), self._step = self._step, None
        judged: dict[int, Judged] = {}
        for item, context in work:
            line = [hint.token for hint in item.hints]
            rows = np.stack([target_logits([*context, *line[:n]]) for n in range(len(line) + 1)])
            judged[item.key] = Judged(
                verify(rows, item.hints, item.sampling, context, item.prompt_len), len(line)
            )
        result = StepResult(judged, {}, sum(1 + each.verified for each in judged.values()), len(judged))
        if lost:
            result = StepResult(failed={key: EngineLost("the engine was lost") for key in judged})
        step_s = max(1e-3, now - start)
        for key, outcome in self.batcher.apply(result, step_s, now):
            wire, stream = self.by_key[key]
            wire.cloud.connection.send(_told(stream, outcome, step_s))
            if isinstance(outcome, EcdError) or outcome.finish is not Finish.NONE:
                self._forget(key)
        return True

    def check(self) -> None:
        """What holds at every moment."""
        batcher = self.batcher
        assert len(batcher.running) <= SESSIONS
        assert len(batcher.queue) <= QUEUE
        assert batcher.running.keys() | batcher.queue.keys() == self.by_key.keys()
        for wire in self.wires:
            connection = wire.cloud.connection
            mine = {stream for owner, stream in self.by_address if owner is wire}
            assert connection.streams == mine
            assert len(mine) <= STREAMS
        for key in self.by_key:
            session = batcher.get(key)
            assert session is not None
            board = session.board
            assert board.length == len(session.tokens)
            assert len(board.line) <= self.max_ahead
            assert len(board.alternates) <= 8
            assert all(board.length <= at <= board.length + len(board.line) for at, _ in board.alternates)


def _told(stream: int, outcome: Committed | EcdError, step_s: float) -> Message:
    if isinstance(outcome, EcdError):
        return Reset(stream, outcome.code, str(outcome))
    return Tokens(
        stream,
        outcome.base,
        outcome.ids,
        outcome.accepted,
        outcome.verified,
        int(step_s * 1e6),
        outcome.finish,
    )
