"""The cloud daemon: connections in, one engine thread, committed tokens out.

Wires `Links`, `Batcher` and `EngineThread` together. Owns which session a stream belongs to, and what each
message does to it. The event loop has all state; the engine's thread only runs one step at a time on what it
is handed.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from time import monotonic, process_time, time
from typing import Any

from ecd.cloud.assist import Assist
from ecd.cloud.batcher import Batcher
from ecd.cloud.engine_thread import EngineThread
from ecd.cloud.links import Links
from ecd.cloud.overheard import begun
from ecd.cloud.prefixes import NOTHING, Known, Prefixes
from ecd.cloud.session import Audited, Committed, Session, Vocabulary
from ecd.cloud.verifier import StepResult, Verifier
from ecd.errors import BadRequest, Code, EcdError
from ecd.journal import Journal, Ring
from ecd.trust.settings import NO_LIMITS, Limits
from ecd.trust.tokens import Token
from ecd.wire.connection import (
    Closed,
    Connected,
    Connection,
    Event,
    PeerDraining,
    Received,
    Settings,
    readable,
)
from ecd.wire.link import Link
from ecd.wire.messages import (
    Audit,
    Commit,
    Credit,
    Draft,
    Finish,
    Kv,
    Message,
    Open,
    Reset,
    Tokens,
)
from ecd.wire.prefix import BLOCK_TOKENS

Address = tuple[Link, int]

# So long must nobody have wanted anything before idle time is used.
IDLE_S = 0.25
# A session's beginning and end take the loop as long as so many hints.
OPENING = 8


class CloudService:
    """All connections and sessions of one cloud; `ring` has the newest events of all sessions.

    `limits` are each tenant's; `token` gives the token of that name, None where none is asked for, or raises
    AuthError when it is no longer good.
    """

    def __init__(
        self,
        verifier: Verifier,
        vocabulary: Vocabulary,
        settings: Settings,
        batcher: Batcher,
        limits: Limits = NO_LIMITS,
        token: Callable[[str], Token | None] = lambda name: None,
        assist: Assist | None = None,
    ):
        self.listen = ""
        # Of connections that never came as far as this.
        self.listener_stats: Callable[[], dict[str, int]] = dict
        self._vocabulary = vocabulary
        self._settings = settings
        self._batcher = batcher
        self._assist = assist
        self._engine = EngineThread(verifier)
        self._loop = asyncio.get_running_loop()
        self._links = Links(limits, token)
        self._keys = itertools.count(1)
        self._by_address: dict[Address, int] = {}
        self._by_key: dict[int, Address] = {}
        self._to_forget: list[int] = []
        self._prefixes = Prefixes()
        # Of each session's prompt.
        self._known: dict[int, Known] = {}
        self._prepared = True
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._draining = False
        self.ring = Ring(monotonic)
        self._started_at = monotonic()

    def protocol(self) -> Link:
        """The asyncio protocol of one accepted connection."""
        link = Link(Connection(self._settings, monotonic()), self._on_event)
        link.connection.load = self._load
        self._links.add(link)
        if self._draining:
            link.drain("this cloud is draining")
        return link

    def _load(self) -> dict[str, Any]:
        """For PONG; with the time, so that an edge can tell how far the clocks are apart."""
        assist = self._assist.load() if self._assist else {}
        return {**self._batcher.load(), **assist, "time": time()}

    async def step_forever(self) -> None:
        """Runs a step whenever a session may go on; sleeps while none may.

        The next step begins before the edges are told what the last one brought: the engine is what is dear.
        """
        untold: Iterable[tuple[Link, Message]] = ()
        while True:
            self._to_forget += self._batcher.park()
            work = self._batcher.plan(monotonic())
            if not work:
                # Before anything is waited for: a cloud that drains ends with its last session.
                self._tell(untold)
                untold = ()
            if not work and not self._to_forget:
                self._engine.rest()
                await self._rest()
                continue
            forget, self._to_forget = self._to_forget, []
            step = await self._engine.step(forget, work)
            self._tell(untold)
            result, step_s = await step
            untold = self._settle(result, step_s) if work else ()

    async def drain(self) -> None:
        """Takes no new sessions; returns when the last one has ended."""
        self._draining = True
        for link in self._links:
            link.drain("this cloud is draining")
        while self._by_key:
            self._idle.clear()
            await self._idle.wait()

    def check_tokens(self) -> None:
        """Ends the connections whose token is no longer good; the others have the limits of now."""
        self._links.check_tokens()

    def stop(self) -> None:
        """Ends every connection."""
        for link in self._links:
            link.close(Code.DRAINING, "this cloud is stopping")

    def close(self) -> None:
        """Frees the engine; nothing may be asked of it any more."""
        self._engine.close()

    async def engine_turn(self) -> None:
        """Returns once the engine's thread has had a turn: not before a step that is under way has ended."""
        await self._engine.turn()

    def summary(self) -> str:
        """One line for the service manager."""
        running, queued = len(self._batcher.running), len(self._batcher.queue)
        return (
            f"{self._state}: {running} sessions running, {queued} waiting, {len(self._links)} edges connected"
        )

    @property
    def _state(self) -> str:
        return "draining" if self._draining else "serving"

    def status(self) -> dict[str, Any]:
        """Who is connected and what is served."""
        return {
            "role": "cloud",
            "model": self._settings.model,
            "listen": self.listen,
            "uptime_s": round(monotonic() - self._started_at, 1),
            "state": self._state,
            "connections": len(self._links),
            "running": len(self._batcher.running),
            "queued": len(self._batcher.queue),
        }

    def stats(self) -> dict[str, Any]:
        """Counters since start and what follows from them."""
        return {
            **self._batcher.stats(),
            **self._engine.stats(),
            **self._links.stats(),
            **self.listener_stats(),
            # Nothing runs, and nothing is left to prepare.
            "idle": self._prepared and not self._by_key,
            "cpu_s": process_time(),
            "tasks": len(asyncio.all_tasks(self._loop)),
        }

    def sessions(self) -> list[dict[str, Any]]:
        """One line per session."""
        return [
            {
                "id": key,
                "peer": self._by_key[key][0].peername,
                "tenant": self._by_key[key][0].connection.tenant,
                "state": self._batcher.state(key),
                "prompt_tokens": s.prompt_len,
                "completion_tokens": len(s.tokens) - s.prompt_len,
                "forwards": s.forwards,
                "verified": s.verified,
                "accepted": s.accepted,
                "hints_waiting": len(s.board.line),
            }
            for key in self._by_key
            if (s := self._batcher.get(key)) is not None
        ]

    # -- engine

    def _settle(self, result: StepResult, step_s: float) -> Iterable[tuple[Link, Message]]:
        """Takes in what came of a step of so many seconds; what to say of it, to whom, as it is asked for."""
        told = []
        for key, outcome in self._batcher.apply(result, step_s, monotonic()):
            told.append((*self._by_key[key], outcome))
            match outcome:
                case EcdError():
                    self._over(key, str(outcome))
                case Committed() if outcome.finish is not Finish.NONE:
                    self._over(key, outcome.finish.name.lower())
        return ((link, _message_of(stream, outcome, step_s)) for link, stream, outcome in told)

    def _tell(self, said: Iterable[tuple[Link, Message]]) -> None:
        for link, message in said:
            link.send(message)

    async def _rest(self) -> None:
        """Until a session may go on; idle time that lasts is used to prepare for later ones."""
        idle = not (self._prepared or self._batcher.running)
        await self._wait(monotonic() + IDLE_S if idle else self._batcher.next_timer())
        while idle and not (self._prepared or self._changed.is_set()):
            self._prepared = not await self._engine.prepare(self._changed.is_set)

    async def _wait(self, until: float | None) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - monotonic())):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _over(self, key: int, why: str) -> None:
        """A text is complete; one whose link was lost will be gone on with instead."""
        self._forget(key, why)
        self._prepared = False

    def _forget(self, key: int, why: str) -> None:
        address = link, stream = self._by_key.pop(key)
        session = self._batcher.get(key)
        if session is not None:
            self._links.tell(
                link,
                "session ended: %s; %d tokens of %d, %d forwards, %d of %d hints accepted",
                readable(why),
                len(session.tokens) - session.prompt_len,
                session.max_tokens,
                session.forwards,
                session.accepted,
                session.verified,
                session=key,
                stream=stream,
            )
            known = self._known.pop(key)
            # Not at once: the next step is not to wait for it.
            self._loop.call_soon(self._prefixes.remember, link.connection.tenant, session.tokens, known)
        del self._by_address[address]
        if self._assist is not None:
            self._assist.forget(*address)
        self._links.tenant(link).closed()
        if self._batcher.remove(key):
            self._to_forget.append(key)
        self._changed.set()
        if not self._by_key:
            self._idle.set()

    # -- connections

    def _on_event(self, link: Link, event: Event) -> None:
        match event:
            case Connected():
                self._links.enter(link)
                who, agent = link.connection.tenant or "an edge", readable(event.peer.agent[:100])
                self._links.tell(link, "%s connected from %s (%s)", who, link.peername, agent)
            case Received():
                self._on_message(link, event.message)
            case PeerDraining():
                self._links.tell(link, "edge opens no more sessions: %s", event.message)
            case Closed():
                # Those that never came in are the listener's to tell of.
                if self._links.entered(link):
                    self._links.tell(link, "edge left: %s", event.message)
                for key in [k for k, (owner, _) in self._by_key.items() if owner is link]:
                    self._forget(key, "the edge left")
                self._links.leave(link)

    def _on_message(
        self, link: Link, message: Open | Draft | Tokens | Commit | Audit | Kv | Credit | Reset
    ) -> None:
        key = self._by_address.get((link, message.stream))
        match message:
            case Open():
                self._open(link, message)
            case Draft():
                alternates = sum(len(alternate.ids) for alternate in message.alternates or ())
                self._links.tenant(link).charge(len(message.ids) + alternates, monotonic())
                if key is not None and (session := self._batcher.get(key)) is not None:
                    session.hint(message)
                    self._changed.set()
            case Commit():
                if key is not None and (session := self._batcher.get(key)) is not None:
                    self._take(link, key, session, message)
            case Kv() | Credit() if self._assist is not None:
                if key is not None and (session := self._batcher.get(key)) is not None:
                    self._assist.on_message(link, message, session.tokens)
            case Kv():
                # WELCOME does not offer the feature that it belongs to.
                link.send(Reset(message.stream, Code.BAD_REQUEST, "this cloud takes no KV frames"))
                if key is not None:
                    self._forget(key, "the edge sent KV")
            case Reset():
                if key is not None:
                    self._over(key, f"the edge gave it up: {message.message}")
            case Credit() | Tokens() | Audit():
                pass

    def _take(self, link: Link, key: int, session: Session, commit: Commit) -> None:
        try:
            session.take(commit)
        except BadRequest as e:
            link.send(Reset(commit.stream, e.code, str(e)))
            self._forget(key, str(e))
        self._changed.set()

    def _open(self, link: Link, message: Open) -> None:
        tenant, known = self._links.tenant(link), NOTHING
        try:
            tenant.check_open(message.prefix_len + len(message.prompt))
            self._batcher.check_fits(message.prefix_len + len(message.prompt), message.max_tokens)
            # A short frame that asks for as much work as a long one.
            tenant.charge(OPENING + message.prefix_len // BLOCK_TOKENS, monotonic())
            if message.prefix_len and message.prompt:
                prefix = self._prefixes.resolve(tenant.name, message.prefix_hash, message.prefix_len)
                message = replace(message, prompt=(*prefix, *message.prompt))
                known = Known(message.prefix_len, message.prefix_hash or b"")
            key = next(self._keys)
            session = begun(
                Journal(self.ring, key),
                message,
                self._vocabulary,
                self._settings.limits["max_ahead"],
                monotonic(),
            )
            session.tenant = tenant
            self._batcher.add(key, session)
        except EcdError as e:
            link.send(Reset(message.stream, e.code, str(e)))
            return
        self._known[key] = self._prefixes.remember(tenant.name, message.prompt, known)
        tenant.opened()
        self._by_address[link, message.stream] = key
        self._by_key[key] = (link, message.stream)
        self._changed.set()


def _message_of(stream: int, outcome: Committed | Audited | EcdError, step_s: float) -> Message:
    """What the edge is told of its session's part in a step that took `step_s`."""
    match outcome:
        case Committed():
            step_us = min(int(step_s * 1e6), (1 << 32) - 1)
            return Tokens(
                stream,
                outcome.base,
                outcome.ids,
                outcome.accepted,
                outcome.verified,
                step_us,
                outcome.finish,
                outcome.logprobs,
                outcome.cached,
            )
        case Audited():
            return Audit(stream, outcome.base, bytes(outcome.agreed), outcome.forwards)
        case EcdError():
            return Reset(stream, outcome.code, str(outcome))
