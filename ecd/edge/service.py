"""The edge daemon: prompts in from the control socket, hints up, committed tokens down, text out.

Wires `Generation`, a `Drafter` and the `Uplink` together. The event loop owns all state; the drafter's thread
only runs one forward at a time on what it is handed.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, assert_never

from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Answer, Chunk, EdgeTotals
from ecd.edge.commands import Command, Emit, Finished, Send
from ecd.edge.drafter import Drafter, DraftTask
from ecd.edge.generation import Generation, Phase
from ecd.edge.latency import Latencies
from ecd.edge.meter import Meter
from ecd.edge.pacing import Pacer
from ecd.edge.reopening import Reopen
from ecd.edge.request import Request
from ecd.edge.survival import EDGE_MEMORY, Survival
from ecd.edge.timeline import Timeline
from ecd.edge.uplink import Uplink
from ecd.errors import BadRequest, Code, ContextOverflow, EcdError, LinkError, ProtocolError, RemoteError
from ecd.sampling import Guess
from ecd.text import TextStream
from ecd.wire.connection import Closed, Connected, Event, PeerDraining, Received, readable
from ecd.wire.messages import Finish, Reset, Tokens

log = logging.getLogger(__name__)

# Where no cloud has told its own limit yet; as ids they fit a frame.
MAX_CONTEXT_TOKENS = 1 << 20
MAX_AHEAD = 1024


class EdgeService:
    """All answers of one edge.

    acceptance, meter: what was learned, for the drafter to read too. piece: a token's bytes. link_wait_s: how
    long an answer may go without a link before it fails.
    """

    def __init__(
        self,
        drafter: Drafter,
        acceptance: Acceptance,
        meter: Meter,
        *,
        n_vocab: int,
        piece: Callable[[int], bytes],
        link_wait_s: float,
    ):
        self.totals = EdgeTotals()
        self.latencies = Latencies()
        self.answers: dict[int, Answer] = {}
        self.draining = False
        self.cloud_model: dict[str, Any] = {}
        self.cloud_limits: dict[str, Any] = {}
        self.cloud_ends: frozenset[int] = frozenset()
        self.acceptance = acceptance
        self.meter = meter
        self.survival = Survival(EDGE_MEMORY)
        self._drafter = drafter
        self._free_slots = list(range(drafter.slots - 1, -1, -1))
        self._n_vocab = n_vocab
        self._piece = piece
        self._link_wait_s = link_wait_s
        self._thread = ThreadPoolExecutor(1, "drafter")
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._by_stream: dict[int, Answer] = {}
        self._to_release: list[int] = []
        self._to_steer: list[Answer] = []
        self._draft_wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._uplink: Uplink | None = None
        self._takes_alternates = False

    def attach(self, uplink: Uplink) -> None:
        """Gives the service its link; before anything is asked of it."""
        self._uplink = uplink

    # -- requests

    def start(self, request: Request) -> Answer:
        """Begins an answer.

        Raises LinkError while draining, or when the cloud refuses this edge; ContextOverflow, BadRequest.
        """
        if self.draining:
            raise LinkError("this edge is draining and takes no new prompts")
        if self.uplink.refused:
            raise LinkError(
                f"the cloud at {self.uplink.host}:{self.uplink.port} refuses this edge: {self.uplink.refused}"
            )
        room = self.cloud_limits.get("max_context", MAX_CONTEXT_TOKENS)
        if len(request.prompt) + request.max_tokens > room:
            raise ContextOverflow(
                f"{len(request.prompt)} prompt tokens and max_tokens {request.max_tokens} do not fit the "
                f"cloud's context of {room}; shorten one, or raise context_tokens at the cloud"
            )
        request.sampling.check_vocabulary(self._n_vocab)
        if not all(0 <= token < self._n_vocab for token in request.prompt):
            raise BadRequest(f"the prompt has a token id that is not in the vocabulary of {self._n_vocab}")
        now = monotonic()
        pacer = Pacer(request.objective, self.survival, self.meter.max_verify)
        generation = Generation(request, self.acceptance, pacer)
        answer = Answer(next(self._ids), generation, TextStream(request.stop), now, now)
        if request.timeline:
            answer.timeline = Timeline(now, len(request.prompt))
        fits = len(request.prompt) + request.max_tokens <= self._drafter.slot_tokens
        if request.draft and request.ahead != 0 and fits and self._free_slots:
            answer.generation.slot = self._free_slots.pop()
        self.answers[answer.id] = answer
        self.totals.answers += 1
        self._open(answer)
        self._draft_wanted.set()
        return answer

    def room_behind(self, prompt_tokens: int) -> int:
        """Tokens that fit behind such a prompt: at the cloud, and in a drafting slot that is half free."""
        cloud = int(self.cloud_limits.get("max_context", MAX_CONTEXT_TOKENS)) - prompt_tokens
        slot = self._drafter.slot_tokens - prompt_tokens
        return max(1, min(cloud, slot) if 2 * slot >= self._drafter.slot_tokens else cloud)

    def cancel(self, answer_id: int) -> None:
        """Ends an answer. Raises BadRequest when there is none of that number."""
        answer = self.answers.get(answer_id)
        if answer is None:
            raise BadRequest(f"no session {answer_id} is running; `ecdctl sessions` lists them")
        self._abandon(answer)
        self.totals.cancelled += 1
        self._end(answer, RemoteError(Code.CANCELLED, f"session {answer_id} was cancelled"))

    async def drain(self) -> None:
        """Takes no new prompts; returns when the last answer is complete."""
        self.draining = True
        while self.answers:
            self._idle.clear()
            await self._idle.wait()

    def stop(self) -> None:
        """Ends what runs."""
        for answer in list(self.answers.values()):
            self._abandon(answer)
            self._end(answer, RemoteError(Code.CANCELLED, "the edge is stopping"))

    def close(self) -> None:
        """Frees the drafter; nothing may be asked of it any more."""
        self._thread.submit(self._drafter.close)
        self._thread.shutdown()

    @property
    def uplink(self) -> Uplink:
        """The link to the cloud."""
        if self._uplink is None:
            raise LinkError("the edge has no link yet")
        return self._uplink

    # -- drafting

    async def draft_forever(self) -> None:
        """Drafts for every answer that may be drafted for; sleeps while none may."""
        while True:
            wanted = [
                (answer, tasks)
                for answer in list(self.answers.values())
                if (tasks := answer.generation.next_tasks(self._drafter.branches))
            ]
            if not wanted and not self._to_release:
                self._draft_wanted.clear()
                await self._draft_wanted.wait()
                continue
            release, self._to_release = self._to_release, []
            batch = [task for _, tasks in wanted for task in tasks]
            results = await self._loop.run_in_executor(self._thread, self._run_draft, release, batch)
            self._drafted(wanted, results)

    def _run_draft(
        self, release: list[int], tasks: list[DraftTask]
    ) -> tuple[list[tuple[Guess, ...]] | Exception, float]:
        """In the drafter's thread. A failure ends the drafting of those that took part, not the answers."""
        start = monotonic()
        try:
            for slot in release:
                self._drafter.release(slot)
            return (list(self._drafter.draft(tasks)) if tasks else []), monotonic() - start
        except Exception as e:
            log.exception("drafting %d lines failed; their answers go on without", len(tasks))
            return e, 0.0

    def _drafted(
        self,
        wanted: list[tuple[Answer, list[DraftTask]]],
        drafted: tuple[list[tuple[Guess, ...]] | Exception, float],
    ) -> None:
        results, seconds = drafted
        if isinstance(results, Exception):
            for answer, _ in wanted:
                if answer.id in self.answers:
                    self._free(answer)
                    self._perform(answer, answer.generation.stop_drafting())
            return
        # Forwards that read a prompt, or that only copied, say nothing of what a guess costs.
        if results and all(guesses and guesses[0].drafter == "model" for guesses in results):
            self.meter.drafted(seconds)
        left = iter(results)
        for answer, tasks in wanted:
            guesses = list(itertools.islice(left, len(tasks)))
            if answer.id in self.answers:
                now = monotonic()
                if answer.timeline is not None:
                    answer.timeline.drafted(tasks, guesses, now - seconds, now)
                self._perform(answer, answer.generation.drafted(tasks, guesses, now))

    def _free(self, answer: Answer) -> None:
        slot = answer.generation.slot
        if slot is not None:
            self._to_release.append(slot)
            self._free_slots.append(slot)
            answer.generation.slot = None
            self._draft_wanted.set()

    # -- link

    def on_event(self, event: Event) -> None:
        """Whatever happens on the link."""
        match event:
            case Connected():
                self.cloud_model = getattr(event.peer, "model", {})
                self.cloud_limits = event.peer.limits
                ends = event.peer.fingerprint["special"].get("end_of_generation")
                self.cloud_ends = frozenset(ends if isinstance(ends, list) else ())
                self._takes_alternates = "alternates" in event.peer.features
                for answer in list(self.answers.values()):
                    self._open(answer)
            case Received():
                self._on_message(event)
            case PeerDraining():
                log.info("the cloud takes no new sessions: %s", event.message)
                self.uplink.reason = f"the cloud takes no new sessions: {event.message}"
            case Closed():
                self._by_stream.clear()
                for answer in self.answers.values():
                    answer.generation.lost()
                    answer.waiting_since = monotonic()

    async def tend_forever(self) -> None:
        """Opens waiting answers again; fails those that waited too long, or that the cloud will not have."""
        while True:
            await asyncio.sleep(0.25 if self.answers else 1.0)
            now = monotonic()
            for answer in list(self.answers.values()):
                if answer.generation.phase is not Phase.WAITING:
                    continue
                if self.uplink.refused:
                    self._end(answer, LinkError(f"the cloud refuses this edge: {self.uplink.refused}"))
                elif now - answer.waiting_since > self._link_wait_s:
                    reason = f"no link to the cloud for {self._link_wait_s:g} s: {self.uplink.reason}"
                    self._end(answer, LinkError(reason))
                else:
                    self._open(answer)

    def _open(self, answer: Answer) -> None:
        link = self.uplink.link
        if link is None or link.connection.peer_draining or answer.generation.phase is not Phase.WAITING:
            return
        stream = link.connection.new_stream()
        self._by_stream[stream] = answer
        # A cloud that names no limit takes hints however far ahead.
        max_ahead = self.cloud_limits.get("max_ahead", MAX_AHEAD)
        try:
            commands = answer.generation.open(
                stream,
                max_ahead,
                alternates=self._takes_alternates,
                conditions=self.meter.conditions,
                now=monotonic(),
            )
            self._perform(answer, commands)
        except EcdError as e:
            self._end(answer, e)

    def _abandon(self, answer: Answer) -> None:
        """Tells the cloud that nobody wants the rest."""
        if answer.generation.phase is Phase.STREAMING and self.uplink.link is not None:
            self.uplink.link.send(Reset(answer.generation.stream, Code.CANCELLED, "cancelled by the user"))

    def _on_message(self, event: Received) -> None:
        message = event.message
        answer = self._by_stream.get(message.stream)
        if answer is None:
            return
        answer.wire_down += event.size
        match message:
            case Tokens():
                try:
                    told = (token for each in message.logprobs or () for token, _ in each.top)
                    largest = max(itertools.chain(message.ids, told), default=0)
                    if largest >= self._n_vocab:
                        raise ProtocolError(f"token id {largest} is not in the vocabulary of {self._n_vocab}")
                    self._measure(answer, message)
                    now = monotonic()
                    if answer.timeline is not None:
                        guesses = answer.generation.lines.main.guesses
                        answer.timeline.arrived(message, guesses, self.meter.rtt_s, now)
                    self._perform(answer, answer.generation.receive(message, now))
                    self._steer_soon(answer)
                except ProtocolError as e:
                    log.error("the cloud broke the protocol: %s", e)
                    if self.uplink.link is not None:
                        self.uplink.link.close(e.code, str(e))
                self._draft_wanted.set()
            case Reset():
                del self._by_stream[message.stream]
                reason = readable(message.message)
                answer.generation.lost()
                match answer.reopening.after(message.code, len(answer.generation.committed)):
                    case Reopen.NOW:
                        log.warning("session %d is opened again: %s", answer.id, reason)
                        self._open(answer)
                    case Reopen.LATER:
                        # Not this cloud, or not now: `tend_forever` tries again.
                        self.uplink.reason = reason
                    case Reopen.NEVER:
                        self._end(answer, RemoteError(message.code, reason))
                    case other:
                        assert_never(other)
            case _:
                log.debug("ignored %s", type(message).__name__)

    def _steer_soon(self, answer: Answer) -> None:
        if not self._to_steer:
            # In the next turn of the loop clients get what has come; they are not to wait for this.
            self._loop.call_soon(self._loop.call_soon, self._steer)
        self._to_steer.append(answer)

    def _steer(self) -> None:
        answers, self._to_steer = self._to_steer, []
        for answer in answers:
            if answer.id in self.answers:
                self._perform(answer, answer.generation.steer(self.meter.conditions, monotonic()))
        self._draft_wanted.set()

    def _measure(self, answer: Answer, message: Tokens) -> None:
        # The first step has read a piece of the prompt.
        if answer.generation.origins:
            self.meter.stepped(message.step_us / 1e6, message.verified)
        link = self.uplink.link
        if link is not None:
            self.meter.told(link.connection.peer_load)
            self.meter.rtt_s, self.meter.jitter_s = (
                link.connection.rtt.smoothed_s,
                link.connection.rtt.variation_s,
            )

    def _on_timer(self, answer: Answer) -> None:
        answer.timer = answer.due = None
        if answer.id in self.answers:
            self._perform(answer, answer.generation.timeout(monotonic()))

    def _perform(self, answer: Answer, commands: list[Command]) -> None:
        """Does what the generation wants, and sees to its timer."""
        if answer.timeline is not None:
            answer.timeline.performed(commands, monotonic())
        for command in commands:
            match command:
                case Send():
                    self._send(answer, command.message)
                case Emit():
                    self._emit(answer, command)
                case Finished():
                    self.totals.finished += 1
                    self._end(answer, command.reason)
        due = answer.generation.next_timer()
        if due == answer.due:
            return
        answer.due = due
        if answer.timer is not None:
            answer.timer.cancel()
        answer.timer = (
            None
            if due is None
            else self._loop.call_later(max(0.0, due - monotonic()), self._on_timer, answer)
        )

    def _send(self, answer: Answer, message: Any) -> None:
        if self.uplink.link is not None:
            answer.wire_up += self.uplink.link.send(message)
            rtt_s = self.uplink.link.connection.rtt.smoothed_s
            answer.rtt_ms = None if rtt_s is None else rtt_s * 1000

    def _emit(self, answer: Answer, emit: Emit) -> None:
        now = answer.waiting_since = monotonic()
        waited_s = now - (answer.last_at or answer.started_at)
        self.latencies.came(len(emit.ids), waited_s, first=answer.first_at is None)
        if answer.first_at is None:
            answer.first_at, answer.first_tokens = now, len(emit.ids)
        answer.last_at = now
        done = answer.generation.phase is Phase.FINISHED
        last = len(emit.ids) - 1 if done else None
        pieces = tuple(
            answer.text.feed(self._piece(token), last=index == last) for index, token in enumerate(emit.ids)
        )
        names = tuple(origin.label for origin in emit.origins)
        answer.chunks.put_nowait(Chunk("".join(pieces), emit.ids, names, pieces, emit.logprobs))

    def _end(self, answer: Answer, outcome: EcdError | Finish) -> None:
        if self.answers.pop(answer.id, None) is None:
            return
        self._by_stream.pop(answer.generation.stream, None)
        self._free(answer)
        answer.generation.phase = Phase.FINISHED
        self.totals.failed += isinstance(outcome, EcdError) and outcome.code is not Code.CANCELLED
        tally = answer.generation.tally
        self.totals.committed += len(answer.generation.origins)
        self.totals.drafted += tally.drafted
        self.totals.verified += tally.verified
        self.totals.accepted += tally.accepted
        self.totals.target_forwards += tally.forwards
        self.totals.resumed += tally.resumed
        self.totals.alternates_sent += tally.alternates_sent
        self.totals.alternates_used += tally.alternates_used
        answer.chunks.put_nowait(outcome)
        if not self.answers:
            self._idle.set()
