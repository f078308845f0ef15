"""The cloud daemon: connections in, one engine thread, committed tokens out.

Wires `Connection`, `Batcher` and a `Verifier` together. The event loop owns all state; the engine thread only
runs one step at a time on what it is handed.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from time import monotonic, perf_counter, process_time, time
from typing import Any

from ecd.cloud.assist import Assist
from ecd.cloud.batcher import Batcher
from ecd.cloud.overheard import begun
from ecd.cloud.prefixes import Prefixes
from ecd.cloud.session import Audited, Committed, Session, Vocabulary
from ecd.cloud.tenants import Tenant, Tenants
from ecd.cloud.verifier import StepResult, Verifier, Work
from ecd.control import Handler, Notify
from ecd.errors import AuthError, BadRequest, Code, EcdError, EngineError, EngineLost, LimitExceeded
from ecd.journal import Journal, Ring
from ecd.tracing import SESSION, tell_trace
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

log = logging.getLogger(__name__)

Address = tuple[Link, int]

# So long must nobody have wanted anything before idle time is used.
IDLE_S = 0.25

# So many bytes cost a tenant as much as a hint: long frames take their time too.
CHARGED_BYTES = 256
# What a peer may make us hold before it is asked what its tenant holds in all.
SMALL_BYTES = 64 << 10


@dataclass(slots=True)
class Gaps:
    """Times from the end of a step to the start of the next, where that one's work was there already.

    The engine stands still meanwhile: what the daemon costs it. Named as in `stats`.
    """

    gaps: int = 0
    gap_s: float = 0.0
    gaps_over_1ms: int = 0

    def add(self, gap_s: float) -> None:
        """One more, in seconds."""
        self.gaps += 1
        self.gap_s += gap_s
        self.gaps_over_1ms += gap_s > 1e-3


class CloudService:
    """All connections and sessions of one cloud; `on_drained` is called when `ecdctl drain` is through.

    `limits` are each tenant's; `token` gives the token of that name, None where none is asked for, or raises
    AuthError when it is no longer good.
    """

    def __init__(
        self,
        verifier: Verifier,
        vocabulary: Vocabulary,
        settings: Settings,
        batcher: Batcher,
        on_drained: Callable[[], None],
        limits: Limits = NO_LIMITS,
        token: Callable[[str], Token | None] = lambda name: None,
        assist: Assist | None = None,
    ):
        self.listen = ""
        # Of connections that never came as far as this.
        self.listener_stats: Callable[[], dict[str, int]] = dict
        self._verifier = verifier
        self._vocabulary = vocabulary
        self._settings = settings
        self._batcher = batcher
        self._on_drained = on_drained
        self._assist = assist
        self._engine = ThreadPoolExecutor(1, "engine")
        self._loop = asyncio.get_running_loop()
        self._links: dict[Link, int] = {}
        self._connections = itertools.count(1)
        self._token = token
        self._tenants = Tenants(limits)
        self._tenant_of: dict[Link, Tenant] = {}
        self._keys = itertools.count(1)
        self._by_address: dict[Address, int] = {}
        self._by_key: dict[int, Address] = {}
        self._to_forget: list[int] = []
        self._prefixes = Prefixes()
        self._prepared = True
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._draining = False
        self._engine_restarts = 0
        self._gaps = Gaps()
        self._ring = Ring(monotonic)
        self._busy_until: float | None = None
        self._started_at = monotonic()
        self._wire_in = self._wire_out = self._packets_in = self._packets_out = 0

    def protocol(self) -> Link:
        """The asyncio protocol of one accepted connection."""
        link = Link(Connection(self._settings, monotonic()), self._on_event)
        link.connection.load = self._load
        link.toll = self._toll
        self._links[link] = next(self._connections)
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
        untold: list[tuple[Link, Message]] = []
        while True:
            self._to_forget += self._batcher.park()
            work = self._batcher.plan(monotonic())
            if not work and not self._to_forget:
                self._busy_until = None
                self._tell(untold)
                untold = []
                await self._rest()
                continue
            forget, self._to_forget = self._to_forget, []
            step = self._loop.run_in_executor(self._engine, self._run_step, forget, work)
            self._tell(untold)
            result, start, end = await step
            untold = self._settle(result, start, end) if work else []
            self._busy_until = end if work else None

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
        for link in list(self._tenant_of):
            self._enter(link)

    def stop(self) -> None:
        """Ends every connection."""
        for link in list(self._links):
            link.close(Code.DRAINING, "this cloud is stopping")

    def close(self) -> None:
        """Frees the engine; nothing may be asked of it any more."""
        self._engine.submit(self._verifier.close)
        self._engine.shutdown()

    async def engine_turn(self) -> None:
        """Returns once the engine's thread has had a turn: not before a step that is under way has ended."""
        await self._loop.run_in_executor(self._engine, lambda: None)

    def summary(self) -> str:
        """One line for the service manager."""
        running, queued = len(self._batcher.running), len(self._batcher.queue)
        return (
            f"{self._state}: {running} sessions running, {queued} waiting, {len(self._links)} edges connected"
        )

    @property
    def _state(self) -> str:
        return "draining" if self._draining else "serving"

    def handlers(self) -> dict[str, Handler]:
        """What the control socket offers."""

        async def status(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
            return self.status()

        async def stats(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
            return self.stats()

        async def sessions(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
            return {"sessions": self.sessions()}

        async def trace(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
            return await tell_trace(self._ring, SESSION, args, emit)

        async def drain(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
            await self.drain()
            self._on_drained()
            return {"drained": True}

        return {
            "status": status,
            "stats": stats,
            "sessions": sessions,
            "trace": trace,
            "drain": drain,
        }

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
        totals = self._batcher.totals
        cost = self._batcher.depth.cost
        sessions = max(1, len(self._batcher.running))
        return {
            **asdict(totals),
            **asdict(self._gaps),
            **self._batcher.load(),
            **self.listener_stats(),
            "tenants": self._tenants.stats(),
            "engine_restarts": self._engine_restarts,
            # Nothing runs, and nothing is left to prepare.
            "idle": self._prepared and not self._by_key,
            "engine": self._verifier.stats(),
            "split_ms": (cost.seconds(sessions, 2) - cost.seconds(sessions)) * 1000,
            "mean_batch_sessions": totals.batch_sessions / totals.steps if totals.steps else 0.0,
            "mean_batch_tokens": totals.batch_tokens / totals.steps if totals.steps else 0.0,
            "acceptance_rate": totals.accepted / totals.verified if totals.verified else 0.0,
            "forwards_per_token": totals.forwards / totals.committed if totals.committed else 0.0,
            "verified_per_forward": totals.verified / totals.forwards if totals.forwards else 0.0,
            "cpu_s": process_time(),
            "tasks": len(asyncio.all_tasks(self._loop)),
            "packet_bytes_in": self._packets_in + sum(link.packet_bytes()[0] for link in self._links),
            "packet_bytes_out": self._packets_out + sum(link.packet_bytes()[1] for link in self._links),
            "wire_bytes_in": self._wire_in + sum(link.traffic.bytes_in for link in self._links),
            "wire_bytes_out": self._wire_out + sum(link.traffic.bytes_out for link in self._links),
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

    def _settle(self, result: StepResult, start: float, end: float) -> list[tuple[Link, Message]]:
        """Takes in what came of a step from `start` to `end`, in seconds; what to say of it, to whom."""
        if self._busy_until is not None:
            self._gaps.add(start - self._busy_until)
        self._engine_restarts += any(isinstance(error, EngineLost) for error in result.failed.values())
        said = []
        for key, outcome in self._batcher.apply(result, end - start, monotonic()):
            link, stream = self._by_key[key]
            said.append((link, _message_of(stream, outcome, end - start)))
            match outcome:
                case EcdError():
                    self._over(key, str(outcome))
                case Committed() if outcome.finish is not Finish.NONE:
                    self._over(key, outcome.finish.name.lower())
        return said

    def _tell(self, said: list[tuple[Link, Message]]) -> None:
        for link, message in said:
            link.send(message)

    def _run_step(self, forget: list[int], work: list[Work]) -> tuple[StepResult, float, float]:
        """In the engine thread: what came of it, its start and its end, in seconds.

        A failure ends the sessions that took part and nothing else.
        """
        start = perf_counter()
        try:
            for key in forget:
                self._verifier.forget(key)
            result = self._verifier.step(work) if work else StepResult()
        except Exception as e:
            log.exception("a step with %d sessions failed", len(work))
            error = e if isinstance(e, EcdError) else EngineError(f"the engine failed: {e}")
            result = StepResult(failed={item.key: error for item in work})
        return result, start, perf_counter()

    async def _rest(self) -> None:
        """Until a session may go on; idle time that lasts is used to prepare for later ones."""
        idle = not (self._prepared or self._batcher.running)
        await self._wait(monotonic() + IDLE_S if idle else self._batcher.next_timer())
        while idle and not (self._prepared or self._changed.is_set()):
            work = self._loop.run_in_executor(self._engine, self._verifier.prepare, self._changed.is_set)
            self._prepared = not await work

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
        address = self._by_key.pop(key)
        session = self._batcher.get(key)
        if session is not None:
            link, stream = address
            log.info(
                "session ended: %s; %d tokens of %d, %d forwards, %d of %d hints accepted",
                readable(why),
                len(session.tokens) - session.prompt_len,
                session.max_tokens,
                session.forwards,
                session.accepted,
                session.verified,
                extra={**self._about(link), "session": key, "stream": stream},
            )
        del self._by_address[address]
        if self._assist is not None:
            self._assist.forget(*address)
        session = self._batcher.get(key)
        if session is not None:
            # Not at once: the next step is not to wait for it.
            self._loop.call_soon(self._prefixes.remember, session.tokens)
        self._tenant_of[address[0]].closed()
        if self._batcher.remove(key):
            self._to_forget.append(key)
        self._changed.set()
        if not self._by_key:
            self._idle.set()

    # -- connections

    def _about(self, link: Link) -> dict[str, Any]:
        about = {"connection": self._links.get(link), "peer": link.peername}
        return about | ({"tenant": link.connection.tenant} if link.connection.tenant else {})

    def _on_event(self, link: Link, event: Event) -> None:
        match event:
            case Connected():
                self._enter(link)
                who, agent = link.connection.tenant or "an edge", readable(event.peer.agent[:100])
                log.info("%s connected from %s (%s)", who, link.peername, agent, extra=self._about(link))
            case Received():
                self._on_message(link, event.message)
            case PeerDraining():
                log.info("edge opens no more sessions: %s", event.message, extra=self._about(link))
            case Closed():
                # Those that never came in are the listener's to tell of.
                if link in self._tenant_of:
                    log.info("edge left: %s", event.message, extra=self._about(link))
                packets_in, packets_out = link.packet_bytes()
                self._packets_in += packets_in
                self._packets_out += packets_out
                self._wire_in += link.traffic.bytes_in
                self._wire_out += link.traffic.bytes_out
                for key in [k for k, (owner, _) in self._by_key.items() if owner is link]:
                    self._forget(key, "the edge left")
                self._links.pop(link, None)
                self._tenant_of.pop(link, None)

    def _on_message(
        self, link: Link, message: Open | Draft | Tokens | Commit | Audit | Kv | Credit | Reset
    ) -> None:
        key = self._by_address.get((link, message.stream))
        match message:
            case Open():
                self._open(link, message)
            case Draft():
                alternates = sum(len(alternate.ids) for alternate in message.alternates or ())
                self._tenant_of[link].charge(len(message.ids) + alternates, monotonic())
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

    def _enter(self, link: Link) -> None:
        """Notes who is at the link's other end and what it may use; ends the link when that is nothing."""
        name = link.connection.tenant
        try:
            token = self._token(name)
        except AuthError as e:
            link.close(e.code, str(e))
            return
        self._tenant_of[link] = self._tenants.enter(name, token.limits if token else Limits(), monotonic())

    def _toll(self, link: Link, size: int, frames: int) -> float:
        """After each read: for how long nothing more is to be read, seconds."""
        tenant = self._tenant_of.get(link)
        if tenant is None:
            return 0.0  # not let in yet: the handshake has limits of its own
        now = monotonic()
        if size:
            tenant.charge(max(1, frames) + size // CHARGED_BYTES, now)
        if link.held_bytes > SMALL_BYTES:
            held = sum(each.held_bytes for each, of in self._tenant_of.items() if of is tenant)
            try:
                tenant.check_held(held)
            except LimitExceeded as e:
                link.close(e.code, str(e))
        return tenant.wait_s(now)

    def _take(self, link: Link, key: int, session: Session, commit: Commit) -> None:
        try:
            session.take(commit)
        except BadRequest as e:
            link.send(Reset(commit.stream, e.code, str(e)))
            self._forget(key, str(e))
        self._changed.set()

    def _open(self, link: Link, message: Open) -> None:
        tenant = self._tenant_of[link]
        try:
            tenant.check_open(message.prefix_len + len(message.prompt))
            self._batcher.check_fits(message.prefix_len + len(message.prompt), message.max_tokens)
            if message.prefix_len and message.prompt:
                prefix = self._prefixes.resolve(message.prefix_hash, message.prefix_len)
                message = replace(message, prompt=(*prefix, *message.prompt))
            key = next(self._keys)
            session = begun(
                Journal(self._ring, key),
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
        self._prefixes.remember(message.prompt)
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
