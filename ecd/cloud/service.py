"""The cloud daemon: connections in, one engine thread, committed tokens out.

Wires `Connection`, `Batcher` and a `Verifier` together. The event loop owns all state; the engine thread only
runs one step at a time on what it is handed.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from time import monotonic, perf_counter, process_time
from typing import Any

from ecd.cloud.batcher import Batcher
from ecd.cloud.session import Committed, Session, Vocabulary
from ecd.cloud.verifier import StepResult, Verifier, Work
from ecd.control import Handler, Notify
from ecd.errors import Code, EcdError, EngineError, EngineLost, UnknownPrefix
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
from ecd.wire.messages import Commit, Credit, Draft, Finish, Kv, Message, Open, Reset, Tokens

log = logging.getLogger(__name__)

Address = tuple[Link, int]


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
    """All connections and sessions of one cloud; `on_drained` is called when `ecdctl drain` is through."""

    def __init__(
        self,
        verifier: Verifier,
        vocabulary: Vocabulary,
        settings: Settings,
        batcher: Batcher,
        on_drained: Callable[[], None],
    ):
        self.listen = ""
        self._verifier = verifier
        self._vocabulary = vocabulary
        self._settings = settings
        self._batcher = batcher
        self._on_drained = on_drained
        self._engine = ThreadPoolExecutor(1, "engine")
        self._loop = asyncio.get_running_loop()
        self._links: set[Link] = set()
        self._keys = itertools.count(1)
        self._by_address: dict[Address, int] = {}
        self._by_key: dict[int, Address] = {}
        self._to_forget: list[int] = []
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._draining = False
        self._engine_restarts = 0
        self._gaps = Gaps()
        self._busy_until: float | None = None
        self._started_at = monotonic()
        self._wire_in = self._wire_out = self._packets_in = self._packets_out = 0

    def protocol(self) -> Link:
        """The asyncio protocol of one accepted connection."""
        link = Link(Connection(self._settings, monotonic()), self._on_event)
        link.connection.load = self._batcher.load
        self._links.add(link)
        if self._draining:
            link.drain("this cloud is draining")
        return link

    async def step_forever(self) -> None:
        """Runs a step whenever a session may go on; sleeps while none may.

        The next step begins before the edges are told what the last one brought: the engine is what is dear.
        """
        untold: list[tuple[Link, Message]] = []
        while True:
            work = self._batcher.plan(monotonic())
            if not work and not self._to_forget:
                self._busy_until = None
                self._tell(untold)
                untold = []
                await self._wait(self._batcher.next_timer())
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

    def stop(self) -> None:
        """Ends every connection."""
        for link in list(self._links):
            link.close(Code.DRAINING, "this cloud is stopping")

    def close(self) -> None:
        """Frees the engine; nothing may be asked of it any more."""
        self._engine.submit(self._verifier.close)
        self._engine.shutdown()

    def handlers(self) -> dict[str, Handler]:
        """What the control socket offers."""

        async def status(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
            return self.status()

        async def stats(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
            return self.stats()

        async def sessions(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
            return {"sessions": self.sessions()}

        async def drain(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
            await self.drain()
            self._on_drained()
            return {"drained": True}

        return {"status": status, "stats": stats, "sessions": sessions, "drain": drain}

    def status(self) -> dict[str, Any]:
        """Who is connected and what is served."""
        return {
            "role": "cloud",
            "model": self._settings.model,
            "listen": self.listen,
            "uptime_s": round(monotonic() - self._started_at, 1),
            "state": "draining" if self._draining else "serving",
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
            "engine_restarts": self._engine_restarts,
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
                "state": "running" if key in self._batcher.running else "queued",
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
            if isinstance(outcome, EcdError) or outcome.finish is not Finish.NONE:
                self._forget(key)
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

    async def _wait(self, until: float | None) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - monotonic())):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _forget(self, key: int) -> None:
        address = self._by_key.pop(key)
        del self._by_address[address]
        if self._batcher.remove(key):
            self._to_forget.append(key)
        self._changed.set()
        if not self._by_key:
            self._idle.set()

    # -- connections

    def _on_event(self, link: Link, event: Event) -> None:
        match event:
            case Connected():
                log.info("edge %s connected (%s)", link.peername, readable(event.peer.agent[:100]))
            case Received():
                self._on_message(link, event.message)
            case PeerDraining():
                log.info("edge %s opens no more sessions: %s", link.peername, event.message)
            case Closed():
                log.info("edge %s left: %s", link.peername, event.message)
                self._links.discard(link)
                packets_in, packets_out = link.packet_bytes()
                self._packets_in += packets_in
                self._packets_out += packets_out
                self._wire_in += link.traffic.bytes_in
                self._wire_out += link.traffic.bytes_out
                for key in [k for k, (owner, _) in self._by_key.items() if owner is link]:
                    self._forget(key)

    def _on_message(self, link: Link, message: Open | Draft | Tokens | Commit | Kv | Credit | Reset) -> None:
        key = self._by_address.get((link, message.stream))
        match message:
            case Open():
                self._open(link, message)
            case Draft():
                if key is not None and (session := self._batcher.get(key)) is not None:
                    session.hint(message)
                    self._changed.set()
            case Commit() | Kv():
                # WELCOME does not offer the features that these belong to.
                link.send(Reset(message.stream, Code.BAD_REQUEST, "this cloud takes no COMMIT or KV frames"))
                if key is not None:
                    self._forget(key)
            case Reset():
                if key is not None:
                    self._forget(key)
            case Credit() | Tokens():
                pass

    def _open(self, link: Link, message: Open) -> None:
        try:
            if message.prefix_len:
                raise UnknownPrefix("this cloud keeps no prompt prefixes; send the whole prompt")
            self._batcher.check_fits(len(message.prompt), message.max_tokens)
            session = Session.of(message, self._vocabulary, self._settings.limits["max_ahead"], monotonic())
            key = next(self._keys)
            self._batcher.add(key, session)
        except EcdError as e:
            link.send(Reset(message.stream, e.code, str(e)))
            return
        self._by_address[link, message.stream] = key
        self._by_key[key] = (link, message.stream)
        self._changed.set()


def _message_of(stream: int, outcome: Committed | EcdError, step_s: float) -> Message:
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
            )
        case EcdError():
            return Reset(stream, outcome.code, str(outcome))
