"""Both ends of a connection with what stands behind them in the daemons, for a peer that says anything."""

from collections.abc import Iterable

from ecd.cloud.board import MAX_ALTERNATES
from ecd.cloud.session import Session, Vocabulary
from ecd.edge.acceptance import Acceptance
from ecd.edge.commands import Command, Emit, Finished, Send
from ecd.edge.generation import Generation, Phase
from ecd.edge.meter import Meter
from ecd.edge.pacing import Objective, Pacer
from ecd.edge.request import Request
from ecd.edge.survival import EDGE_MEMORY, Survival
from ecd.errors import EcdError, ProtocolError
from ecd.sampling import Guess, Sampling, Verdict
from ecd.wire.connection import (
    FEATURES,
    MAJOR,
    MINOR,
    Connected,
    Connection,
    Event,
    Received,
    Role,
    Settings,
    State,
)
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.frames import encode_frame, id_width
from ecd.wire.messages import Draft, Finish, Hello, Open, Reset, Tokens, Welcome, to_fields

N_VOCAB = 1000
WIDTH = id_width(N_VOCAB)
FINGERPRINT = Fingerprint(N_VOCAB, "aa", {"bos": 1, "end_of_generation": [7]}, "bpe", "bb cc")
LIMITS = {"max_streams": 4, "max_ahead": 8, "max_context": 64}
EDGE = Settings(Role.EDGE, "edge", FINGERPRINT)
CLOUD = Settings(Role.CLOUD, "cloud", FINGERPRINT, limits=LIMITS, model={"name": "big"})
VOCABULARY = Vocabulary(N_VOCAB, frozenset({7}), lambda token: b"%d " % token)
PROMPT, MAX_TOKENS = (1, 2, 3), 12

_HELLO = Hello(0, MAJOR, MINOR, FEATURES, None, {}, FINGERPRINT.to_map(), "fuzz")
_WELCOME = Welcome(0, MAJOR, MINOR, FEATURES, LIMITS, FINGERPRINT.to_map(), {"name": "big"}, "fuzz")


def greeting(role: Role) -> bytes:
    """What an end of this role waits for first."""
    return encode_frame(to_fields(_HELLO if role is Role.CLOUD else _WELCOME, WIDTH))


class EdgeEnd:
    """Two answers, one with logprobs, that go by whatever comes; `events` are its own doing."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.events: list[Event] = []
        self._answers: dict[int, Generation] = {}
        self._meter, self._survival = Meter(), Survival(EDGE_MEMORY)
        self._meter.drafted(0.005)
        self._told: dict[int, list[int]] = {}

    def take(self, events: Iterable[Event], now: float) -> None:
        for event in events:
            match event:
                case Connected():
                    self._open(None, now)
                    self._open(2, now)
                case Received(message=Tokens() as message):
                    self._tokens(message, now)
                case Received(message=Reset(stream=stream)):
                    self._answers[stream].lost()

    def _open(self, logprobs: int | None, now: float) -> None:
        request = Request(PROMPT, Sampling(), MAX_TOKENS, logprobs=logprobs)
        g = Generation(request, Acceptance(), Pacer(Objective.BALANCED, self._survival))
        g.slot = 0
        stream = self.connection.new_stream()
        self._answers[stream], self._told[stream] = g, []
        self._perform(stream, g.open(stream, 8, alternates=True, conditions=None, now=now))
        self._draft(stream, now)

    def _tokens(self, message: Tokens, now: float) -> None:
        g = self._answers[message.stream]
        tops = (token for each in message.logprobs or () for token, _ in each.top)
        try:
            if max((*message.ids, *tops), default=0) >= N_VOCAB:
                raise ProtocolError("an id that is not in the vocabulary")
            if g.origins:
                self._meter.stepped(message.step_us / 1e6, message.verified)
            self._meter.told(self.connection.peer_load)
            self._meter.rtt_s, self._meter.jitter_s = 0.05, self.connection.rtt.variation_s
            self._perform(message.stream, g.receive(message, now))
            self._perform(message.stream, g.steer(self._meter.conditions, now))
        except ProtocolError as e:
            self.events += self.connection.close(e.code, str(e))
            return
        self._draft(message.stream, now)

    def _draft(self, stream: int, now: float) -> None:
        g = self._answers[stream]
        tasks = g.next_tasks(3)
        guesses = [(Guess(len(task.context) % 9, 0.9, second=len(task.context) % 5),) for task in tasks]
        if tasks:
            self._perform(stream, g.drafted(tasks, guesses, now))

    def _perform(self, stream: int, commands: Iterable[Command]) -> None:
        for command in commands:
            match command:
                case Send(message):
                    self.connection.send(message)
                case Emit(ids):
                    self._told[stream].extend(ids)
                case Finished():
                    assert self._answers[stream].phase is Phase.FINISHED

    def check(self) -> None:
        for stream, g in self._answers.items():
            assert list(g.committed) == self._told[stream]
            assert len(g.committed) == len(g.origins) <= MAX_TOKENS
            assert g.ahead <= 8


class CloudEnd:
    """Sessions that take whatever OPEN and DRAFT come; each DRAFT is followed by a token. `events`: none."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.events: list[Event] = []
        self._sessions: dict[int, Session] = {}

    def take(self, events: Iterable[Event], now: float) -> None:
        for event in events:
            match event:
                case Received(message=Open() as message):
                    self._open(message, now)
                case Received(message=Draft() as message) if message.stream in self._sessions:
                    self._draft(message, now)
                case Received(message=Reset(stream=stream)):
                    self._sessions.pop(stream, None)

    def _open(self, message: Open, now: float) -> None:
        try:
            session = Session.of(message, VOCABULARY, LIMITS["max_ahead"], now)
        except EcdError as e:
            self.connection.send(Reset(message.stream, e.code, str(e)))
            return
        self._sessions[message.stream] = session

    def _draft(self, message: Draft, now: float) -> None:
        session = self._sessions[message.stream]
        session.hint(message)
        self._check(session)
        session.ready_at()
        hints = session.turn_to(len(session.hinted(4).chances))[1]
        token = hints[0].token if hints and message.base % 2 else message.seen % N_VOCAB
        right = bool(hints) and hints[0].token == token
        ids = (token, 8) if right else (token,)
        done = session.commit(Verdict(ids, int(right)), len(hints), now)
        tokens = Tokens(message.stream, done.base, done.ids, done.accepted, done.verified, 1, done.finish)
        self.connection.send(tokens)
        if done.finish is not Finish.NONE:
            del self._sessions[message.stream]
        else:
            self._check(session)

    def check(self) -> None:
        if self.connection.state is not State.CLOSED:
            assert self.connection.streams == self._sessions.keys()
            assert len(self._sessions) <= LIMITS["max_streams"]

    def _check(self, session: Session) -> None:
        board = session.board
        assert board.length == len(session.tokens)
        assert len(board.line) <= LIMITS["max_ahead"]
        assert len(board.alternates) <= MAX_ALTERNATES
        for (position, first), branch in board.alternates.items():
            assert board.length <= position <= board.length + len(board.line)
            assert branch[0].token == first
            assert len(branch) <= LIMITS["max_ahead"] + 1
        assert all(0 <= hint.token < N_VOCAB for hint in board.line)
