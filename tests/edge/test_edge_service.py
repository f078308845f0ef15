"""What the edge hands on of what comes over its links, and which of them it uses.

Chunks have entries that belong together and no bad ids.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Chunk
from ecd.edge.drafter import DraftTask, Prefill
from ecd.edge.meter import Meter
from ecd.edge.request import LinkLoss, Request
from ecd.edge.service import EdgeService
from ecd.edge.timeline import Committed, TokensArrived
from ecd.edge.told import stats_told, status_told
from ecd.edge.uplinks import Place, Uplinks
from ecd.errors import Code, ContextOverflow, LinkError, RemoteError
from ecd.logprobs import TokenLogprobs
from ecd.sampling import Guess, Sampling
from ecd.wire.connection import Closed, PeerDraining, Received
from ecd.wire.messages import Finish, Open, Reset, Tokens
from ecd.wire.prefix import blocks
from tests.edge.one_cloud import MadeUpLink, attach, connect

PROMPT = (90, 91)
# Bytes 0 to 255, and nothing else.
SIZE = 256


class NoDrafter:
    slots = branches = slot_tokens = 0

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        raise AssertionError

    def release(self, slot: int) -> None: ...

    def prefill(self, slot: int) -> Prefill:
        raise AssertionError

    def stats(self) -> dict[str, int]:
        return {}

    def close(self) -> None: ...


def told(token: int) -> TokenLogprobs:
    return TokenLogprobs(-token / 64, ((token, -token / 64),))


def service_of_bytes() -> EdgeService:
    return EdgeService(
        NoDrafter(),
        Acceptance(),
        Meter(),
        n_vocab=SIZE,
        piece=lambda token: bytes([token]),
        link_wait_s=9,
    )


class Talk:
    """A service with one answer that runs, and what comes of it."""

    def __init__(
        self, prompt: tuple[int, ...] = PROMPT, features: tuple[str, ...] = (), **asked: Any
    ) -> None:
        self.wire = MadeUpLink(features=features)
        self.service = service_of_bytes()
        self.uplinks = attach(self.service)
        (self.uplink,) = self.uplinks
        connect(self.uplinks, self.uplink, self.wire)
        self.answer = self.service.start(Request(prompt, Sampling(), 20, **asked))

    @property
    def opened(self) -> Open:
        """The OPEN that was sent last."""
        return [message for message in self.wire.sent if isinstance(message, Open)][-1]

    def ask(self, prompt: tuple[int, ...], **asked: Any) -> Open:
        """Another answer takes the place of the one that was looked at; what was sent for it."""
        self.answer = self.service.start(Request(prompt, Sampling(), 20, **asked))
        return self.opened

    def finish(self, ids: bytes) -> None:
        """The answer is told and over."""
        stream, base = self.answer.generation.stream, len(self.answer.generation.tokens)
        self.receive(Tokens(stream, base, tuple(ids), 0, 0, 900, Finish.STOP))

    def reset(self, code: Code) -> None:
        self.receive(Reset(self.answer.generation.stream, code, "gone"))

    def tokens(self, ids: bytes, finish: Finish = Finish.NONE, **changes: Any) -> None:
        logprobs = tuple(told(token) for token in ids)
        base = len(self.answer.generation.tokens)
        given: dict[str, Any] = {"finish": finish, "logprobs": logprobs} | changes
        self.receive(Tokens(1, base, tuple(ids), 0, 0, 900, **given))

    def receive(self, message: Any) -> None:
        self.service.on_event(self.uplink, Received(message, 30))

    def chunk(self) -> Chunk:
        chunk = self.answer.chunks.get_nowait()
        assert isinstance(chunk, Chunk)
        return chunk


async def test_logprobs_come_with_their_ids_even_while_the_text_is_held_back() -> None:
    talk = Talk(stop=("cd",), logprobs=1)
    (opening,) = talk.wire.sent
    assert isinstance(opening, Open)
    assert opening.logprobs == 1
    shown = []
    # A character in two pieces, what may become the stop text, what did not, and the stop text itself.
    for ids, finish in ((b"a\xc3", 0), (b"\xa9c", 0), (b"b", 0), (b"c", 0), (b"d", Finish.STOP)):
        talk.tokens(ids, Finish(finish))
        chunk = talk.chunk()
        assert chunk.ids == tuple(ids)
        assert chunk.logprobs == tuple(told(token) for token in ids)
        assert len(chunk.origins) == len(ids)
        shown.append(chunk.text)
    assert shown == ["a", "é", "cb", "", ""]
    assert talk.answer.chunks.get_nowait() is Finish.STOP
    assert talk.answer.generation.logprobs == [told(token) for token in "aécbcd".encode()]


async def test_who_did_not_ask_gets_none() -> None:
    talk = Talk()
    talk.tokens(b"ab", logprobs=None)
    assert talk.chunk().logprobs is None


@pytest.mark.parametrize(
    "bad",
    [
        {"ids": (SIZE,), "logprobs": (told(1),)},
        {"ids": (1,), "logprobs": (told(SIZE),)},
        {"ids": (1,), "logprobs": None},
    ],
    ids=["an id", "a likely id", "none"],
)
async def test_what_cannot_be_the_clouds_ends_the_connection_and_is_not_shown(bad: dict[str, Any]) -> None:
    talk = Talk(logprobs=1)
    talk.receive(Tokens(1, len(PROMPT), bad["ids"], 0, 0, 900, Finish.NONE, bad["logprobs"]))
    ((code, _),) = talk.wire.closed
    assert code is Code.PROTOCOL
    assert talk.answer.chunks.empty()
    assert talk.answer.generation.committed == ()


async def test_pieces_are_the_text_that_each_token_made_certain() -> None:
    talk = Talk(stop=("cd",))
    talk.tokens(b"a\xc3\xa9c", logprobs=None)
    assert talk.chunk().pieces == ("a", "", "é", "")
    talk.tokens(b"bc", Finish.LENGTH, logprobs=None)
    last = talk.chunk()
    assert (last.text, last.pieces) == ("cbc", ("cb", "c"))


async def test_a_timeline_is_kept_for_those_who_ask() -> None:
    assert Talk().answer.timeline is None
    talk = Talk(timeline=True)
    assert talk.answer.timeline is not None
    talk.tokens(b"abc", logprobs=None)
    arrived, committed = talk.answer.timeline.drain()
    assert isinstance(arrived, TokensArrived)
    assert committed == Committed(committed.at_ms, len(PROMPT), 3)
    assert 0 <= arrived.at_ms <= committed.at_ms
    assert talk.answer.live()["target_forwards"] == 1


LONG = tuple(range(150))
DELTAS = {"prompt": LONG, "features": ("prefix",)}


async def test_the_next_turn_sends_what_is_new() -> None:
    prompt = tuple(range(180))
    talk = Talk(prompt, ("prefix",))
    assert (talk.opened.prefix_len, talk.opened.prompt) == (0, prompt)
    talk.finish(bytes(20))
    said = (*prompt, *bytes(20))
    second = talk.ask((*said, 7, 8, 9))
    assert second.prefix_len == 192
    assert second.prefix_hash == list(blocks(said))[-1][0]
    assert second.prompt == (*said[192:], 7, 8, 9)
    assert talk.answer.generation.tally.prefix_tokens == 192
    assert talk.answer.open_bytes == 1


async def test_another_text_that_begins_alike_does_too_even_while_the_first_runs() -> None:
    talk = Talk(**DELTAS)
    assert talk.ask((*LONG[:100], 7)).prefix_len == 0, "nobody knows whether the cloud took it"
    talk.finish(b"x")
    assert talk.ask((*LONG[:90], 5)).prefix_len == 64


async def test_a_cloud_that_does_not_offer_it_gets_whole_prompts() -> None:
    talk = Talk(prompt=LONG)
    talk.finish(b"x")
    assert talk.ask((*LONG, 7)).prefix_len == 0


async def test_who_wants_nothing_reused_sends_the_whole_and_says_so() -> None:
    talk = Talk(**DELTAS)
    assert talk.opened.fresh is None
    talk.finish(b"x")
    opened = talk.ask((*LONG, 7), fresh=True)
    assert (opened.prefix_len, opened.prefix_hash, opened.fresh) == (0, None, 1)


async def test_a_cloud_that_forgot_gets_the_whole_at_once() -> None:
    talk = Talk(**DELTAS)
    talk.finish(b"x")
    assert talk.ask((*LONG, 7)).prefix_len == 128
    talk.reset(Code.UNKNOWN_PREFIX)
    assert (talk.opened.prefix_len, talk.opened.prompt) == (0, (*LONG, 7))
    assert talk.answer.generation.tally.resumed == 0
    talk.finish(b"y")
    assert talk.answer.chunks.get_nowait().ids == (ord("y"),)  # type: ignore[union-attr]
    assert talk.ask((*LONG, 7)).prefix_len == 128, "it knows it again"


async def test_a_cloud_that_never_knows_is_not_asked_for_ever() -> None:
    talk = Talk(**DELTAS)
    talk.finish(b"x")
    talk.ask((*LONG, 7))
    talk.reset(Code.UNKNOWN_PREFIX)
    talk.reset(Code.UNKNOWN_PREFIX)
    error = talk.answer.chunks.get_nowait()
    assert isinstance(error, RemoteError)
    assert error.code is Code.UNKNOWN_PREFIX


async def test_an_answer_that_is_resumed_builds_on_its_own_prompt() -> None:
    talk = Talk(**DELTAS)
    talk.tokens(b"ab", logprobs=None)
    talk.uplink.link = None
    talk.uplinks.fleet.closed(talk.uplink.key)
    talk.service.on_event(talk.uplink, Closed(Code.UNAVAILABLE, "lost"))
    connect(talk.uplinks, talk.uplink, talk.wire)
    talk.service.tend()
    assert (talk.opened.prefix_len, talk.opened.committed) == (128, tuple(b"ab"))


async def test_what_the_cloud_had_is_told_and_never_more_than_there_is() -> None:
    talk = Talk(prompt=LONG)
    talk.tokens(b"a", logprobs=None, cached=64)
    assert talk.answer.generation.tally.cached_tokens == 64
    talk.tokens(b"b", logprobs=None, cached=128)
    assert talk.answer.generation.tally.cached_tokens == 64
    boastful = Talk(prompt=LONG)
    boastful.tokens(b"a", logprobs=None, cached=1 << 31)
    assert boastful.answer.generation.tally.cached_tokens == len(LONG)


class TwoClouds(Talk):
    """The answer runs at `here`; there is another cloud."""

    def __init__(self) -> None:
        self.service = service_of_bytes()
        self.uplinks = attach(self.service, Place("here", 1), Place("there", 1))
        self.here, self.there = self.uplinks
        self.links = {uplink: MadeUpLink() for uplink in self.uplinks}
        for uplink in self.uplinks:
            connect(self.uplinks, uplink, self.links[uplink])
        self.answer = self.service.start(Request(PROMPT, Sampling(), 20))
        if self.answer.uplink is self.there:
            self.here, self.there = self.there, self.here
        self.uplink, self.wire = self.here, self.links[self.here]

    def now_there(self) -> Open:
        """The answer was opened at the other cloud; from now on that is where tokens come from."""
        assert self.answer.uplink is self.there
        (opening,) = self.links[self.there].sent
        assert isinstance(opening, Open)
        self.uplink = self.there
        return opening


def said(talk: Talk) -> bytes:
    return bytes(talk.answer.generation.committed)


async def test_an_answer_goes_on_at_another_cloud_when_its_own_dies() -> None:
    talk = TwoClouds()
    talk.tokens(b"ab", logprobs=None)
    talk.here.link = None
    talk.uplinks.fleet.closed(talk.here.key)
    talk.service.on_event(talk.here, Closed(Code.UNAVAILABLE, "gone"))
    assert talk.now_there().committed == tuple(b"ab")
    talk.tokens(b"c", Finish.LENGTH, logprobs=None)
    assert said(talk) == b"abc"


async def test_an_answer_leaves_a_draining_cloud_and_what_that_one_still_says_is_not_heard() -> None:
    talk = TwoClouds()
    talk.tokens(b"ab", logprobs=None)
    talk.uplinks.fleet.draining(talk.here.key)
    talk.service.on_event(talk.here, PeerDraining("bye"))
    assert talk.now_there().committed == tuple(b"ab")
    *_, farewell = talk.wire.sent
    assert (type(farewell), farewell.stream, farewell.code) == (Reset, 1, Code.CANCELLED)
    late = Tokens(1, len(talk.answer.generation.tokens), (99,), 0, 0, 900, Finish.NONE)
    talk.service.on_event(talk.here, Received(late, 30))
    talk.tokens(b"c", Finish.LENGTH, logprobs=None)
    assert said(talk) == b"abc"


async def test_an_answer_stays_at_a_draining_cloud_while_there_is_no_other() -> None:
    talk = TwoClouds()
    talk.uplinks.fleet.closed(talk.there.key)
    talk.uplinks.fleet.draining(talk.here.key)
    talk.service.on_event(talk.here, PeerDraining("bye"))
    talk.tokens(b"abc", Finish.LENGTH, logprobs=None)
    assert said(talk) == b"abc"


async def test_an_answer_leaves_a_cloud_that_has_fallen_silent() -> None:
    talk = TwoClouds()
    talk.tokens(b"ab", logprobs=None)
    talk.wire.connection.heard_at -= 3.0
    talk.service.tend()
    assert talk.now_there().committed == tuple(b"ab")


@pytest.mark.parametrize("code", [Code.BUSY, Code.DRAINING, Code.ENGINE_RESTARTED])
async def test_an_answer_that_one_cloud_turns_away_is_taken_to_the_other(code: Code) -> None:
    talk = TwoClouds()
    if code is Code.DRAINING:
        talk.uplinks.fleet.draining(talk.here.key)
    talk.reset(code)
    assert talk.now_there().committed == ()


async def test_an_answer_that_all_clouds_turn_away_has_failed() -> None:
    talk = TwoClouds()
    talk.reset(Code.BUSY)
    talk.now_there()
    talk.reset(Code.BUSY)
    failure = talk.answer.chunks.get_nowait()
    assert isinstance(failure, RemoteError)
    assert failure.code is Code.BUSY


async def test_each_answer_has_the_round_trip_of_its_own_cloud() -> None:
    talk = TwoClouds()
    talk.links[talk.here].connection.rtt.sample(0.01)
    talk.links[talk.there].connection.rtt.sample(0.012)
    second = talk.service.start(Request(PROMPT, Sampling(), 20))
    assert second.uplink is talk.there
    assert (talk.answer.rtt_ms, second.rtt_ms) == (None, 12.0)
    talk.tokens(b"a", logprobs=None)
    assert talk.service.meter.rtt_s == 0.01


async def test_a_request_must_fit_the_largest_cloud_and_goes_there() -> None:
    talk = TwoClouds()
    connect(talk.uplinks, talk.here, talk.links[talk.here], max_context=30)
    connect(talk.uplinks, talk.there, talk.links[talk.there], max_context=50)
    for _ in range(3):
        assert talk.service.start(Request(PROMPT, Sampling(), 48)).uplink is talk.there
    with pytest.raises(ContextOverflow, match="cloud's context of 50"):
        talk.service.start(Request(PROMPT, Sampling(), 49))


def without_a_cloud(link_loss: LinkLoss, *, drafter: Any = None) -> tuple[EdgeService, Uplinks]:
    service = EdgeService(
        drafter or NoDrafter(),
        Acceptance(),
        Meter(),
        n_vocab=SIZE,
        piece=lambda token: bytes([token]),
        link_wait_s=0.4 if link_loss is LinkLoss.WAIT else 60.0,
        link_grace_s=0.1,
        ends=frozenset({0}),
    )
    return service, attach(service)


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_is_to_fail_without_a_cloud_fails_at_once(at_once: bool) -> None:
    service, uplinks = without_a_cloud(LinkLoss.FAIL)
    (uplink,) = uplinks
    request = Request(PROMPT, Sampling(), 20, link_loss=LinkLoss.FAIL)
    if not at_once:
        connect(uplinks, uplink, MadeUpLink())
        answer = service.start(request)
        assert answer.chunks.empty()
        uplink.link = None
        uplinks.fleet.closed(uplink.key)
        service.on_event(uplink, Closed(Code.UNAVAILABLE, "gone"))
    else:
        answer = service.start(request)
    failure = answer.chunks.get_nowait()
    assert isinstance(failure, LinkError)
    assert "no link to the cloud" in str(failure)
    assert not service.answers


async def test_what_waits_fails_when_it_has_waited_long_enough() -> None:
    service, _ = without_a_cloud(LinkLoss.WAIT)
    answer = service.start(Request(PROMPT, Sampling(), 20))
    tending = asyncio.create_task(service.tend_forever())
    async with asyncio.timeout(5):
        failure = await answer.chunks.get()
    tending.cancel()
    assert isinstance(failure, LinkError)
    assert "no link to the cloud for 0.4 s: not tried yet" in str(failure)


class Counting:
    """Guesses 1 to 6 and then the end, or 1 for ever where there is a bias on it."""

    slots = branches = 1
    slot_tokens = 1 << 20

    def prefill(self, slot: int) -> Prefill:
        return Prefill()

    def stats(self) -> dict[str, int]:
        return {}

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        return [
            (Guess(1 if task.sampling.logit_bias else (len(task.context) - task.prompt_len + 1) % 7, 0.9),)
            for task in tasks
        ]

    def release(self, slot: int) -> None: ...

    def close(self) -> None: ...


async def test_what_degrades_goes_on_from_the_draft_and_back_at_the_cloud() -> None:
    service, uplinks = without_a_cloud(LinkLoss.DEGRADE, drafter=Counting())
    (uplink,) = uplinks
    answer = service.start(Request(PROMPT, Sampling(), 20, link_loss=LinkLoss.DEGRADE))
    jobs = [asyncio.create_task(job()) for job in (service.tend_forever, service.draft_forever)]
    async with asyncio.timeout(5):
        ids: tuple[int, ...] = ()
        while len(ids) < 7:
            chunk = await answer.chunks.get()
            assert isinstance(chunk, Chunk)
            assert set(chunk.origins) == {"edge-offline"}
            ids += chunk.ids
        assert await answer.chunks.get() is Finish.STOP
        assert ids == (1, 2, 3, 4, 5, 6, 0)
        again = service.start(
            Request(PROMPT, Sampling(logit_bias=((1, 1.0),)), 1 << 19, link_loss=LinkLoss.DEGRADE)
        )
        first = await again.chunks.get()
        assert isinstance(first, Chunk)
        wire = MadeUpLink()
        connect(uplinks, uplink, wire)
        while not wire.sent:
            await asyncio.sleep(0.01)
        opened = wire.sent[0]
        assert isinstance(opened, Open)
        assert opened.committed == again.generation.committed
        assert len(opened.committed) >= 1
    for job in jobs:
        job.cancel()
    service.close()


async def test_status_tells_the_best_link_and_each_of_several_clouds() -> None:
    talk = TwoClouds()
    talk.links[talk.there].connection.rtt.sample(0.012)
    talk.uplinks.fleet.draining(talk.here.key)
    told = status_told(talk.service, "draft")
    assert told["link"]["cloud"] == talk.there.key
    assert told["link"]["rtt_ms"] == 12.0
    assert told["link"]["connects"] == 2
    here, there = (told["clouds"][uplink.key] for uplink in (talk.here, talk.there))
    assert (here["standing"], here["running"], here["rtt_ms"]) == ("draining", 1, None)
    assert (there["standing"], there["running"], there["weight"]) == ("ready", 0, 1.0)
    assert status_told(Talk().service, "draft")["clouds"] == {}


async def test_bytes_per_token_are_of_all_tokens_whose_bytes_are_counted() -> None:
    talk = Talk()
    assert stats_told(talk.service)["wire_bytes_per_token"] == 0
    talk.tokens(b"seven", logprobs=None)
    running = stats_told(talk.service)
    assert (running["committed"], running["wire_bytes_per_token"]) == (0, 70 / 5)
    talk.finish(b"more!")
    over = stats_told(talk.service)
    assert (over["committed"], over["running"]) == (10, 0)
    assert (over["wire_bytes_per_token"], over["packet_bytes_per_token"]) == (70 / 10, 110 / 10)


async def test_the_log_says_how_an_answer_ended_and_which(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    talk = Talk()
    talk.tokens(b"ab", Finish.STOP, logprobs=None)
    (record,) = [record for record in caplog.records if record.message.startswith("answer ended")]
    assert record.message == "answer ended: stop; 2 tokens, 1 forwards, 0 of 0 hints accepted"
    about = record.__dict__
    assert (about["connection"], about["session"], about["stream"]) == (1, 1, 1)
