"""What the edge hands on of what comes over its link: chunks whose entries belong together, no bad ids."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Chunk
from ecd.edge.drafter import DraftTask
from ecd.edge.meter import Meter
from ecd.edge.request import Request
from ecd.edge.service import EdgeService
from ecd.edge.timeline import Committed, TokensArrived
from ecd.edge.uplink import Uplink
from ecd.errors import Code
from ecd.logprobs import TokenLogprobs
from ecd.sampling import Guess, Sampling
from ecd.wire.connection import Received, Rtt
from ecd.wire.messages import Finish, Open, Tokens

PROMPT = (90, 91)
# Bytes 0 to 255, and nothing else.
SIZE = 256


class NoDrafter:
    slots = branches = slot_tokens = 0

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        raise AssertionError

    def release(self, slot: int) -> None: ...

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


def told(token: int) -> TokenLogprobs:
    return TokenLogprobs(-token / 64, ((token, -token / 64),))


class Talk:
    """A service with one answer that runs, and what comes of it."""

    def __init__(self, **asked: Any) -> None:
        self.wire = Wire()
        self.service = EdgeService(
            NoDrafter(),
            Acceptance(),
            Meter(),
            n_vocab=SIZE,
            piece=lambda token: bytes([token]),
            link_wait_s=9,
        )
        self.service.attach(cast(Uplink, SimpleNamespace(link=self.wire, refused=None, connects=1)))
        self.answer = self.service.start(Request(PROMPT, Sampling(), 20, **asked))

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


async def test_the_log_says_how_an_answer_ended_and_which(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    talk = Talk()
    talk.tokens(b"ab", Finish.STOP, logprobs=None)
    (record,) = [record for record in caplog.records if record.message.startswith("answer ended")]
    assert record.message == "answer ended: stop; 2 tokens, 1 forwards, 0 of 0 hints accepted"
    about = record.__dict__
    assert (about["connection"], about["session"], about["stream"]) == (1, 1, 1)
