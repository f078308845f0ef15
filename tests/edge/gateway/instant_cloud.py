"""A gateway on a real port, whose edge has a cloud that says what the test wants, when it wants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ecd.config import Http
from ecd.edge.acceptance import Acceptance
from ecd.edge.gateway.app import Gateway
from ecd.edge.meter import Meter
from ecd.edge.run_args import AnswerSettings
from ecd.edge.service import EdgeService
from ecd.errors import Code
from ecd.http_server import http_server
from ecd.logprobs import TokenLogprobs
from ecd.wire.connection import Received
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.messages import Finish, Open, Reset, Tokens
from tests.edge.one_cloud import MadeUpLink, NoDrafter, attach, connect

END = 256
N_VOCAB = 257


class ByteModel:
    """A token is a byte; one more ends the text."""

    chat_template: str | None = "{% for each in messages %}{{ each.role }}:{{ each.content }};{% endfor %}"
    adds_bos = False
    bos, eos = -1, END
    n_vocab = N_VOCAB
    eog = frozenset({END})
    context_train = 4096

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        return list(text.encode())

    def piece(self, token: int, *, control: bool = False) -> bytes:
        if token == END:
            return b"<end>" if control else b""
        return bytes([token])

    def fingerprint(self) -> Fingerprint:
        raise AssertionError


class InstantCloud(MadeUpLink):
    """Says `text` to every prompt, a token at a time and then the end; without a text it waits for `say`."""

    def __init__(self, text: bytes | None = b"hi"):
        super().__init__()
        self.text = text
        self.opened: list[Open] = []
        self.cancelled: list[int] = []
        self.service = EdgeService(
            NoDrafter(4096),
            Acceptance(),
            Meter(),
            n_vocab=N_VOCAB,
            piece=ByteModel().piece,
            link_wait_s=9,
        )
        self.service.cloud_model = {"name": "bytes"}
        uplinks = attach(self.service)
        (self.uplink,) = uplinks
        connect(uplinks, self.uplink, self, max_context=4096)

    def certificate_expires(self) -> float | None:
        return None

    def send(self, message: Any) -> int:
        match message:
            case Open():
                self.opened.append(message)
                if self.text is not None:
                    asyncio.get_running_loop().call_soon(self._say_all, message)
            case Reset():
                self.cancelled.append(message.stream)
        return 1

    def _say_all(self, opened: Open) -> None:
        assert self.text is not None
        tokens = [*self.text, END][: opened.max_tokens]
        for index, token in enumerate(tokens):
            last = Finish.STOP if token == END else Finish.LENGTH
            self.say([token], last if index == len(tokens) - 1 else Finish.NONE, opened)

    def say(self, ids: Sequence[int], finish: Finish = Finish.NONE, opened: Open | None = None) -> None:
        """Commits tokens in the newest answer, or in that of `opened`."""
        opened = opened or self.opened[-1]
        answer = next(
            (a for a in self.service.answers.values() if a.generation.stream == opened.stream), None
        )
        if answer is None:
            return
        told = None
        if opened.logprobs is not None:
            top = ((ids[0], -0.5), (65, -1.5))[: opened.logprobs]
            told = tuple(TokenLogprobs(-0.5, top) for _ in ids)
        base = len(answer.generation.tokens)
        tokens = Tokens(opened.stream, base, tuple(ids), 0, 0, 900, finish, told)
        self.service.on_event(self.uplink, Received(tokens, 30))

    def reset(self, code: Code, message: str = "no") -> None:
        """Ends the newest answer."""
        self.service.on_event(self.uplink, Received(Reset(self.opened[-1].stream, code, message), 30))


@contextlib.asynccontextmanager
async def serving(cloud: InstantCloud, **http: Any) -> AsyncIterator[str]:
    """The gateway's URL while the context lasts."""
    config = Http(**{"listen": "127.0.0.1:0"} | http)
    gateway = Gateway(cloud.service, ByteModel(), AnswerSettings(), config, draft_model="draft")
    async with http_server(gateway.application(), config.listen, config.socket) as urls:
        yield urls[0]


async def raw(url: str, request: bytes) -> bytes:
    """All that the server answers to these bytes, until it closes."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer
