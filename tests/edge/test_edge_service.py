"""What the edge hands on of what comes over its link: chunks whose entries belong together, no bad ids."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Chunk
from ecd.edge.drafter import DraftTask, Prefill
from ecd.edge.meter import Meter
from ecd.edge.request import Request
from ecd.edge.service import EdgeService
from ecd.edge.timeline import Committed, TokensArrived
from ecd.edge.uplink import Uplink
from ecd.errors import Code, RemoteError
from ecd.logprobs import TokenLogprobs
from ecd.sampling import Guess, Sampling
from ecd.wire.connection import Closed, Connected, Received, Rtt
from ecd.wire.messages import Finish, Open, Reset, Tokens, Welcome
from ecd.wire.prefix import blocks

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


class Wire:
    """A link to a cloud that is the test."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed: list[tuple[Code, str]] = []
        self.connection = SimpleNamespace(
            peer_draining=False, peer_load={}, rtt=Rtt(), new_stream=lambda: len(self.sent) + 1
        )

    def send(self, message: Any) -> int:
        self.sent.append(message)
        return 1

    def close(self, code: Code, message: str) -> None:
        self.closed.append((code, message))


def welcome(features: tuple[str, ...]) -> Welcome:
    fingerprint = {"special": {"end_of_generation": []}}
    return Welcome(0, 1, 0, features, {}, fingerprint, {}, "test")


def told(token: int) -> TokenLogprobs:
    return TokenLogprobs(-token / 64, ((token, -token / 64),))


class Talk:
    """A service with one answer that runs, and what comes of it."""

    def __init__(
        self, prompt: tuple[int, ...] = PROMPT, features: tuple[str, ...] = (), **asked: Any
    ) -> None:
        self.wire = Wire()
        self.service = EdgeService(
            NoDrafter(),
            Acceptance(),
            Meter(),
            n_vocab=SIZE,
            piece=lambda token: bytes([token]),
            link_wait_s=9,
        )
        self.service.attach(cast(Uplink, SimpleNamespace(link=self.wire, refused=None)))
        self.service.on_event(Connected(welcome(features)))
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
        message = Tokens(stream, base, tuple(ids), 0, 0, 900, Finish.STOP)
        self.service.on_event(Received(message, 30))

    def reset(self, code: Code) -> None:
        self.service.on_event(Received(Reset(self.answer.generation.stream, code, "gone"), 30))

    def tokens(self, ids: bytes, finish: Finish = Finish.NONE, **changes: Any) -> None:
        logprobs = tuple(told(token) for token in ids)
        base = len(self.answer.generation.tokens)
        given = {"finish": finish, "logprobs": logprobs} | changes
        self.service.on_event(Received(Tokens(1, base, tuple(ids), 0, 0, 900, **given), 30))

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
    talk.service.on_event(
        Received(Tokens(1, len(PROMPT), bad["ids"], 0, 0, 900, Finish.NONE, bad["logprobs"]), 30)
    )
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
    talk = Talk(**DELTAS)
    assert (talk.opened.prefix_len, talk.opened.prompt) == (0, LONG)
    talk.finish(bytes(60))
    said = (*LONG, *bytes(60))
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
    talk.service.on_event(Closed(Code.UNAVAILABLE, "lost"))
    talk.service.on_event(Connected(welcome(("prefix",))))
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
