"""What comes for answers: their tokens, verdicts, ends of their streams, pages.

Owns what each frame means for the answer that it is for, and when generations learn from it: after clients
have been told. Checks token ids; frames have been checked before.
"""

import asyncio
import itertools
import logging
from time import monotonic
from typing import assert_never

from ecd.edge.answer import Answer
from ecd.edge.assisting import Assisting
from ecd.edge.drafting import Drafting
from ecd.edge.known_prefixes import CloudPrefixes
from ecd.edge.meters import Meters
from ecd.edge.placing import Placing
from ecd.edge.reopening import Reopen
from ecd.edge.running import Running
from ecd.edge.uplink import Uplink
from ecd.errors import Code, ProtocolError, RemoteError
from ecd.wire.connection import Received, readable
from ecd.wire.messages import Audit, Credit, Kv, Reset, Tokens

log = logging.getLogger(__name__)

# A cloud that ends a stream with one of these may do better later, and another cloud now.
TROUBLED = (Code.BUSY, Code.ENGINE_RESTARTED)


class Receiving:
    """Frames of clouds come in by `on_message`, those of an edge that has an answer by the others."""

    def __init__(
        self,
        running: Running,
        placing: Placing,
        drafting: Drafting,
        assisting: Assisting,
        meters: Meters[Uplink],
        prefixes: CloudPrefixes[Uplink],
        n_vocab: int,
    ):
        self._running = running
        self._placing = placing
        self._drafting = drafting
        self._assisting = assisting
        self._meters = meters
        self._prefixes = prefixes
        self._n_vocab = n_vocab
        self._loop = asyncio.get_running_loop()
        self._to_steer: list[Answer] = []

    def on_message(self, uplink: Uplink, event: Received) -> None:
        """A frame of a cloud."""
        message = event.message
        answer = self._placing.on(uplink, message.stream)
        if answer is None:
            if isinstance(message, Reset) and message.code is Code.UNKNOWN_PREFIX:
                # The edge had ended the text by then.
                self._prefixes.at(uplink).forget()
            return
        answer.wire_down += event.size
        match message:
            case Tokens():
                self.on_tokens(answer, message)
            case Audit():
                self._on_audit(answer, message)
            case Reset():
                self._on_reset(uplink, answer, message)
            case Kv() | Credit():
                self.on_pages(answer, message)
            case _:
                log.debug("ignored %s", type(message).__name__, extra=answer.about)

    def on_tokens(self, answer: Answer, message: Tokens) -> None:
        """Committed tokens of the answer, from its cloud or from the edge that it was handed over to."""
        generation, cloud = answer.generation, answer.cloud
        try:
            told = (token for each in message.logprobs or () for token, _ in each.top)
            largest = max(itertools.chain(message.ids, told), default=0)
            if largest >= self._n_vocab:
                raise ProtocolError(f"token id {largest} is not in the vocabulary of {self._n_vocab}")
            if cloud is not None:
                self._measure(cloud, answer, message)
            now = monotonic()
            if answer.timeline is not None:
                guesses = generation.lines.main.guesses
                answer.timeline.arrived(message, guesses, self._meters.at(cloud).rtt_s, now)
            first = generation.reads
            self._running.perform(answer, generation.receive(message, now))
            if first and cloud is not None:
                self._prefixes.at(cloud).add(generation.request.prompt)
            self._steer_soon(answer)
            self._assisting.check(answer)
        except ProtocolError as e:
            _refuse(answer, e)
        self._drafting.wake()

    def on_pages(self, answer: Answer, message: Kv | Credit) -> None:
        """A frame about pages of the answer's text, from the cloud or from the edge that it came from."""
        self._assisting.received(answer, message)
        self._drafting.wake()

    def _on_audit(self, answer: Answer, message: Audit) -> None:
        try:
            self._running.perform(answer, answer.generation.audited(message))
        except ProtocolError as e:
            _refuse(answer, e)
        if answer not in self._running:
            self._running.totals.target_forwards += message.forwards
            self._placing.forget_stream(answer)

    def _on_reset(self, uplink: Uplink, answer: Answer, message: Reset) -> None:
        reason, generation, uplinks = readable(message.message), answer.generation, self._placing.uplinks
        self._placing.close_stream(answer)
        if message.code is Code.UNKNOWN_PREFIX:
            generation.refused()
            self._prefixes.at(uplink).forget()
        if message.code in TROUBLED:
            uplinks.troubled(uplink)
        elsewhere = uplinks.elsewhere(uplink, generation.request.tokens) is not None
        match answer.reopening.after(message.code, len(generation.committed), elsewhere):
            case Reopen.NOW:
                log.warning("opened again: %s", reason, extra=answer.about)
                self._placing.open(answer)
            case Reopen.LATER:
                # Not this cloud, or not now: it is tried again now and then.
                uplink.reason = reason
                self._placing.without_cloud(answer, RemoteError(message.code, reason))
            case Reopen.NEVER:
                self._running.end(answer, RemoteError(message.code, reason))
            case other:
                assert_never(other)

    def _steer_soon(self, answer: Answer) -> None:
        if not self._to_steer:
            # In the next turn of the loop clients get what has come; they are not to wait for this.
            self._loop.call_soon(self._loop.call_soon, self._steer)
        self._to_steer.append(answer)

    def _steer(self) -> None:
        answers, self._to_steer = self._to_steer, []
        for answer in answers:
            if answer in self._running:
                conditions = self._meters.at(answer.cloud).conditions
                self._running.perform(answer, answer.generation.steer(conditions, monotonic()))
        self._drafting.wake()

    def _measure(self, cloud: Uplink, answer: Answer, message: Tokens) -> None:
        # The first step on a stream has read a piece of the text.
        if not answer.generation.reads:
            self._meters.stepped(cloud, message.step_us / 1e6, message.verified)
        if cloud.link is not None:
            connection = cloud.link.connection
            rtt = connection.rtt
            self._meters.told(cloud, rtt.smoothed_s, rtt.variation_s, connection.peer_load)


def _refuse(answer: Answer, error: ProtocolError) -> None:
    if (link := answer.link) is not None:
        log.error("the other end at %s broke the protocol: %s", link.peername, error, extra=answer.about)
        link.close(error.code, str(error))
