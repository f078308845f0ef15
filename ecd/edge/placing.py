"""Where each answer runs: opened at a cloud, moved to another, handed to another edge, taken back.

Owns which answer a stream is. Which cloud is the best one `Uplinks` says; what travels on a stream is told
elsewhere.
"""

import logging
from collections.abc import Sequence
from time import monotonic

from ecd.edge.answer import Answer, OtherEdge
from ecd.edge.assisting import Assisting
from ecd.edge.drafting import Drafting
from ecd.edge.generation import Phase
from ecd.edge.known_prefixes import CloudPrefixes
from ecd.edge.meters import Meters
from ecd.edge.request import LinkLoss
from ecd.edge.running import Running
from ecd.edge.uplink import Uplink
from ecd.edge.uplinks import Uplinks
from ecd.errors import Code, EcdError, LinkError
from ecd.wire.connection import COMMIT
from ecd.wire.link import Link
from ecd.wire.messages import Finish, Reset

log = logging.getLogger(__name__)

# Where a cloud tells no limit of its own.
MAX_AHEAD = 1024


class Placing:
    """`uplinks` are given before anything is asked of it. `prefixes`: what each cloud has been sent."""

    def __init__(
        self,
        running: Running,
        drafting: Drafting,
        assisting: Assisting,
        meters: Meters[Uplink],
        prefixes: CloudPrefixes[Uplink],
    ):
        self._running = running
        self._drafting = drafting
        self._assisting = assisting
        self._meters = meters
        self._prefixes = prefixes
        self._uplinks: Uplinks | None = None
        self._by_stream: dict[tuple[Uplink, int], Answer] = {}
        running.leaving.append(self._leaves)

    @property
    def uplinks(self) -> Uplinks:
        """The links to the clouds."""
        if self._uplinks is None:
            raise LinkError("the edge has no link yet")
        return self._uplinks

    @uplinks.setter
    def uplinks(self, uplinks: Uplinks) -> None:
        self._uplinks = uplinks

    def on(self, uplink: Uplink, stream: int) -> Answer | None:
        """The answer that a stream is; that may be over, and wait for what was compared."""
        return self._by_stream.get((uplink, stream))

    def open(self, answer: Answer, to: Uplink | None = None) -> None:
        """Sends an answer that has no cloud to one, if one takes it."""
        generation, request = answer.generation, answer.generation.request
        if not generation.wants_cloud:
            return
        uplink = to or self._choose(answer)
        if uplink is None or uplink.link is None or uplink.link.connection.peer is None:
            self.without_cloud(answer, LinkError(f"no link to the cloud: {self.uplinks.why_none}"))
            return
        connection, peer = uplink.link.connection, uplink.link.connection.peer
        stream = connection.new_stream()
        answer.at = uplink
        self._by_stream[uplink, stream] = answer
        self.uplinks.opened(uplink)
        whole = request.fresh or answer.reopening.whole or "prefix" not in peer.features
        meter = self._meters.at(uplink)
        try:
            commands = generation.open(
                stream,
                peer.limits.get("max_ahead", MAX_AHEAD),
                alternates="alternates" in peer.features,
                commits=COMMIT in peer.features,
                conditions=meter.conditions,
                now=monotonic(),
                prefix=None if whole else self._prefixes.at(uplink).longest(request.prompt),
                max_verify=meter.max_verify,
            )
            self._running.perform(answer, commands)
            self._assisting.reopened(answer)
        except EcdError as e:
            self._running.end(answer, e)

    def _choose(self, answer: Answer) -> Uplink | None:
        request = answer.generation.request
        several = len(self.uplinks) > 1 and not request.fresh
        return self.uplinks.choose(request.tokens, self._prefixes.shares(request.prompt) if several else None)

    def without_cloud(self, answer: Answer, error: EcdError) -> None:
        """No cloud takes the answer now; some requests end by that."""
        if answer.generation.request.link_loss is LinkLoss.FAIL:
            self._running.end(answer, error)

    def lost(self, uplink: Uplink) -> None:
        """The link to a cloud is gone: what ran there is opened again where it can be."""
        for answer in [each for (at, _), each in self._by_stream.items() if at is uplink]:
            self.close_stream(answer)
            answer.waiting_since = monotonic()
            self.open(answer)

    def move_on(self) -> None:
        """Answers leave a cloud that drains or is quiet, if another takes them."""
        for answer in self._running:
            if answer.generation.phase is not Phase.STREAMING or answer.cloud is None:
                continue
            to = self.uplinks.successor(answer.cloud, answer.generation.request.tokens)
            if to is not None:
                log.info("goes on at %s, from %s", to.key, answer.cloud.key, extra=answer.about)
                self.abandon(answer, "the answer goes on at another cloud")
                self.close_stream(answer)
                self.open(answer, to)

    def abandon(self, answer: Answer, reason: str) -> None:
        """Tells the cloud, or the edge that it was handed over to, that nobody wants the rest from it."""
        if answer.generation.phase is Phase.STREAMING and answer.link is not None:
            answer.link.send(Reset(answer.generation.stream, Code.CANCELLED, reason))

    def close_stream(self, answer: Answer) -> None:
        """Nothing comes on the answer's stream any more."""
        if answer.cloud is not None:
            self._by_stream.pop((answer.cloud, answer.generation.stream), None)
        answer.generation.lost()

    def forget_stream(self, answer: Answer) -> None:
        """Nothing is waited for on the stream of an answer that is over, unless tokens of it are compared."""
        turns = answer.generation.turns
        if turns is not None and turns.pending:
            # The rest of the text it keeps from the end of the session on.
            self._keeps(answer, answer.generation.request.prompt)
        else:
            self._ends(answer)

    # -- other edges

    def hand_over(self, answer: Answer, link: Link, stream: int) -> None:
        """The answer is opened on a stream of another edge's; its cloud and the drafter are done with it."""
        self.abandon(answer, "the answer goes on at another edge")
        self.close_stream(answer)
        self._drafting.free(answer)
        answer.generation.stop_drafting()
        answer.at = OtherEdge(link)
        # What is noted ends here: another edge's slot and speeds are not this one's to tell again.
        answer.generation.journal = None
        commands = answer.generation.open(stream, 0, alternates=False, conditions=None, now=monotonic())
        self._running.perform(answer, commands)

    def take_back(self, answer: Answer) -> None:
        """The other edge does not go on with it: the answer is opened at a cloud again."""
        answer.at = None
        answer.waiting_since = monotonic()
        answer.generation.lost()
        answer.generation.slot = self._drafting.slot_for(answer.generation.request)
        self.open(answer)
        self._drafting.wake()

    # -- inside

    def _leaves(self, answer: Answer, outcome: EcdError | Finish) -> None:
        if isinstance(answer.at, OtherEdge):
            answer.at.link.abort()
            return
        if isinstance(outcome, EcdError):
            self._ends(answer)
        else:
            self.forget_stream(answer)

    def _ends(self, answer: Answer) -> None:
        """The cloud's session is over too; from now on the cloud keeps what it has of the text."""
        generation, turns = answer.generation, answer.generation.turns
        if turns is None:
            self._keeps(answer, generation.tokens)
        elif answer.cloud is not None and self.on(answer.cloud, generation.stream) is answer:
            # A stream that was lost or refused says nothing of what the cloud took.
            self._keeps(answer, generation.tokens[: turns.told])
        self.close_stream(answer)

    def _keeps(self, answer: Answer, tokens: Sequence[int]) -> None:
        if answer.generation.origins and answer.cloud is not None:
            self._prefixes.at(answer.cloud).add(tokens)
