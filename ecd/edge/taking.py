"""Hand-over, the end that takes: answers that other edges began go on here.

Owns the links from other edges and what is told on them. To those edges this one is what a cloud is to an
edge: OPEN brings the text so far, TOKENS go back. The draft model's pages are asked for on the same stream.
"""

import asyncio
import contextlib
import hmac
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from time import monotonic

from ecd.addresses import split_address
from ecd.config import EdgeConfig
from ecd.control import peer_uid, refusal_of
from ecd.edge.answer import Answer, Chunk
from ecd.edge.handing import socket_of
from ecd.edge.request import Request
from ecd.edge.run_args import AnswerSettings, patience_us
from ecd.edge.service import EdgeService
from ecd.errors import AuthError, BadRequest, Code, DaemonError, EcdError, UnknownPrefix
from ecd.logprobs import check_top
from ecd.logs import LimitedLog
from ecd.sampling import Sampling
from ecd.text import check_stop
from ecd.wire.connection import Closed, Connected, Connection, Event, Received, Settings
from ecd.wire.link import Link
from ecd.wire.messages import Credit, Finish, Kv, Open, Origin, Reset, Tokens

log = logging.getLogger(__name__)

# Connections over TCP, and lines about those that are too many.
MOST_LINKS = 64
LINES_PER_S = 1.0
ACCEPTED = Origin.DRAFT_ACCEPTED.label


class _Full(asyncio.Protocol):
    """In the place of a link that there is no room for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class Taking:
    """`settings`: of the links, in the role of a cloud. `pace`: how the answers are paced here."""

    def __init__(self, service: EdgeService, settings: Settings, pace: AnswerSettings):
        self._service = service
        self._settings = settings
        self._pace = pace
        self._answers: dict[tuple[Link, int], Answer] = {}
        self._relays: set[asyncio.Task[None]] = set()
        self._from_afar: set[Link] = set()
        self._lines = LimitedLog(log, "hand-overs that were refused", LINES_PER_S)

    def protocol(self) -> Link:
        """The asyncio protocol of one accepted connection."""
        return Link(Connection(self._settings, monotonic()), self._on_event)

    def from_afar(self) -> asyncio.BaseProtocol:
        """Likewise over TCP, where anybody may knock: at most MOST_LINKS of them."""
        if len(self._from_afar) >= MOST_LINKS:
            self._lines.write(logging.WARNING, "a hand-over was refused: there are %d links", MOST_LINKS)
            return _Full()
        link = self.protocol()
        self._from_afar.add(link)
        return link

    def _on_event(self, link: Link, event: Event) -> None:
        match event:
            case Connected():
                _check_user(link)
            case Received(message=Open() as opening):
                self._take(link, opening)
            case Received(message=message):
                answer = self._answers.get((link, message.stream))
                if answer is None:
                    return
                match message:
                    case Kv() | Credit():
                        self._service.receiving.on_pages(answer, message)
                    case Reset():
                        self._cancel(answer)
                    case _:
                        log.debug("ignored %s", type(message).__name__, extra=answer.about)
            case Closed():
                self._from_afar.discard(link)
                for address in [address for address in self._answers if address[0] is link]:
                    self._cancel(self._answers[address])
            case _:
                pass

    def _take(self, link: Link, opening: Open) -> None:
        try:
            answer = self._service.start(request_of(opening, self._pace))
        except EcdError as e:
            link.send(Reset(opening.stream, e.code, str(e)))
            return
        log.info("was handed over by %s", link.peername, extra=answer.about)
        self._answers[link, opening.stream] = answer
        self._service.assisting.adopt(answer, link, opening.stream)
        relay = asyncio.create_task(self._relay(answer, link, opening.stream))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, answer: Answer, link: Link, stream: int) -> None:
        """Tells the other edge what is committed, as a cloud would."""
        base, finish = len(answer.generation.tokens), Finish.NONE
        outcome: EcdError | None = None
        while finish is Finish.NONE and outcome is None:
            arrivals = [await answer.chunks.get()]
            while not answer.chunks.empty():
                arrivals.append(answer.chunks.get_nowait())
            if isinstance(arrivals[-1], Finish):
                finish = arrivals.pop()  # type: ignore[assignment]
            elif isinstance(arrivals[-1], EcdError):
                outcome = arrivals.pop()  # type: ignore[assignment]
            chunks = [chunk for chunk in arrivals if isinstance(chunk, Chunk)]
            for number, chunk in enumerate(chunks, 1):
                last = finish if number == len(chunks) else Finish.NONE
                link.send(_tokens(stream, base, chunk, answer.generation.tally.step_us, last))
                base += len(chunk.ids)
        del self._answers[link, stream]
        if outcome is not None:
            link.send(Reset(stream, outcome.code, str(outcome)))

    def _cancel(self, answer: Answer) -> None:
        if answer.id in self._service.answers:
            self._service.cancel(answer.id)


def request_of(opening: Open, pace: AnswerSettings) -> Request:
    """What another edge asks for. Raises BadRequest for what cannot be done as asked."""
    if opening.prefix_len:
        raise UnknownPrefix("an edge keeps no prompt prefixes of others; send the whole prompt")
    if opening.limit is not None:
        raise BadRequest("an edge does not go on with answers that another edge commits to")
    if not opening.prompt:
        raise BadRequest("the prompt is empty")
    if len(opening.committed) >= opening.max_tokens:
        raise BadRequest(
            f"max_tokens {opening.max_tokens} leaves nothing to do after {len(opening.committed)} tokens"
        )
    check_stop(opening.stop)
    check_top(opening.logprobs)
    return Request(
        prompt=opening.prompt,
        sampling=Sampling.from_map(opening.sampling),
        max_tokens=opening.max_tokens,
        stop=opening.stop,
        objective=pace.objective,
        ahead=pace.ahead_tokens,
        patience_us=patience_us(pace.patience_ms),
        hint_tokens=pace.hint_tokens,
        logprobs=opening.logprobs,
        fresh=bool(opening.fresh),
        committed=opening.committed,
    )


def _check_user(link: Link) -> None:
    """Ends a link over the Unix socket from another user, whatever the mode of the file has become."""
    sock = link.peer_socket()
    if sock is None or sock.family != socket.AF_UNIX:
        return
    refusal = refusal_of(peer_uid(sock), os.geteuid())
    if refusal is not None:
        log.warning("hand-over refused: %s", refusal)
        link.close(Code.AUTH, refusal)


def showing(token: str | None) -> Callable[[bytes | None], str]:
    """As `identify` of `Settings`: lets in whoever shows this edge's own token; None: everybody."""

    def identify(shown: bytes | None) -> str:
        if token is not None and not hmac.compare_digest(shown or b"", token.encode()):
            raise AuthError("this edge takes over from edges with its own `token`; set the same at both")
        return ""

    return identify


@contextlib.asynccontextmanager
async def handover(config: EdgeConfig, taking: Taking) -> AsyncIterator[int | None]:
    """Takes answers over while the context lasts: beside the control socket, which must be this daemon's, and
    at the address of the settings. Gives that one's port. Raises DaemonError.
    """
    loop, path = asyncio.get_running_loop(), socket_of(str(config.socket))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    old_mask = os.umask(0o177)
    try:
        servers = [await loop.create_unix_server(taking.protocol, path)]
    except OSError as e:
        raise DaemonError(f"cannot listen on {path}: {e.strerror}; choose another --socket") from None
    finally:
        os.umask(old_mask)
    try:
        if config.handover is not None:
            try:
                servers.append(await loop.create_server(taking.from_afar, *split_address(config.handover)))
            except OSError as e:
                raise DaemonError(
                    f"cannot listen on {config.handover}: {e.strerror}; choose another `handover`"
                ) from None
        yield servers[1].sockets[0].getsockname()[1] if config.handover else None
    finally:
        for server in servers:
            server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _tokens(stream: int, base: int, chunk: Chunk, step_us: int, finish: Finish) -> Tokens:
    accepted = sum(origin == ACCEPTED for origin in chunk.origins)
    return Tokens(stream, base, chunk.ids, accepted, accepted, step_us, finish, chunk.logprobs)
