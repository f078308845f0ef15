"""The edge daemon: prompts in from the control socket, hints up, committed tokens down, text out.

Puts together what an edge is made of, begins answers and ends them on request, and sees to those that wait.
The event loop owns all state; the drafter's thread only runs one forward at a time on what it is handed.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Answer, EdgeTotals
from ecd.edge.assisting import Assisting
from ecd.edge.drafter import Drafter
from ecd.edge.drafting import Drafting
from ecd.edge.generation import Generation
from ecd.edge.known_prefixes import CloudPrefixes
from ecd.edge.meter import Meter
from ecd.edge.meters import Meters
from ecd.edge.overheard import begun
from ecd.edge.pacing import Pacer
from ecd.edge.page_holder import PageHolder
from ecd.edge.placing import Placing
from ecd.edge.receiving import Receiving
from ecd.edge.request import LinkLoss, Mode, Request
from ecd.edge.running import Listener, Running
from ecd.edge.survival import EDGE_MEMORY, Survival
from ecd.edge.threshold import Thresholds
from ecd.edge.timeline import Timeline
from ecd.edge.turns import Turns
from ecd.edge.uplink import Uplink
from ecd.edge.uplinks import MAX_CONTEXT_TOKENS, Uplinks
from ecd.errors import BadRequest, Code, ContextOverflow, LinkError, RemoteError
from ecd.journal import Journal, Ring
from ecd.pages import Encoding
from ecd.text import TextStream
from ecd.wire.connection import Closed, Connected, Event, PeerDraining, Received

log = logging.getLogger(__name__)


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
        self.draining = False
        self.cloud_model: dict[str, Any] = {}
        self.cloud_ends: frozenset[int] = ends
        self.acceptance = acceptance
        self.survival = Survival(EDGE_MEMORY)
        self.thresholds = Thresholds()
        self.ring = Ring(monotonic)
        # Told of each answer that begins.
        self.on_begin: list[Callable[[Answer], None]] = []
        self._n_vocab = n_vocab
        self._piece = piece
        self._ends = ends
        self._link_wait_s = link_wait_s
        self._link_grace_s = link_grace_s
        self._ids = itertools.count(1)
        self.meters: Meters[Uplink] = Meters(meter)
        prefixes: CloudPrefixes[Uplink] = CloudPrefixes()
        self._running = Running(piece)
        self.assisting = Assisting(pages, encoding, self.meters, self.totals)
        self.drafting = Drafting(drafter, self._running, self.assisting, self.meters)
        self.placing = Placing(self._running, self.drafting, self.assisting, self.meters, prefixes)
        self.receiving = Receiving(
            self._running, self.placing, self.drafting, self.assisting, self.meters, prefixes, n_vocab
        )

    def attach(self, uplinks: Uplinks) -> None:
        """Gives the service its links; before anything is asked of it."""
        self.placing.uplinks = uplinks

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
        room = self.drafting.slot_tokens if alone else self.max_context or MAX_CONTEXT_TOKENS
        if request.tokens > room:
            raise ContextOverflow(
                f"{len(request.prompt)} prompt tokens and max_tokens {request.max_tokens} do not fit the "
                f"{whose}'s context of {room}; shorten one, or raise context_tokens at the {whose}"
            )
        request.sampling.check_vocabulary(self._n_vocab)
        if not all(0 <= token < self._n_vocab for token in request.prompt + request.committed):
            raise BadRequest(
                f"the prompt has a token id that is not in the vocabulary of {self._n_vocab}", param="prompt"
            )
        slot = self.drafting.slot_for(request)
        now = monotonic()
        number = next(self._ids)
        if slot is not None and request.mode.edge_commits:
            # Not noted in the ring: what is shared of thresholds could not be said again.
            ends = self._ends if alone else self.cloud_ends
            turns = Turns.of(request, self.thresholds, self._piece, ends)
            pacer = Pacer(request.objective, self.survival)
            generation = Generation(request, self.acceptance, pacer, turns, slot=slot)
        else:
            generation = begun(Journal(self.ring, number), request, slot, self.acceptance, self.survival)
        answer = Answer(number, generation, TextStream(request.stop), now, now)
        if request.timeline:
            answer.timeline = Timeline(now, len(request.prompt))
        self._running.begin(answer)
        for tell in self.on_begin:
            tell(answer)
        self.placing.open(answer)
        self.drafting.wake()
        return answer

    def room_behind(self, prompt_tokens: int) -> int:
        """Tokens that fit behind such a prompt: at the cloud, and in a drafting slot that is half free."""
        cloud = (self.max_context or MAX_CONTEXT_TOKENS) - prompt_tokens
        slot = self.drafting.slot_tokens - prompt_tokens
        return max(1, min(cloud, slot) if 2 * slot >= self.drafting.slot_tokens else cloud)

    def cancel(self, answer_id: int) -> None:
        """Ends an answer. Raises BadRequest when there is none of that number."""
        answer = self.answers.get(answer_id)
        if answer is None:
            raise BadRequest(f"no session {answer_id} is running; `ecdctl sessions` lists them")
        self.placing.abandon(answer, "cancelled by the user")
        self.totals.cancelled += 1
        self._running.end(answer, RemoteError(Code.CANCELLED, f"session {answer_id} was cancelled"))

    async def drain(self) -> None:
        """Takes no new prompts; returns when the last answer is complete."""
        self.draining = True
        await self._running.none_left()

    def stop(self) -> None:
        """Ends what runs."""
        for answer in self._running:
            self.placing.abandon(answer, "the edge is stopping")
            self._running.end(answer, RemoteError(Code.CANCELLED, "the edge is stopping"))

    def close(self) -> None:
        """Frees the drafter; nothing may be asked of it any more."""
        self.drafting.close()

    def summary(self) -> str:
        """One line for the service manager."""
        state, uplinks = "draining" if self.draining else "serving", self.uplinks
        cloud = uplinks.shown.key if uplinks.shown else "a cloud"
        return f"{state}: {len(self.answers)} answers running, link to {cloud} {uplinks.state}"

    @property
    def uplinks(self) -> Uplinks:
        """The links to the clouds."""
        return self.placing.uplinks

    @property
    def answers(self) -> dict[int, Answer]:
        """Those that run, by number."""
        return self._running.answers

    @property
    def totals(self) -> EdgeTotals:
        """Counters since the start."""
        return self._running.totals

    @property
    def on_end(self) -> list[Listener]:
        """Told of each answer that has ended."""
        return self._running.on_end

    @property
    def max_context(self) -> int | None:
        """Tokens that prompt and answer together may have; None while no cloud has told."""
        return self.uplinks.fleet.max_context

    @property
    def bound(self) -> bool:
        """Whether an answer has tokens already, which only the model that they are of may go on from."""
        generations = [answer.generation for answer in self._running]
        return any(g.origins and g.request.mode is not Mode.EDGE_ONLY for g in generations)

    # -- link

    def on_event(self, uplink: Uplink, event: Event) -> None:
        """Whatever happens on the link to a cloud."""
        match event:
            case Connected():
                self.cloud_model = getattr(event.peer, "model", {})
                ends = event.peer.fingerprint["special"].get("end_of_generation")
                self.cloud_ends = frozenset(ends if isinstance(ends, list) else ())
                self.meters.at(uplink).link_bytes_per_s = None
                for answer in self._running:
                    self.placing.open(answer)
            case Received():
                self.receiving.on_message(uplink, event)
            case PeerDraining():
                self.placing.move_on()
            case Closed():
                self.placing.lost(uplink)

    async def tend_forever(self) -> None:
        """Sees to answers now and then."""
        while True:
            await asyncio.sleep(0.25 if self.answers else 1.0)
            self.tend()

    def tend(self) -> None:
        """Opens waiting answers again; fails those that waited too long, or that the cloud will not have."""
        now = monotonic()
        for answer in self._running:
            if not answer.generation.wants_cloud:
                continue
            if self.uplinks.refused:
                self._running.end(answer, LinkError(self.uplinks.refused))
            elif now - answer.waiting_since > self._link_wait_s:
                reason = f"no link to the cloud for {self._link_wait_s:g} s: {self.uplinks.why_none}"
                self._running.end(answer, LinkError(reason))
            else:
                self.placing.open(answer)
                self._degrade(answer, now)
        self.placing.move_on()

    def _degrade(self, answer: Answer, now: float) -> None:
        """An answer that no cloud takes goes on from the draft model's own tokens, if it may and can."""
        generation, request = answer.generation, answer.generation.request
        if request.link_loss is not LinkLoss.DEGRADE or not generation.wants_cloud:
            return
        able = generation.slot is not None and not generation.alone
        if able and now - answer.waiting_since >= self._link_grace_s:
            log.warning("goes on without a cloud: %s", self.uplinks.why_none, extra=answer.about)
            turns = generation.turns or Turns.of(
                request, self.thresholds, self._piece, self.cloud_ends, generation.committed
            )
            # Pages that were on their way do not come.
            self.assisting.forget(answer)
            self._running.perform(answer, generation.go_on_alone(turns))
            self.drafting.wake()
