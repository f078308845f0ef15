"""A soak as it runs: clients that ask, faults that come, and what is read of the daemons meanwhile.

Owns what is done to a running cloud, its link and its edges. What goes wrong is drawn in `fault_plan`, what
is asked comes from `questions`, and what came of it is judged in `soaked`.
"""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, assert_never

import click

from ecd.client import Client
from ecd.errors import Code, DaemonError, EcdError
from ecd.lab.fault_plan import Fault, Kind
from ecd.lab.hardship import EdgeToken, fill_disk, free_disk
from ecd.lab.link import EmulatedLink
from ecd.lab.questions import Question
from ecd.lab.soaked import Answers, Held, Outcome, Soaked, exceptions_in, states_lost_in
from ecd.lab.system import DaemonProcess
from ecd.lab.usage import Usage, early_and_late, usage_of

# An answer that gets nothing for so long hangs. Links are given up after 2 s, and faults last 4 at most; the
# rest is for a machine that is busy with other things.
HANG_S = 120.0
# Until all that clients and dead peers left behind must be gone.
QUIET_S = 20.0
READ_EVERY_S = 0.5
# Before a process has given so many answers its memory tells nothing: threads still take their first buffers
# for KV states, and the allocator keeps those.
WARM_UP_ANSWERS = 32
# After so long a cloud has looked at its token file.
NOTICED_S = 1.5
TELL_EVERY_S = 30.0
# The share of answers whose client goes away in the middle.
LEAVING = 0.05


@dataclass(slots=True)
class Watched:
    """A daemon, when it was killed, and what was read of it. `up`: nobody is starting it.

    `answers`: those that ended since its process began.
    """

    daemon: DaemonProcess
    up: asyncio.Event = field(default_factory=asyncio.Event)
    killed_at: list[float] = field(default_factory=list)
    answers: int = 0
    readings: list[Usage] = field(default_factory=list)
    idle_fds: int = 0
    idle_tasks: int = 0

    @property
    def name(self) -> str:
        return self.daemon.folder.name

    def pid(self) -> int:
        """Of the running process. Raises DaemonError when it ended by itself."""
        process = self.daemon.process
        assert process is not None
        if self.up.is_set() and process.poll() is not None:
            raise DaemonError(f"{self.name} ended by itself with code {process.returncode}; see its log")
        return process.pid

    async def ask(self, verb: str) -> dict[str, Any]:
        """One call on its control socket."""
        return await asyncio.to_thread(self.daemon.call, verb)

    async def kill(self) -> None:
        """kill -9, and a new process in its place."""
        self.up.clear()
        self.killed_at.append(monotonic())
        await asyncio.to_thread(self.daemon.signal, signal.SIGKILL)
        self.answers = 0
        self.readings.clear()
        self.daemon.start()
        await asyncio.to_thread(self.daemon.wait, lambda status: True)
        self.up.set()


class Soak:
    """One soak of a running cloud, the link before it, and the edges behind that."""

    def __init__(
        self,
        cloud: Watched,
        edges: Sequence[Watched],
        link: EmulatedLink,
        token: EdgeToken,
        questions: Sequence[Question],
        sessions: int,
    ):
        self._cloud, self._edges = cloud, edges
        self._link = link
        self._token = token
        self._let_in, self._let_in_at = asyncio.Event(), 0.0
        self._let_in.set()
        self._questions = questions
        self._sessions = sessions
        self._answers = Answers()
        self._faults: Counter[str] = Counter()

    async def run(self, faults: Iterable[Fault], seconds: float, seed: int) -> Soaked:
        """Asks for so long, then what runs comes to its end, and what is left over is counted.

        Raises DaemonError when a daemon ends by itself.
        """
        everybody = (self._cloud, *self._edges)
        for watched in everybody:
            watched.up.set()
            watched.idle_fds, watched.idle_tasks = await _held(watched)
        start = monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(everybody, start))
                async with asyncio.TaskGroup() as work:
                    for number in range(self._sessions):
                        work.create_task(self._client(number, start + seconds, seed))
                    work.create_task(self._fail(faults, start))
                watching.cancel()
        except ExceptionGroup as failed:
            raise _first(failed) from None
        took_s = monotonic() - start
        await self._come_to_rest()
        daemons = [await self._left(watched) for watched in everybody]
        return Soaked(took_s, self._sessions, self._faults, self._answers, daemons)

    # -- what goes wrong

    async def _fail(self, faults: Iterable[Fault], start: float) -> None:
        for fault in faults:
            await asyncio.sleep(max(0.0, start + fault.at_s - monotonic()))
            self._faults[fault.kind] += 1
            await self._do(fault)

    async def _do(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.CUT:
                self._link.cut()
            case Kind.STALL:
                self._link.stall(fault.for_s)
            case Kind.HALF_OPEN:
                self._link.black_hole()
                await asyncio.sleep(fault.for_s)
                self._link.restore()
            case Kind.CORRUPT:
                self._link.corrupt()
            case Kind.FULL_DISK:
                await self._without_room(fault.for_s)
            case Kind.EXPIRED:
                await self._without_token(fault.for_s)
            case Kind.KILL_CLOUD:
                await self._cloud.kill()
            case Kind.KILL_EDGE:
                await self._edges[fault.which % len(self._edges)].kill()
            case unreachable:
                assert_never(unreachable)

    async def _without_room(self, for_s: float) -> None:
        everybody = (self._cloud, *self._edges)
        for watched in everybody:
            fill_disk(watched.pid(), watched.daemon.log)
        await asyncio.sleep(for_s)
        for watched in everybody:
            free_disk(watched.pid())

    async def _without_token(self, for_s: float) -> None:
        """Also waits for the edges to be back: what they are asked before may still end with the error."""
        self._let_in.clear()
        self._token.expire()
        await asyncio.sleep(NOTICED_S + for_s)
        self._token.renew()
        deadline = monotonic() + QUIET_S
        while monotonic() < deadline:
            edges = [await edge.ask("status") for edge in self._edges]
            if all(edge["link"]["state"] == "connected" for edge in edges):
                break
            await asyncio.sleep(READ_EVERY_S)
        self._let_in_at = monotonic()
        self._let_in.set()

    # -- who asks

    async def _client(self, number: int, until: float, seed: int) -> None:
        rng = random.Random(seed * 1009 + number)
        edge = self._edges[number % len(self._edges)]
        while monotonic() < until:
            await edge.up.wait()
            await self._ask(edge, rng.choice(self._questions), leaves=rng.random() < LEAVING)

    async def _ask(self, edge: Watched, question: Question, *, leaves: bool) -> None:
        begun = monotonic()
        try:
            outcome, reason = await self._answer(edge, question, leaves=leaves)
        except TimeoutError:
            outcome, reason = Outcome.HUNG, f"for {HANG_S:g} s"
        except EcdError as e:
            outcome, reason = self._explained(e, edge, begun)
        self._answers.end(outcome, reason)
        edge.answers += 1
        self._cloud.answers += 1
        if outcome is Outcome.REFUSED:
            await self._let_in.wait()

    def _explained(self, error: EcdError, edge: Watched, begun: float) -> tuple[Outcome, str]:
        """The two errors that are the client's to see: its own edge is gone, or its edge's token was bad."""
        if isinstance(error, DaemonError) and any(begun <= at for at in edge.killed_at):
            return Outcome.ENDED, ""
        bad_since = not self._let_in.is_set() or begun <= self._let_in_at
        if bad_since and error.code is Code.UNAVAILABLE and self._token.error in str(error):
            return Outcome.REFUSED, ""
        return Outcome.FAILED, f"{error.code.name} {error}"

    async def _answer(self, edge: Watched, question: Question, *, leaves: bool) -> tuple[Outcome, str]:
        """How one answer ended. Raises EcdError, and TimeoutError when it hangs."""
        ids: list[int] = []
        longest_s, last = 0.0, monotonic()
        loop = asyncio.get_running_loop()
        async with (
            asyncio.timeout(HANG_S) as limit,
            Client(edge.daemon.socket) as client,
            aclosing(client.stream(**question.arguments)) as events,
        ):
            async for event in events:
                limit.reschedule(loop.time() + HANG_S)
                now = monotonic()
                longest_s, last = max(longest_s, now - last), now
                match event["event"]:
                    case "text":
                        ids += event["ids"]
                        if leaves:
                            return Outcome.LEFT, ""
                    case "done":
                        self._answers.tokens += len(ids)
                        if event["stats"]["resumed"]:
                            self._answers.resumed += event["stats"]["resumed"]
                            self._answers.pauses_s.append(longest_s)
                        told = tuple(ids), tuple(event["token_ids"])
                        if told == (question.expected, question.expected):
                            return Outcome.RIGHT, ""
                        return Outcome.WRONG, _difference(question, *told)
        raise DaemonError("the answer ended without a result")

    # -- who watches

    async def _watch(self, everybody: Sequence[Watched], start: float) -> None:
        tell_at = start + TELL_EVERY_S
        while True:
            for watched in everybody:
                pid = watched.pid()
                if watched.up.is_set() and watched.answers >= WARM_UP_ANSWERS:
                    with suppress(OSError):
                        watched.readings.append(usage_of(pid))
            if monotonic() >= tell_at:
                tell_at += TELL_EVERY_S
                counts = ", ".join(f"{count} {outcome}" for outcome, count in self._answers.outcomes.items())
                click.echo(
                    f"{monotonic() - start:.0f} s, {sum(self._faults.values())} faults: {counts}", err=True
                )
            await asyncio.sleep(READ_EVERY_S)

    async def _come_to_rest(self) -> None:
        """Returns when nothing runs any more and only the edges' links are left, or it has taken too long."""
        deadline = monotonic() + QUIET_S
        while monotonic() < deadline:
            told = await self._cloud.ask("status")
            edges = [await edge.ask("status") for edge in self._edges]
            linked = all(each["link"]["state"] == "connected" and not each["sessions"] for each in edges)
            if linked and told["connections"] == len(edges) and not told["running"] + told["queued"]:
                return
            await asyncio.sleep(READ_EVERY_S)

    async def _left(self, watched: Watched) -> Held:
        fds, tasks = await _held(watched)
        sessions = await watched.ask("sessions")
        early, late = early_and_late(watched.readings) or (None, None)
        log = watched.daemon.log.read_text(errors="replace")
        return Held(
            name=watched.name,
            starts=1 + len(watched.killed_at),
            idle_fds=watched.idle_fds,
            left_fds=fds,
            idle_tasks=watched.idle_tasks,
            left_tasks=tasks,
            left_sessions=len(sessions["sessions"]),
            exceptions=exceptions_in(log),
            states_lost=states_lost_in(log),
            early_bytes=early,
            late_bytes=late,
        )


async def _held(watched: Watched) -> tuple[int, int]:
    """File descriptors and tasks of a daemon that nobody asks anything but this."""
    tasks = (await watched.ask("stats"))["tasks"]
    await asyncio.sleep(0.2)  # for that connection to be closed at the other end too
    return usage_of(watched.pid()).fds, tasks


def _difference(question: Question, streamed: tuple[int, ...], result: tuple[int, ...]) -> str:
    """Where an answer left what was expected, for a person."""
    if streamed != result:
        return (
            f"{question.name}: {len(streamed)} tokens were streamed that are not the result's {len(result)}"
        )
    pairs = zip(result, question.expected, strict=False)
    at = next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs), len(question.expected))
    return f"{question.name}: another text from token {at} of {len(question.expected)} on"


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = failed.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
