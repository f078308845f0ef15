"""What the edge hands on of what comes over its links: entries that belong together and no bad ids."""

from typing import Any

import pytest

from ecd.edge.timeline import Committed, TokensArrived
from ecd.errors import Code
from ecd.wire.messages import Finish, Open, Tokens
from tests.edge.service_talk import PROMPT, SIZE, Talk, told


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
