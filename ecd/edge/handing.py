"""Hand-over, the end that gives: an answer goes on at another edge, and its client is told as ever.

Owns the links to other edges, one for each answer, and the pages that they ask for. To the other edge this
one is what an edge is to its cloud; whatever happens there, the answer can be opened at its own cloud again.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from ecd.addresses import split_address
from ecd.edge.answer import Answer, OtherEdge
from ecd.edge.generation import Phase
from ecd.edge.service import EdgeService
from ecd.errors import BadRequest, EcdError, LinkError, RemoteError
from ecd.pages import RUN_TOKENS, Cells, Encoding, Shape, pack
from ecd.trust.dangers import handover_dangers, refuse
from ecd.wire.connection import Closed, Connected, Connection, Event, Received, Settings, readable
from ecd.wire.link import Link
from ecd.wire.messages import Credit, Kv, KvOp, Reset, Tokens
from ecd.wire.transfer import Run, Sending

log = logging.getLogger(__name__)

# Where an edge takes answers over unless it is told otherwise.
PORT = 7041
# An edge that has not told the next token by then does not go on with the answer.
TAKEN_S = 30.0
# Chunks that may wait for credit before the next run is made.
MOST_BACKLOG = 64


def socket_of(control: str) -> str:
    """Where the edge with this control socket takes answers over."""
    return f"{control.removesuffix('.sock')}.handover"


@dataclass(slots=True, eq=False)
class _Departure:
    """One answer on its way to `to`, or there. `taken` is done when the first token has come from there."""

    answer: Answer
    to: str
    cells: Cells | None
    connected: asyncio.Future[None]
    taken: asyncio.Future[None]
    sending: Sending | None = None
    room: asyncio.Event = field(default_factory=asyncio.Event)
    giving: asyncio.Task[None] | None = None


class Handing:
    """`settings`: of the links to other edges, which are made like links to a cloud."""

    def __init__(self, service: EdgeService, settings: Settings, *, insecure: bool):
        self._service = service
        self._settings = settings
        self._insecure = insecure

    async def migrate(self, answer_id: int, to: str) -> dict[str, Any]:
        """Moves a running answer to the edge at `to`, a control socket's path or HOST[:PORT].

        Returns once that edge goes on with it. Raises BadRequest for an answer or a place that there is none
        of, LinkError or RemoteError when the other edge does not take it; the answer goes on here then.
        """
        answer = self._service.answers.get(answer_id)
        if answer is None:
            raise BadRequest(f"no session {answer_id} is running; `ecdctl sessions` lists them")
        if isinstance(answer.at, OtherEdge):
            raise BadRequest(f"session {answer_id} has been handed over already")
        mode = answer.generation.request.mode
        if answer.generation.turns is not None and mode.edge_commits:
            raise BadRequest(
                f"session {answer_id} has mode {mode}; only what the cloud alone commits can be moved"
            )
        loop = asyncio.get_running_loop()
        departure = _Departure(answer, to, None, loop.create_future(), loop.create_future())
        link = await self._connect(departure)
        try:
            await departure.connected
            departure.cells = await self._service.drafting.take_cells(answer)
            if answer.id not in self._service.answers or answer.generation.phase is not Phase.STREAMING:
                raise BadRequest(f"session {answer_id} is over, or has no link now")
        except BaseException:
            link.abort()
            raise
        self._service.placing.hand_over(answer, link, link.connection.new_stream())
        try:
            async with asyncio.timeout(TAKEN_S):
                await asyncio.shield(departure.taken)
        except TimeoutError:
            self._take_back(departure, link, f"the edge at {to} has told nothing for {TAKEN_S:g} s")
            raise LinkError(f"the edge at {to} does not go on with the session; it goes on here") from None
        return {"migrated": answer_id, "to": to}

    async def _connect(self, departure: _Departure) -> Link:
        to, loop = departure.to, asyncio.get_running_loop()

        def on_event(link: Link, event: Event) -> None:
            self._on_event(departure, link, event)

        def protocol() -> Link:
            return Link(Connection(self._settings, monotonic()), on_event)

        try:
            async with asyncio.timeout(self._settings.handshake_s):
                if "/" in to:
                    _, link = await loop.create_unix_connection(protocol, socket_of(to))
                else:
                    _, link = await loop.create_connection(protocol, *self._address(to))
        except (OSError, TimeoutError) as e:
            raise LinkError(f"cannot reach an edge at {to}: {e or 'timed out'}") from None
        return link

    def _address(self, to: str) -> tuple[str, int]:
        try:
            host, port = split_address(to if ":" in to else f"{to}:{PORT}")
            refuse(handover_dangers("the edge at", host), self._insecure)
        except ValueError as e:
            raise BadRequest(f"--to {to}: {e}") from None
        return host, port

    def _on_event(self, departure: _Departure, link: Link, event: Event) -> None:
        match event:
            case Connected():
                departure.connected.set_result(None)
            case Received(message=Tokens() as tokens):
                departure.answer.wire_down += event.size
                if departure.answer.at == OtherEdge(link):
                    self._service.receiving.on_tokens(departure.answer, tokens)
                if not departure.taken.done():
                    departure.taken.set_result(None)
            case Received(message=Kv() | Credit() as message):
                self._on_pages(departure, link, message)
            case Received(message=Reset() as reset):
                reason = f"the edge at {departure.to} does not go on: {readable(reset.message)}"
                self._take_back(departure, link, reason, RemoteError(reset.code, reason))
            case Closed():
                reason = f"the edge at {departure.to} is gone: {event.message}"
                self._take_back(departure, link, reason)
            case _:
                pass

    def _take_back(
        self, departure: _Departure, link: Link, reason: str, error: EcdError | None = None
    ) -> None:
        answer = departure.answer
        if departure.giving is not None:
            departure.giving.cancel()
        if answer.at == OtherEdge(link) and answer.id in self._service.answers:
            log.warning("goes on here: %s", reason, extra=answer.about)
            self._service.placing.take_back(answer)
        for future in (departure.connected, departure.taken):
            if not future.done():
                future.set_exception(error or LinkError(reason))
                # Whoever asked may have gone away, or may be told by the other one.
                future.exception()
        link.abort()

    # -- pages

    def _on_pages(self, departure: _Departure, link: Link, message: Kv | Credit) -> None:
        match message:
            case Credit():
                if departure.sending is not None:
                    departure.sending.credit(message.amount)
                    self._pump(departure, link)
            case Kv(op=KvOp.WANT) if departure.sending is None:
                departure.sending = Sending(message)
                departure.giving = asyncio.create_task(self._give(departure, link, departure.sending))
            case Kv(op=KvOp.DROP):
                if departure.giving is not None:
                    departure.giving.cancel()
            case Kv():
                pass

    async def _give(self, departure: _Departure, link: Link, sending: Sending) -> None:
        """Sends what is wanted of the cells that there are, and says where they end."""
        want, cells = sending.want, departure.cells
        holder = self._service.assisting.holder
        shape = None if holder is None else holder.shape
        last = 0
        if (
            cells is not None
            and shape is not None
            and want.model == shape.model
            and want.encoding in list(Encoding)
        ):
            last = min(want.last, len(cells))
            for first in range(want.first, last, RUN_TOKENS):
                while sending.backlog > MOST_BACKLOG:
                    departure.room.clear()
                    await departure.room.wait()
                part = cells[first : min(first + RUN_TOKENS, last)]
                sending.add(await asyncio.to_thread(_run, shape, Encoding(want.encoding), first, part))
                self._pump(departure, link)
        while sending.backlog:
            departure.room.clear()
            await departure.room.wait()
        if last < want.last:
            link.send(sending.give_up())
        departure.cells = None

    def _pump(self, departure: _Departure, link: Link) -> None:
        assert departure.sending is not None
        for frame in departure.sending.due():
            link.send(frame)
        departure.room.set()


def _run(shape: Shape, encoding: Encoding, first: int, cells: Cells) -> Run:
    return Run(first, first + len(cells), pack(shape, encoding, first, cells))
