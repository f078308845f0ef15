"""The edge daemon: prompts in from the control socket, hints up, committed tokens down, text out.

Wires `Generation`, a `Drafter` and the `Uplinks` together. The event loop owns all state; the drafter's
thread only runs one forward at a time on what it is handed.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, assert_never
from weakref import WeakKeyDictionary

from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Answer, Chunk, EdgeTotals
from ecd.edge.assisting import Assisting, Put, put
from ecd.edge.commands import Command, Emit, Finished, Send
from ecd.edge.drafter import Drafter, DraftTask
from ecd.edge.ending import Ending
from ecd.edge.generation import Generation, Phase
from ecd.edge.known_prefixes import KnownPrefixes
from ecd.edge.meter import Meter
from ecd.edge.meters import Meters
from ecd.edge.overheard import begun
from ecd.edge.pacing import Pacer
from ecd.edge.page_holder import PageHolder
from ecd.edge.reopening import Reopen
from ecd.edge.request import LinkLoss, Mode, Request
from ecd.edge.survival import EDGE_MEMORY, Survival
from ecd.edge.threshold import Thresholds
from ecd.edge.timeline import Timeline
from ecd.edge.turns import Turns
from ecd.edge.uplink import Uplink
from ecd.edge.uplinks import MAX_CONTEXT_TOKENS, Uplinks
from ecd.errors import (
    BadRequest,
    Code,
    ContextOverflow,
    EcdError,
    EngineError,
    LinkError,
    Overloaded,
    ProtocolError,
    RemoteError,
)
from ecd.journal import Journal, Ring
from ecd.pages import Cells, Encoding
from ecd.sampling import Guess
from ecd.text import TextStream
from ecd.wire.connection import Closed, Connected, Event, PeerDraining, Received, readable
from ecd.wire.link import Link
from ecd.wire.messages import Audit, Credit, Finish, Kv, Open, Reset, Tokens

log = logging.getLogger(__name__)

# Where a cloud tells no limit of its own.
MAX_AHEAD = 1024
# A cloud that ends a stream with one of these may do better later, and another cloud now.
TROUBLED = (Code.BUSY, Code.ENGINE_RESTARTED)


class EdgeService:
    """All answers of one edge.

    acceptance, meter: what was learned, for the drafter to read too. piece: a token's bytes. ends: ids that
    end a text by the draft model's list, for answers that no cloud has a say in. An answer that no cloud
    takes fails after link_wait_s, or goes on from the draft after link_grace_s, as its request says. pages:
    the drafter's cells, and how pages for them are to travel (None: none are asked for).
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
        link_grace_s: float = 1.0,
        ends: frozenset[int] = frozenset(),
        pages: PageHolder | None = None,
        encoding: Encoding | None = None,
    ):
        self.totals = EdgeTotals()
        self.answers: dict[int, Answer] = {}
        self.draining = False
        self.cloud_model: dict[str, Any] = {}
        self.cloud_ends: frozenset[int] = ends
        self.acceptance = acceptance
        self.meter = meter
        self._meters: Meters[Uplink] = Meters(meter)
        self.survival = Survival(EDGE_MEMORY)
        self.thresholds = Thresholds()
        self.ring = Ring(monotonic)
        # Told of each answer that begins, and of each that has ended.
        self.on_begin: list[Callable[[Answer], None]] = []
        self.on_end: list[Callable[[Answer, EcdError | Finish], None]] = []
        self._drafter = drafter
        self._free_slots = list(range(drafter.slots - 1, -1, -1))
        self._n_vocab = n_vocab
        self._piece = piece
        self._ends = ends
        self._link_wait_s = link_wait_s
        self._link_grace_s = link_grace_s
        self._thread = ThreadPoolExecutor(1, "drafter")
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._by_stream: dict[tuple[Uplink, int], Answer] = {}
        self._to_release: list[int] = []
        self._to_steer: list[Answer] = []
        self._draft_wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._uplinks: Uplinks | None = None
        # Each cloud has got other texts.
        self._known: WeakKeyDictionary[Uplink, KnownPrefixes] = WeakKeyDictionary()
        self.assisting = Assisting(pages, encoding, self._meters, self.totals)

    def attach(self, uplinks: Uplinks) -> None:
        """Gives the service its links; before anything is asked of it."""
        self._uplinks = uplinks

    # -- requests

    def start(self, request: Request) -> Answer:
        """Begins an answer.

        Raises LinkError while draining, or when the cloud refuses this edge; ContextOverflow, BadRequest;
        Overloaded when it needs a drafting slot and there is none.
        """
        if self.draining:
            raise LinkError("this edge is draining and takes no new prompts")
        alone = request.mode is Mode.EDGE_ONLY
        if self.uplinks.refused and not alone:
            raise LinkError(self.uplinks.refused)
        whose = "edge" if alone else "cloud"
        room = self._drafter.slot_tokens if alone else self.max_context or MAX_CONTEXT_TOKENS
        if len(request.prompt) + request.max_tokens > room:
            raise ContextOverflow(
                f"{len(request.prompt)} prompt tokens and max_tokens {request.max_tokens} do not fit the "
                f"{whose}'s context of {room}; shorten one, or raise context_tokens at the {whose}"
            )
        request.sampling.check_vocabulary(self._n_vocab)
        if not all(0 <= token < self._n_vocab for token in request.prompt + request.committed):
            raise BadRequest(f"the prompt has a token id that is not in the vocabulary of {self._n_vocab}")
        slot = self._slot_for(request)
        now = monotonic()
        number = next(self._ids)
        if slot is not None and request.mode.edge_commits:
            # Not noted in the ring: what is shared of thresholds could not be said again.
            ends = self._ends if alone else self.cloud_ends
            turns = Turns.of(request, self.thresholds, self._piece, ends)
            pacer = Pacer(request.objective, self.survival, self.meter.max_verify)
            generation = Generation(request, self.acceptance, pacer, turns, slot=slot)
        else:
            generation = begun(
                Journal(self.ring, number),
                request,
                slot,
                self.meter.max_verify,
                self.acceptance,
                self.survival,
            )
        answer = Answer(number, generation, TextStream(request.stop), now, now)
        if request.timeline:
            answer.timeline = Timeline(now, len(request.prompt))
        self.answers[answer.id] = answer
        self.totals.answers += 1
        if alone:
            generation.phase = Phase.ALONE
        for tell in self.on_begin:
            tell(answer)
        self._open(answer)
        self._draft_wanted.set()
        return answer

    def _slot_for(self, request: Request) -> int | None:
        """A drafting slot, if the answer is to have one and one is free that it fits.

        Raises Overloaded where it cannot do without.
        """
        fits = len(request.prompt) + request.max_tokens <= self._drafter.slot_tokens
        drafts = request.draft and (request.ahead != 0 or request.mode.edge_commits)
        if drafts and fits and self._free_slots:
            return self._free_slots.pop()
        if request.mode is Mode.EDGE_ONLY:
            raise Overloaded(
                f"all {self._drafter.slots} drafting slots are in use, and mode edge-only needs one; "
                "try again later, or raise sessions at the edge"
            )
        return None

    def room_behind(self, prompt_tokens: int) -> int:
        """Tokens that fit behind such a prompt: at the cloud, and in a drafting slot that is half free."""
        cloud = (self.max_context or MAX_CONTEXT_TOKENS) - prompt_tokens
        slot = self._drafter.slot_tokens - prompt_tokens
        return max(1, min(cloud, slot) if 2 * slot >= self._drafter.slot_tokens else cloud)

    def cancel(self, answer_id: int) -> None:
        """Ends an answer. Raises BadRequest when there is none of that number."""
        answer = self.answers.get(answer_id)
        if answer is None:
            raise BadRequest(f"no session {answer_id} is running; `ecdctl sessions` lists them")
        self._abandon(answer, "cancelled by the user")
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
            self._abandon(answer, "the edge is stopping")
            self._end(answer, RemoteError(Code.CANCELLED, "the edge is stopping"))

    def kv_stats(self) -> dict[str, int]:
        """What the drafter keeps of texts that are over."""
        return self._drafter.stats()

    def close(self) -> None:
        """Frees the drafter; nothing may be asked of it any more."""
        self._thread.submit(self._drafter.close)
        self._thread.shutdown()

    async def drafter_turn(self) -> None:
        """Returns once the drafter's thread has had a turn: not before a forward under way has ended."""
        await self._loop.run_in_executor(self._thread, lambda: None)

    def summary(self) -> str:
        """One line for the service manager."""
        state, uplinks = "draining" if self.draining else "serving", self.uplinks
        cloud = uplinks.shown.key if uplinks.shown else "a cloud"
        return f"{state}: {len(self.answers)} answers running, link to {cloud} {uplinks.state}"

    @property
    def uplinks(self) -> Uplinks:
        """The links to the clouds."""
        if self._uplinks is None:
            raise LinkError("the edge has no link yet")
        return self._uplinks

    @property
    def max_context(self) -> int | None:
        """Tokens that prompt and answer together may have; None while no cloud has told."""
        return self.uplinks.fleet.max_context

    @property
    def bound(self) -> bool:
        """Whether an answer has tokens already, which only the model that they are of may go on from."""
        generations = [answer.generation for answer in self.answers.values()]
        return any(g.origins and g.phase is not Phase.ALONE for g in generations)

    # -- drafting

    async def draft_forever(self) -> None:
        """Drafts for every answer that may be drafted for; sleeps while none may."""
        while True:
            while self.assisting.puts:
                await self._put(self.assisting.puts.popleft())
            wanted = [
                (answer, tasks)
                for answer in list(self.answers.values())
                if not self.assisting.holds_back(answer)
                and (tasks := answer.generation.next_tasks(self._drafter.branches))
            ]
            if not wanted and not self._to_release and not self.assisting.puts:
                self._draft_wanted.clear()
                await self._draft_wanted.wait()
                continue
            release, self._to_release = self._to_release, []
            batch = [task for _, tasks in wanted for task in tasks]
            results = await self._loop.run_in_executor(self._thread, self._run_draft, release, batch)
            self._drafted(wanted, results)

    async def _put(self, job: Put) -> None:
        """Pages become cells; without them the drafter reads the prompt by itself."""
        error: Exception | None = None
        try:
            assert self.assisting.holder is not None
            await self._loop.run_in_executor(self._thread, put, self.assisting.holder, job)
        except Exception as e:
            error = e
        self.assisting.done(job, error)

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
                    if answer.generation.phase is Phase.ALONE:
                        self._end(answer, EngineError(f"the draft model failed: {results}"))
            return
        # Forwards that read a prompt, or that only copied, say nothing of what a guess costs.
        reading = any(answer.drafted_at is None for answer, _ in wanted)
        if not reading and all(guesses and guesses[0].drafter == "model" for guesses in results):
            self._meters.drafted(seconds)
        left = iter(results)
        for answer, tasks in wanted:
            guesses = list(itertools.islice(left, len(tasks)))
            if answer.id in self.answers:
                now = monotonic()
                if answer.drafted_at is None and any(g.drafter == "model" for run in guesses for g in run):
                    answer.drafted_at = now
                if answer.timeline is not None:
                    answer.timeline.drafted(tasks, guesses, now - seconds, now)
                self._perform(answer, answer.generation.drafted(tasks, guesses, now))
        self.assisting.read([answer for answer, _ in wanted if answer.id in self.answers], seconds)

    def _free(self, answer: Answer) -> None:
        slot = answer.generation.slot
        if slot is not None:
            answer.draft_prefill = self._drafter.prefill(slot)
            self._to_release.append(slot)
            self._free_slots.append(slot)
            answer.generation.slot = None
            self.assisting.forget(answer)
            self._draft_wanted.set()

    # -- link

    def on_event(self, uplink: Uplink, event: Event) -> None:
        """Whatever happens on the link to a cloud."""
        match event:
            case Connected():
                self.cloud_model = getattr(event.peer, "model", {})
                ends = event.peer.fingerprint["special"].get("end_of_generation")
                self.cloud_ends = frozenset(ends if isinstance(ends, list) else ())
                self._meters.at(uplink).link_bytes_per_s = None
                for answer in list(self.answers.values()):
                    self._open(answer)
            case Received():
                self._on_message(uplink, event)
            case PeerDraining():
                self._move_on()
            case Closed():
                for answer in [each for (at, _), each in self._by_stream.items() if at is uplink]:
                    self._close_stream(answer)
                    answer.waiting_since = monotonic()
                    self._open(answer)

    async def tend_forever(self) -> None:
        """Sees to answers now and then."""
        while True:
            await asyncio.sleep(0.25 if self.answers else 1.0)
            self.tend()

    def tend(self) -> None:
        """Opens waiting answers again; fails those that waited too long, or that the cloud will not have."""
        now = monotonic()
        for answer in list(self.answers.values()):
            if answer.generation.phase is not Phase.WAITING:
                continue
            if self.uplinks.refused:
                self._end(answer, LinkError(self.uplinks.refused))
            elif now - answer.waiting_since > self._link_wait_s:
                reason = f"no link to the cloud for {self._link_wait_s:g} s: {self.uplinks.why_none}"
                self._end(answer, LinkError(reason))
            else:
                self._open(answer)
                self._degrade(answer, now)
        self._move_on()

    def _degrade(self, answer: Answer, now: float) -> None:
        """An answer that no cloud takes goes on from the draft model's own tokens, if it may and can."""
        generation, request = answer.generation, answer.generation.request
        if request.link_loss is not LinkLoss.DEGRADE or generation.phase is not Phase.WAITING:
            return
        if generation.alone is None and now - answer.waiting_since >= self._link_grace_s:
            log.warning("session %d goes on without a cloud: %s", answer.id, self.uplinks.why_none)
            if generation.turns is not None:
                # Has been told every token.
                ending = generation.turns.ending
            else:
                ending = Ending(TextStream(request.stop), self._piece, self.cloud_ends, request.max_tokens)
                for token in generation.committed:
                    ending.after(token)
            # Pages that were on their way do not come.
            self.assisting.forget(answer)
            self._perform(answer, generation.go_on_alone(ending))
            self._draft_wanted.set()

    def _move_on(self) -> None:
        """Answers leave a cloud that drains or is quiet, if another takes them."""
        for answer in list(self.answers.values()):
            if (
                answer.generation.phase is not Phase.STREAMING
                or answer.uplink is None
                or answer.link is not None
            ):
                continue
            to = self.uplinks.successor(answer.uplink, answer.generation.request.tokens)
            if to is not None:
                log.info("session %d goes on at %s, from %s", answer.id, to.key, answer.uplink.key)
                self._abandon(answer, "the answer goes on at another cloud")
                self._close_stream(answer)
                self._open(answer, to)

    def _close_stream(self, answer: Answer) -> None:
        """Nothing comes on the answer's stream any more."""
        if answer.uplink is not None:
            self._by_stream.pop((answer.uplink, answer.generation.stream), None)
        answer.generation.lost()

    def _open(self, answer: Answer, to: Uplink | None = None) -> None:
        """Sends a waiting answer to a cloud, if one takes it."""
        if answer.generation.phase is not Phase.WAITING:
            return
        request = answer.generation.request
        uplink = to or self.uplinks.choose(request.tokens)
        if uplink is None or uplink.link is None or uplink.link.connection.peer is None:
            self._fail_without_cloud(answer, LinkError(f"no link to the cloud: {self.uplinks.why_none}"))
            return
        connection, peer = uplink.link.connection, uplink.link.connection.peer
        stream = connection.new_stream()
        answer.uplink = uplink
        self._by_stream[uplink, stream] = answer
        self.uplinks.opened(uplink)
        whole = request.fresh or answer.reopening.whole or "prefix" not in peer.features
        try:
            commands = answer.generation.open(
                stream,
                peer.limits.get("max_ahead", MAX_AHEAD),
                alternates="alternates" in peer.features,
                commits="commit" in peer.features,
                conditions=self._meters.at(uplink).conditions,
                now=monotonic(),
                prefix=None if whole else self._known_at(uplink).longest(request.prompt),
            )
            self._perform(answer, commands)
            self.assisting.reopened(answer)
        except EcdError as e:
            self._end(answer, e)

    def _known_at(self, uplink: Uplink) -> KnownPrefixes:
        return self._known.setdefault(uplink, KnownPrefixes())

    def _fail_without_cloud(self, answer: Answer, error: EcdError) -> None:
        if answer.generation.request.link_loss is LinkLoss.FAIL:
            self._end(answer, error)

    def _abandon(self, answer: Answer, reason: str) -> None:
        """Tells the cloud, or the edge that it was handed over to, that nobody wants the rest from it."""
        link = answer.source
        if answer.generation.phase is Phase.STREAMING and link is not None:
            link.send(Reset(answer.generation.stream, Code.CANCELLED, reason))

    # -- answers that are handed over

    async def take_cells(self, answer: Answer) -> Cells | None:
        """The draft model's cells of the answer's text, as far as they hold it. Raises EngineError."""
        holder, slot = self.assisting.holder, answer.generation.slot
        if holder is None or slot is None:
            return None
        tokens = tuple(answer.generation.tokens)
        return await self._loop.run_in_executor(self._thread, holder.take, slot, tokens)

    def hand_over(self, answer: Answer, link: Link, stream: int) -> None:
        """The answer is opened on a stream of another edge's; its cloud and the drafter are done with it."""
        self._abandon(answer, "the answer goes on at another edge")
        self._close_stream(answer)
        self._free(answer)
        answer.generation.stop_drafting()
        answer.link = link
        # What is noted ends here: another edge's slot and speeds are not this one's to tell again.
        answer.generation.journal = None
        now = monotonic()
        self._perform(answer, answer.generation.open(stream, 0, alternates=False, conditions=None, now=now))

    def take_back(self, answer: Answer) -> None:
        """The other edge does not go on with it: the answer is opened at a cloud again."""
        answer.link = None
        answer.waiting_since = monotonic()
        answer.generation.lost()
        answer.generation.slot = self._slot_for(answer.generation.request)
        self._open(answer)
        self._draft_wanted.set()

    def _on_message(self, uplink: Uplink, event: Received) -> None:
        message = event.message
        answer = self._by_stream.get((uplink, message.stream))
        if answer is None:
            return
        answer.wire_down += event.size
        match message:
            case Tokens():
                self.on_tokens(answer, message)
            case Audit():
                try:
                    self._perform(answer, answer.generation.audited(message))
                except ProtocolError as e:
                    self._refuse(answer, e)
                if answer.id not in self.answers:
                    self.totals.target_forwards += message.forwards
                    self._forget_stream(answer)
            case Reset():
                reason = readable(message.message)
                self._close_stream(answer)
                if message.code is Code.UNKNOWN_PREFIX:
                    answer.generation.refused()
                    self._known_at(uplink).forget()
                if message.code in TROUBLED:
                    self.uplinks.troubled(uplink)
                elsewhere = self.uplinks.elsewhere(uplink, answer.generation.request.tokens) is not None
                match answer.reopening.after(message.code, len(answer.generation.committed), elsewhere):
                    case Reopen.NOW:
                        log.warning("opened again: %s", reason, extra=self._about(answer))
                        self._open(answer)
                    case Reopen.LATER:
                        # Not this cloud, or not now: `tend_forever` tries again.
                        uplink.reason = reason
                        self._fail_without_cloud(answer, RemoteError(message.code, reason))
                    case Reopen.NEVER:
                        self._end(answer, RemoteError(message.code, reason))
                    case other:
                        assert_never(other)
            case Kv() | Credit():
                self.on_pages(answer, message)
            case _:
                log.debug("ignored %s", type(message).__name__)

    def on_tokens(self, answer: Answer, message: Tokens) -> None:
        """Committed tokens of the answer, from its cloud or from the edge that it was handed over to."""
        try:
            told = (token for each in message.logprobs or () for token, _ in each.top)
            largest = max(itertools.chain(message.ids, told), default=0)
            if largest >= self._n_vocab:
                raise ProtocolError(f"token id {largest} is not in the vocabulary of {self._n_vocab}")
            if answer.link is None and answer.uplink is not None:
                self._measure(answer.uplink, answer, message)
            now = monotonic()
            if answer.timeline is not None:
                guesses = answer.generation.lines.main.guesses
                answer.timeline.arrived(message, guesses, self._meters.at(answer.uplink).rtt_s, now)
            self._perform(answer, answer.generation.receive(message, now))
            self._steer_soon(answer)
            self.assisting.check(answer)
        except ProtocolError as e:
            self._refuse(answer, e)
        self._draft_wanted.set()

    def on_pages(self, answer: Answer, message: Kv | Credit) -> None:
        """A frame about pages of the answer's text, from the cloud or from the edge that it came from."""
        self.assisting.received(answer, message)
        self._draft_wanted.set()

    def _refuse(self, answer: Answer, error: ProtocolError) -> None:
        if (link := answer.source) is not None:
            log.error("the other end at %s broke the protocol: %s", link.peername, error)
            link.close(error.code, str(error))

    def _forget_stream(self, answer: Answer) -> None:
        """Nothing is waited for on the stream of an answer that is over, unless tokens of it are compared."""
        turns = answer.generation.turns
        if turns is None or not turns.pending:
            self._close_stream(answer)

    def _steer_soon(self, answer: Answer) -> None:
        if not self._to_steer:
            # In the next turn of the loop clients get what has come; they are not to wait for this.
            self._loop.call_soon(self._loop.call_soon, self._steer)
        self._to_steer.append(answer)

    def _steer(self) -> None:
        answers, self._to_steer = self._to_steer, []
        for answer in answers:
            if answer.id in self.answers:
                conditions = self._meters.at(answer.uplink).conditions
                self._perform(answer, answer.generation.steer(conditions, monotonic()))
        self._draft_wanted.set()

    def _measure(self, uplink: Uplink, answer: Answer, message: Tokens) -> None:
        # The first step has read a piece of the prompt.
        if len(answer.generation.origins) > len(answer.generation.request.committed):
            self._meters.stepped(uplink, message.step_us / 1e6, message.verified)
        if uplink.link is not None:
            connection = uplink.link.connection
            rtt = connection.rtt
            self._meters.told(uplink, rtt.smoothed_s, rtt.variation_s, connection.peer_load)

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
        link = answer.source
        if link is not None:
            size = link.send(message)
            answer.wire_up += size
            answer.open_bytes += size if isinstance(message, Open) else 0
            rtt_s = link.connection.rtt.smoothed_s
            answer.rtt_ms = None if rtt_s is None else rtt_s * 1000

    def _emit(self, answer: Answer, emit: Emit) -> None:
        now = answer.waiting_since = monotonic()
        if answer.first_at is None:
            answer.first_at, answer.first_tokens = now, len(emit.ids)
            if answer.uplink is not None and answer.generation.phase is Phase.STREAMING:
                self._known_at(answer.uplink).add(answer.generation.request.prompt)
        answer.last_at = now
        done = answer.generation.phase is Phase.FINISHED
        last = len(emit.ids) - 1 if done else None
        pieces = tuple(
            answer.text.feed(self._piece(token), last=index == last) for index, token in enumerate(emit.ids)
        )
        names = tuple(origin.label for origin in emit.origins)
        answer.chunks.put_nowait(Chunk("".join(pieces), emit.ids, names, pieces, emit.logprobs))

    def _about(self, answer: Answer) -> dict[str, Any]:
        """What a line of the log names an answer by."""
        return {
            "connection": 0 if answer.uplink is None else answer.uplink.connects,
            "session": answer.id,
            "stream": answer.generation.stream,
        }

    def _end(self, answer: Answer, outcome: EcdError | Finish) -> None:
        if self.answers.pop(answer.id, None) is None:
            return
        generation, at = answer.generation, answer.uplink
        # Where the edge committed tokens, or another one went on, the cloud may not have the last of them.
        told = generation.turns is None and generation.alone is None and answer.link is None
        if generation.origins and at is not None and told:
            self._known_at(at).add(generation.tokens)
        generation.phase = Phase.FINISHED
        if answer.link is not None:
            answer.link.abort()
        elif isinstance(outcome, EcdError):
            self._close_stream(answer)
        else:
            self._forget_stream(answer)
        self._free(answer)
        self.totals.failed += isinstance(outcome, EcdError) and outcome.code is not Code.CANCELLED
        tally = answer.generation.tally
        self.totals.committed += len(answer.generation.origins) - len(answer.generation.request.committed)
        self.totals.drafted += tally.drafted
        self.totals.verified += tally.verified
        self.totals.accepted += tally.accepted
        self.totals.target_forwards += tally.forwards
        self.totals.resumed += tally.resumed
        self.totals.cached_tokens += tally.cached_tokens
        self.totals.prefill_tokens += answer.prefill_tokens
        self.totals.prefix_tokens += tally.prefix_tokens
        self.totals.draft_cached_tokens += answer.draft_prefill.cached
        self.totals.draft_prefill_tokens += answer.draft_prefill.read
        self.totals.alternates_sent += tally.alternates_sent
        self.totals.alternates_used += tally.alternates_used
        answer.chunks.put_nowait(outcome)
        log.info(
            "answer ended: %s; %d tokens, %d forwards, %d of %d hints accepted",
            outcome if isinstance(outcome, EcdError) else outcome.name.lower(),
            len(answer.generation.origins),
            tally.forwards,
            tally.accepted,
            tally.verified,
            extra=self._about(answer),
        )
        for tell in self.on_end:
            tell(answer, outcome)
        if not self.answers:
            self._idle.set()
