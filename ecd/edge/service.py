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

from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Answer, Chunk, EdgeTotals
from ecd.edge.commands import Command, Emit, Finished, Send
from ecd.edge.drafter import Drafter, DraftTask
from ecd.edge.ending import Ending
from ecd.edge.generation import Generation, Phase
from ecd.edge.meter import Meter
from ecd.edge.meters import Meters
from ecd.edge.pacing import Pacer
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
from ecd.sampling import Guess
from ecd.text import TextStream
from ecd.wire.connection import Closed, Connected, Event, PeerDraining, Received, readable
from ecd.wire.messages import Audit, Finish, Reset, Tokens

log = logging.getLogger(__name__)

# Where a cloud tells no limit of its own.
MAX_AHEAD = 1024
# A cloud that ends a stream with one of these may do better later, and another cloud now.
TROUBLED = (Code.BUSY, Code.ENGINE_RESTARTED)


class EdgeService:
    """All answers of one edge.

    acceptance, meter: what was learned, for the drafter to read too. piece: a token's bytes. ends: ids that
    end a text by the draft model's list, for answers that no cloud has a say in. An answer that no cloud
    takes fails after link_wait_s, or goes on from the draft after link_grace_s, as its request says.
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
        request.sampling.check_vocabulary(self._n_vocab)
        if not all(0 <= token < self._n_vocab for token in request.prompt):
            raise BadRequest(f"the prompt has a token id that is not in the vocabulary of {self._n_vocab}")
        whose = "edge" if alone else "cloud"
        room = self._drafter.slot_tokens if alone else self.max_context or MAX_CONTEXT_TOKENS
        if len(request.prompt) + request.max_tokens > room:
            raise ContextOverflow(
                f"{len(request.prompt)} prompt tokens and max_tokens {request.max_tokens} do not fit the "
                f"{whose}'s context of {room}; shorten one, or raise context_tokens at the {whose}"
            )
        slot = self._slot_for(request)
        now = monotonic()
        pacer = Pacer(request.objective, self.survival, self.meter.max_verify)
        turns = None
        if slot is not None and request.mode.edge_commits:
            ends = self._ends if alone else self.cloud_ends
            turns = Turns.of(request, self.thresholds, self._piece, ends)
        generation = Generation(request, self.acceptance, pacer, turns)
        generation.slot = slot
        answer = Answer(next(self._ids), generation, TextStream(request.stop), now, now)
        if request.timeline:
            answer.timeline = Timeline(now, len(request.prompt))
        self.answers[answer.id] = answer
        self.totals.answers += 1
        if alone:
            generation.phase = Phase.ALONE
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
        """Tokens that fit behind such a prompt: at the cloud, and in a drafting slot if the prompt does."""
        cloud = (self.max_context or MAX_CONTEXT_TOKENS) - prompt_tokens
        slot = self._drafter.slot_tokens - prompt_tokens
        return max(1, min(cloud, slot) if slot > 0 else cloud)

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

    def close(self) -> None:
        """Frees the drafter; nothing may be asked of it any more."""
        self._thread.submit(self._drafter.close)
        self._thread.shutdown()

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
                    if answer.generation.phase is Phase.ALONE:
                        self._end(answer, EngineError(f"the draft model failed: {results}"))
            return
        # Forwards that read a prompt, or that only copied, say nothing of what a guess costs.
        if results and all(guesses and guesses[0].drafter == "model" for guesses in results):
            self._meters.drafted(seconds)
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

    def on_event(self, uplink: Uplink, event: Event) -> None:
        """Whatever happens on the link to a cloud."""
        match event:
            case Connected():
                self.cloud_model = getattr(event.peer, "model", {})
                ends = event.peer.fingerprint["special"].get("end_of_generation")
                self.cloud_ends = frozenset(ends if isinstance(ends, list) else ())
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
            self._perform(answer, generation.go_on_alone(ending))
            self._draft_wanted.set()

    def _move_on(self) -> None:
        """Answers leave a cloud that drains or is quiet, if another takes them."""
        for answer in list(self.answers.values()):
            if answer.generation.phase is not Phase.STREAMING or answer.uplink is None:
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
        uplink = to or self.uplinks.choose(answer.generation.request.tokens)
        if uplink is None or uplink.link is None or uplink.link.connection.peer is None:
            self._fail_without_cloud(answer, LinkError(f"no link to the cloud: {self.uplinks.why_none}"))
            return
        connection, peer = uplink.link.connection, uplink.link.connection.peer
        stream = connection.new_stream()
        answer.uplink = uplink
        self._by_stream[uplink, stream] = answer
        self.uplinks.opened(uplink)
        try:
            commands = answer.generation.open(
                stream,
                peer.limits.get("max_ahead", MAX_AHEAD),
                alternates="alternates" in peer.features,
                commits="commit" in peer.features,
                conditions=self._meters.at(uplink).conditions,
                now=monotonic(),
            )
            self._perform(answer, commands)
        except EcdError as e:
            self._end(answer, e)

    def _fail_without_cloud(self, answer: Answer, error: EcdError) -> None:
        if answer.generation.request.link_loss is LinkLoss.FAIL:
            self._end(answer, error)

    def _abandon(self, answer: Answer, reason: str) -> None:
        """Tells the cloud that nobody wants the rest from it."""
        link = answer.uplink.link if answer.uplink is not None else None
        if answer.generation.phase is Phase.STREAMING and link is not None:
            link.send(Reset(answer.generation.stream, Code.CANCELLED, reason))

    def _on_message(self, uplink: Uplink, event: Received) -> None:
        message = event.message
        answer = self._by_stream.get((uplink, message.stream))
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
                    self._measure(uplink, answer, message)
                    now = monotonic()
                    if answer.timeline is not None:
                        guesses = answer.generation.lines.main.guesses
                        answer.timeline.arrived(message, guesses, self._meters.at(uplink).rtt_s, now)
                    self._perform(answer, answer.generation.receive(message, now))
                    self._steer_soon(answer)
                except ProtocolError as e:
                    self._refuse(uplink, e)
                self._draft_wanted.set()
            case Audit():
                try:
                    self._perform(answer, answer.generation.audited(message))
                except ProtocolError as e:
                    self._refuse(uplink, e)
                if answer.id not in self.answers:
                    self.totals.target_forwards += message.forwards
                    self._forget_stream(answer)
            case Reset():
                reason = readable(message.message)
                self._close_stream(answer)
                if message.code in TROUBLED:
                    self.uplinks.troubled(uplink)
                elsewhere = self.uplinks.elsewhere(uplink, answer.generation.request.tokens) is not None
                match answer.reopening.after(message.code, len(answer.generation.committed), elsewhere):
                    case Reopen.NOW:
                        log.warning("session %d is opened again: %s", answer.id, reason)
                        self._open(answer)
                    case Reopen.LATER:
                        # Not this cloud, or not now: `tend_forever` tries again.
                        uplink.reason = reason
                        self._fail_without_cloud(answer, RemoteError(message.code, reason))
                    case Reopen.NEVER:
                        self._end(answer, RemoteError(message.code, reason))
                    case other:
                        assert_never(other)
            case _:
                log.debug("ignored %s", type(message).__name__)

    def _refuse(self, uplink: Uplink, error: ProtocolError) -> None:
        log.error("the cloud at %s broke the protocol: %s", uplink.key, error)
        if uplink.link is not None:
            uplink.link.close(error.code, str(error))

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
        if answer.generation.origins:
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
        link = answer.uplink.link if answer.uplink is not None else None
        if link is not None:
            answer.wire_up += link.send(message)
            rtt_s = link.connection.rtt.smoothed_s
            answer.rtt_ms = None if rtt_s is None else rtt_s * 1000

    def _emit(self, answer: Answer, emit: Emit) -> None:
        now = answer.waiting_since = monotonic()
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
        answer.generation.phase = Phase.FINISHED
        if isinstance(outcome, EcdError):
            self._close_stream(answer)
        self._forget_stream(answer)
        self._free(answer)
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
