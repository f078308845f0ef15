"""A mixed load: what clients ask, when they leave, and both ways to an edge."""

import asyncio
import random
from collections.abc import AsyncGenerator
from itertools import islice
from typing import Any

import pytest

from ecd.errors import DaemonError, EngineError
from ecd.lab.errands import STAYS_S, Errand, OnControlSocket, errands, run_errands
from ecd.lab.trace import Trace


def some(trace: Trace, count: int, seed: int = 0, **kind: Any) -> list[Errand]:
    return list(islice(errands(trace, random.Random(seed), **kind), count))


def test_errands_are_mixed_and_equal_for_equal_seeds(trace: Trace) -> None:
    asked = some(trace, 400)
    assert asked == some(trace, 400)
    assert asked != some(trace, 400, seed=1)
    assert {each.recording for each in asked} == set(trace.recordings)
    assert all(1 <= each.max_tokens <= len(each.recording.target_ids) for each in asked)
    assert {(each.chat, each.draft) for each in asked} == {
        (a, b) for a in (False, True) for b in (False, True)
    }
    stays = [each.stays_s for each in asked if each.stays_s is not None]
    assert 60 < len(stays) < 140
    assert all(0 <= stay <= STAYS_S for stay in stays)
    assert all(each.stays_s is None for each in some(trace, 50, leaving=0.0))


class Counting:
    """Two pieces at once, and then a third one if it is given away; notes who was closed."""

    def __init__(self, more: asyncio.Event, fails: Exception | None = None):
        self.more = more
        self.fails = fails
        self.closed = 0

    async def pieces(self, errand: Errand) -> AsyncGenerator[int]:
        try:
            yield 3
            yield 1
            if self.fails:
                raise self.fails
            await self.more.wait()
            yield 2
        finally:
            self.closed += 1


def errand(trace: Trace, stays_s: float | None) -> Errand:
    return Errand(trace.recordings[0], 4, chat=True, draft=True, stays_s=stays_s)


async def test_answers_are_read_to_their_end_unless_their_client_leaves(trace: Trace) -> None:
    more = asyncio.Event()
    patient, hasty, late = Counting(more), Counting(asyncio.Event()), Counting(asyncio.Event())
    asyncio.get_running_loop().call_later(0.02, more.set)
    each = [iter([errand(trace, None)]), iter([errand(trace, 0.01)] * 2), iter([errand(trace, None)])]
    visits = await run_errands([patient, hasty, late], each, 0.2)
    assert (visits.complete, visits.left) == (1, 2)
    # The last one was sent away at the end of the time, and what it had got by then counts as well.
    assert sorted(reception.tokens for reception in visits.receptions) == [[3, 1], [3, 1], [3, 1], [3, 1, 2]]
    assert (patient.closed, hasty.closed, late.closed) == (1, 2, 1)


@pytest.mark.parametrize(
    ("fails", "error", "words"),
    [
        (EngineError("it broke"), EngineError, "it broke"),
        (ConnectionResetError("reset"), DaemonError, "broke off an answer: reset"),
        (EOFError(), DaemonError, "broke off an answer: EOFError"),
    ],
)
async def test_a_failure_ends_the_load(
    trace: Trace, fails: Exception, error: type[Exception], words: str
) -> None:
    way = Counting(asyncio.Event(), fails)
    with pytest.raises(error, match=words):
        await run_errands([way], [iter([errand(trace, None)])], 5.0)


async def test_the_control_socket_is_asked_for_conversations_and_for_ids(trace: Trace) -> None:
    asked = []

    class Fake:
        async def stream(self, prompt: Any, **args: Any) -> AsyncGenerator[dict[str, Any]]:
            asked.append((prompt, args))
            yield {"event": "started", "id": 1}
            yield {"event": "text", "ids": [10, 11]}
            yield {"event": "done"}

    way: Any = OnControlSocket(Fake())  # type: ignore[arg-type]
    for chat in (True, False):
        one = Errand(trace.recordings[0], 4, chat=chat, draft=not chat, stays_s=None)
        assert [tokens async for tokens in way.pieces(one)] == [2]
    arguments = {"temperature": 0.0, "seed": 5, "max_tokens": 4}
    assert asked == [
        ("first prompt", arguments | {"draft": False}),
        ((2, 3, 4), arguments | {"draft": True}),
    ]
