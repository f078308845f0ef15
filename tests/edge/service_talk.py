"""A service with one answer that runs, and what comes of it; with one cloud, and with two."""

from typing import Any

from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Chunk
from ecd.edge.meter import Meter
from ecd.edge.request import Request
from ecd.edge.service import EdgeService
from ecd.edge.uplinks import Place
from ecd.errors import Code
from ecd.logprobs import TokenLogprobs
from ecd.sampling import Sampling
from ecd.wire.connection import Received
from ecd.wire.messages import Finish, Open, Reset, Tokens
from tests.edge.one_cloud import MadeUpLink, NoDrafter, attach, connect

PROMPT = (90, 91)
# Bytes 0 to 255, and nothing else.
SIZE = 256


def told(token: int) -> TokenLogprobs:
    return TokenLogprobs(-token / 64, ((token, -token / 64),))


def service_of_bytes() -> EdgeService:
    return EdgeService(
        NoDrafter(),
        Acceptance(),
        Meter(),
        n_vocab=SIZE,
        piece=lambda token: bytes([token]),
        link_wait_s=9,
    )


class Talk:
    """A service with one answer that runs, and what comes of it."""

    def __init__(
        self, prompt: tuple[int, ...] = PROMPT, features: tuple[str, ...] = (), **asked: Any
    ) -> None:
        self.wire = MadeUpLink(features=features)
        self.service = service_of_bytes()
        self.uplinks = attach(self.service)
        (self.uplink,) = self.uplinks
        connect(self.uplinks, self.uplink, self.wire)
        self.answer = self.service.start(Request(prompt, Sampling(), 20, **asked))

    @property
    def opened(self) -> Open:
        """The OPEN that was sent last."""
        return [message for message in self.wire.sent if isinstance(message, Open)][-1]

    def ask(self, prompt: tuple[int, ...], **asked: Any) -> Open:
        """Another answer takes the place of the one that was looked at; what was sent for it."""
        self.answer = self.service.start(Request(prompt, Sampling(), 20, **asked))
        return self.opened

    def finish(self, ids: bytes) -> None:
        """The answer is told and over."""
        stream, base = self.answer.generation.stream, len(self.answer.generation.tokens)
        self.receive(Tokens(stream, base, tuple(ids), 0, 0, 900, Finish.STOP))

    def reset(self, code: Code) -> None:
        self.receive(Reset(self.answer.generation.stream, code, "gone"))

    def tokens(self, ids: bytes, finish: Finish = Finish.NONE, **changes: Any) -> None:
        logprobs = tuple(told(token) for token in ids)
        base = len(self.answer.generation.tokens)
        given: dict[str, Any] = {"step_us": 900, "finish": finish, "logprobs": logprobs} | changes
        self.receive(Tokens(1, base, tuple(ids), 0, 0, **given))

    def receive(self, message: Any) -> None:
        self.service.on_event(self.uplink, Received(message, 30))

    def chunk(self) -> Chunk:
        chunk = self.answer.chunks.get_nowait()
        assert isinstance(chunk, Chunk)
        return chunk


class TwoClouds(Talk):
    """The answer runs at `here`; there is another cloud."""

    def __init__(self, prompt: tuple[int, ...] = PROMPT) -> None:
        self.service = service_of_bytes()
        self.uplinks = attach(self.service, Place("here", 1), Place("there", 1))
        self.here, self.there = self.uplinks
        self.links = {uplink: MadeUpLink() for uplink in self.uplinks}
        for uplink in self.uplinks:
            connect(self.uplinks, uplink, self.links[uplink])
        self.answer = self.service.start(Request(prompt, Sampling(), 20))
        if self.answer.cloud is self.there:
            self.here, self.there = self.there, self.here
        self.uplink, self.wire = self.here, self.links[self.here]

    def now_there(self) -> Open:
        """The answer was opened at the other cloud; from now on that is where tokens come from."""
        assert self.answer.cloud is self.there
        (opening,) = self.links[self.there].sent
        assert isinstance(opening, Open)
        self.uplink = self.there
        return opening
