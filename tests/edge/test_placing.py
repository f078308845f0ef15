"""Where answers are opened: what of a prompt is sent there, which cloud it is, and when they leave it."""

import pytest

from ecd.edge.request import Request
from ecd.errors import Code, ContextOverflow, RemoteError
from ecd.sampling import Sampling
from ecd.wire.connection import Closed, PeerDraining, Received
from ecd.wire.messages import Finish, Reset, Tokens
from ecd.wire.prefix import blocks
from tests.edge.one_cloud import connect
from tests.edge.service_talk import PROMPT, Talk, TwoClouds

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


async def test_a_second_turn_goes_to_the_cloud_that_has_the_first_one() -> None:
    talk = TwoClouds(LONG)
    talk.tokens(b"ab", Finish.STOP, logprobs=None)
    prompt = (*LONG, *b"ab", 7)
    here, there = (talk.uplinks.fleet.members[uplink.key] for uplink in (talk.here, talk.there))
    for _ in range(9):
        # As after a PONG.
        here.opened = 0
        assert talk.service.start(Request(prompt, Sampling(), 20)).cloud is talk.here
    here.opened = 9
    assert talk.service.start(Request(prompt, Sampling(), 20)).cloud is talk.there
    there.opened = 8
    fresh = Request(prompt, Sampling(), 20, fresh=True)
    assert talk.service.start(fresh).cloud is talk.there, "it may use nothing of what is held"


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
    assert second.cloud is talk.there
    assert (talk.answer.rtt_ms, second.rtt_ms) == (None, 12.0)
    talk.tokens(b"a", logprobs=None)
    assert talk.service.meters.every.rtt_s == 0.01


async def test_a_request_must_fit_the_largest_cloud_and_goes_there() -> None:
    talk = TwoClouds()
    connect(talk.uplinks, talk.here, talk.links[talk.here], max_context=30)
    connect(talk.uplinks, talk.there, talk.links[talk.there], max_context=50)
    for _ in range(3):
        assert talk.service.start(Request(PROMPT, Sampling(), 48)).cloud is talk.there
    with pytest.raises(ContextOverflow, match="cloud's context of 50"):
        talk.service.start(Request(PROMPT, Sampling(), 49))


async def test_an_answer_is_paced_for_the_steps_of_the_cloud_that_it_is_opened_at() -> None:
    talk = TwoClouds()
    for cloud, max_verify in ((talk.here, 4), (talk.there, 9)):
        talk.service.meters.told(cloud, 0.01, 0.0, {"max_verify": max_verify})
    second = talk.service.start(Request(PROMPT, Sampling(), 20))
    assert second.cloud is talk.there
    assert second.generation.pacer.max_verify == 9
    talk.reset(Code.BUSY)
    assert talk.answer.cloud is talk.there
    assert talk.answer.generation.pacer.max_verify == 9


async def test_the_first_step_on_a_stream_reads_text_and_tells_no_step_time() -> None:
    talk = TwoClouds()
    meters = talk.service.meters
    talk.tokens(b"a", logprobs=None, step_us=800_000)
    assert meters.at(talk.here).step_s is None
    talk.tokens(b"b", logprobs=None, step_us=30_000)
    assert meters.at(talk.here).step_s == 0.03
    talk.reset(Code.BUSY)
    assert talk.now_there().committed == tuple(b"ab")
    talk.tokens(b"c", logprobs=None, step_us=800_000)
    assert meters.at(talk.there).step_s == 0.03, "what other clouds take is the first guess"
    talk.tokens(b"d", logprobs=None, step_us=50_000)
    assert meters.at(talk.there).step_s == pytest.approx(0.032)
