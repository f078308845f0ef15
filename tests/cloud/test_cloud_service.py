"""Sessions of a cloud over TCP, with an engine without a model: lost engines, known prompts, idle time."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ecd.cloud.batcher import Batcher
from ecd.cloud.service import IDLE_S, CloudService
from ecd.cloud.session import Vocabulary
from ecd.cloud.verifier import Capacity, Judged, StepResult, Work
from ecd.errors import Code, EngineError, EngineLost
from ecd.sampling import Verdict
from ecd.wire.connection import Connected, Connection, Event, Received, Role, Settings
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.link import Link
from ecd.wire.messages import Audit, Commit, Draft, Finish, Open, Origin, Pace, Reset, Tokens
from ecd.wire.prefix import BLOCK_TOKENS, blocks

FINGERPRINT = Fingerprint(1000, "aa", {"bos": 1}, "bpe", "bb")
LIMITS = {"max_streams": 8, "max_ahead": 16, "max_context": 400}
LIMIT_S = 10.0
# Longer than the test: such a session takes part in a step only when a hint of its own has come.
PATIENT, AT_ONCE = Pace(20_000_000, 1), Pace(0, 1)
POISON = 666


class Engine:
    """Says 7 after everything, and is lost by a prompt that begins with POISON."""

    capacity = Capacity(4, 400)

    def __init__(self) -> None:
        self.error: EngineError = EngineLost("a worker died")
        self.prompts: list[list[int]] = []
        self.fresh: list[bool] = []
        self.tenants: list[str] = []
        # Pieces of idle work that are left.
        self.unprepared = 0
        self.prepared = threading.Event()
        # Such work never ends unless it is stopped.
        self.endless = False
        self.preparing = threading.Event()

    def step(self, work: Sequence[Work]) -> StepResult:
        if any(item.tokens[0] == POISON for item in work):
            raise self.error
        self.prompts += [list(item.tokens[: item.prompt_len]) for item in work]
        self.fresh += [item.fresh for item in work]
        self.tenants += [item.tenant for item in work]
        judged = {item.key: Judged(Verdict((7,), 0), len(item.hints), cached=2) for item in work}
        return StepResult(judged)

    def forget(self, key: int) -> None: ...

    def prepare(self, stop: Callable[[], bool]) -> bool:
        if self.endless:
            self.preparing.set()
            while not stop():
                pass
        if not self.unprepared:
            self.prepared.set()
            return False
        self.unprepared -= 1
        return True

    def stats(self) -> dict[str, int | float]:
        return {"kv_use": 0.5}

    def close(self) -> None: ...


class Edge:
    """One end of a link to the service, and the frames that came, by stream."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.link = Link(Connection(Settings(Role.EDGE, "test", FINGERPRINT), loop.time()), self._on_event)
        self.connected = asyncio.Event()
        self.frames: dict[int, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)

    def _on_event(self, link: Link, event: Event) -> None:
        match event:
            case Connected():
                self.connected.set()
            case Received():
                self.frames[event.message.stream].put_nowait(event.message)

    def open(self, *prompt: int, pace: Pace = AT_ONCE, max_tokens: int = 3, **fields: Any) -> int:
        stream = self.link.connection.new_stream()
        whole = Open(stream, None, 0, prompt, (), {"rule": "greedy"}, max_tokens, (), pace)
        self.link.send(replace(whole, **fields))
        return stream

    async def answer(self, stream: int) -> tuple[int, ...]:
        """All tokens of an answer."""
        ids: tuple[int, ...] = ()
        while True:
            message = await self.frames[stream].get()
            ids += message.ids
            if message.finish is not Finish.NONE:
                return ids


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def service(engine: Engine) -> AsyncIterator[CloudService]:
    settings = Settings(Role.CLOUD, "cloud under test", FINGERPRINT, limits=LIMITS)
    vocabulary = Vocabulary(1000, frozenset(), lambda token: b"x")
    service = CloudService(engine, vocabulary, settings, Batcher(engine.capacity, 4, 4))
    stepping = asyncio.create_task(service.step_forever())
    yield service
    stepping.cancel()
    service.stop()
    service.close()


@pytest.fixture
async def edge(service: CloudService) -> AsyncIterator[Edge]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(service.protocol, "127.0.0.1", 0)
    edge = Edge(loop)
    await loop.create_connection(lambda: edge.link, *server.sockets[0].getsockname()[:2])
    async with asyncio.timeout(LIMIT_S):
        await edge.connected.wait()
        yield edge
    edge.link.abort()
    server.close()


async def test_only_the_sessions_of_the_step_end_and_are_told_to_come_again(
    service: CloudService, edge: Edge
) -> None:
    patient = edge.open(1, 2, 3, pace=PATIENT)
    assert (await edge.frames[patient].get()).base == 3
    # It waits for a hint now, and has no part in the step that loses the engine.
    poisonous = edge.open(POISON)
    reset = await edge.frames[poisonous].get()
    assert reset == Reset(poisonous, Code.ENGINE_RESTARTED, "a worker died")
    assert service.stats()["engine_restarts"] == 1
    edge.link.send(Draft(patient, 4, 4, (7,)))
    further = await edge.frames[patient].get()
    assert isinstance(further, Tokens)
    assert further.base == 4


async def test_a_step_that_fails_without_the_engine_is_no_restart(
    service: CloudService, edge: Edge, engine: Engine
) -> None:
    engine.error = EngineError("a batch failed")
    assert await edge.frames[edge.open(POISON)].get() == Reset(1, Code.ENGINE, "a batch failed")
    assert service.stats()["engine_restarts"] == 0


async def test_gaps_lie_between_steps_whose_work_was_there(service: CloudService, edge: Edge) -> None:
    patient = edge.open(1, 2, 3, pace=PATIENT, max_tokens=9)
    await edge.frames[patient].get()
    # Between these steps the session waited for a hint, and the engine with it.
    edge.link.send(Draft(patient, 4, 4, (7,)))
    await edge.frames[patient].get()
    assert service.stats()["gaps"] == 0
    at_once = edge.open(1, 2, 3, max_tokens=5)
    while (await edge.frames[at_once].get()).finish is Finish.NONE:
        pass
    stats = service.stats()
    assert stats["gaps"] == 4
    assert stats["gap_s"] > 0
    assert 0 <= stats["gaps_over_1ms"] <= 4


async def test_stats_show_what_fills_the_engine(service: CloudService) -> None:
    assert service.stats()["engine"] == {"kv_use": 0.5}


PROMPT = tuple(range(100, 100 + 2 * BLOCK_TOKENS + 10))


def hash_of(tokens: Sequence[int]) -> bytes:
    return list(blocks(tokens))[-1][0]


async def test_a_prompt_may_build_on_what_was_said_before(edge: Edge, engine: Engine) -> None:
    answer = await edge.answer(edge.open(*PROMPT, max_tokens=60))
    told = (*PROMPT, *answer)
    assert len(told) == 198
    for length in (64, 128, 192):
        stream = edge.open(5, 6, prefix_hash=hash_of(told[:length]), prefix_len=length)
        assert (await edge.frames[stream].get()).base == length + 2
        await edge.answer(stream)
        assert tuple(engine.prompts[-1]) == (*told[:length], 5, 6)


async def test_a_prompt_may_build_on_one_that_is_still_being_answered(edge: Edge, engine: Engine) -> None:
    running = edge.open(*PROMPT, pace=PATIENT, max_tokens=9)
    await edge.frames[running].get()
    stream = edge.open(5, prefix_hash=hash_of(PROMPT), prefix_len=128)
    await edge.answer(stream)
    assert tuple(engine.prompts[-1]) == (*PROMPT[:128], 5)


async def test_what_an_edge_was_told_another_edge_may_build_on(
    service: CloudService, edge: Edge, engine: Engine
) -> None:
    """And the same one when it comes back."""
    await edge.answer(edge.open(*PROMPT))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(service.protocol, "127.0.0.1", 0)
    other = Edge(loop)
    await loop.create_connection(lambda: other.link, *server.sockets[0].getsockname()[:2])
    await other.connected.wait()
    await other.answer(other.open(5, prefix_hash=hash_of(PROMPT), prefix_len=128))
    assert tuple(engine.prompts[-1]) == (*PROMPT[:128], 5)
    other.link.abort()
    server.close()


async def test_a_prefix_that_is_not_held_is_told_and_costs_nothing_else(edge: Edge) -> None:
    unknown = await edge.frames[edge.open(5, prefix_hash=b"x" * 32, prefix_len=64)].get()
    assert (unknown.code, "send the whole prompt" in unknown.message) == (Code.UNKNOWN_PREFIX, True)
    odd = await edge.frames[edge.open(5, prefix_hash=b"x" * 32, prefix_len=63)].get()
    assert odd.code is Code.BAD_REQUEST
    huge = await edge.frames[edge.open(5, prefix_hash=b"x" * 32, prefix_len=(1 << 32) - 1)].get()
    assert huge.code is Code.CONTEXT_OVERFLOW
    assert await edge.answer(edge.open(1)) == (7, 7, 7)


async def test_a_prefix_with_nothing_behind_it_is_an_empty_prompt(edge: Edge) -> None:
    await edge.answer(edge.open(*PROMPT))
    reset = await edge.frames[edge.open(prefix_hash=hash_of(PROMPT), prefix_len=128)].get()
    assert (reset.code, reset.message) == (Code.BAD_REQUEST, "the prompt is empty")


async def test_a_refused_prompt_is_not_remembered(edge: Edge) -> None:
    refused = await edge.frames[edge.open(*PROMPT, sampling={"rule": "no such"})].get()
    assert refused.code is Code.BAD_REQUEST
    unknown = await edge.frames[edge.open(5, prefix_hash=hash_of(PROMPT), prefix_len=128)].get()
    assert unknown.code is Code.UNKNOWN_PREFIX


async def test_what_was_held_already_is_told_once(edge: Edge) -> None:
    stream = edge.open(1, 2, 3)
    assert [(await edge.frames[stream].get()).cached for _ in range(3)] == [2, None, None]


async def test_whoever_wants_it_fresh_gets_it_fresh(edge: Edge, engine: Engine) -> None:
    await edge.answer(edge.open(1, max_tokens=1))
    await edge.answer(edge.open(1, max_tokens=1, fresh=1))
    assert engine.fresh == [False, True]


async def test_idle_time_is_used_until_there_is_nothing_left_to_do(edge: Edge, engine: Engine) -> None:
    engine.unprepared = 3
    await edge.answer(edge.open(1))
    await asyncio.to_thread(engine.prepared.wait, LIMIT_S)
    assert engine.unprepared == 0


async def test_idle_time_is_not_used_while_a_session_runs(edge: Edge, engine: Engine) -> None:
    engine.unprepared = 1
    running = edge.open(1, pace=PATIENT)
    await edge.frames[running].get()
    await edge.answer(edge.open(2))
    await asyncio.sleep(2 * IDLE_S)
    assert engine.unprepared == 1
    edge.link.send(Reset(running, Code.CANCELLED, ""))
    await asyncio.to_thread(engine.prepared.wait, LIMIT_S)
    assert engine.unprepared == 0


async def test_a_cloud_is_idle_when_nothing_runs_and_nothing_is_read_again(
    service: CloudService, edge: Edge, engine: Engine
) -> None:
    assert service.stats()["idle"]
    engine.endless = True
    await edge.answer(edge.open(1))
    await asyncio.to_thread(engine.preparing.wait, LIMIT_S)
    assert not service.stats()["idle"]
    engine.endless = False
    running = edge.open(2, pace=PATIENT)
    await edge.frames[running].get()
    assert not service.stats()["idle"]
    edge.link.send(Reset(running, Code.CANCELLED, ""))
    await asyncio.to_thread(engine.prepared.wait, LIMIT_S)
    async with asyncio.timeout(LIMIT_S):
        while not service.stats()["idle"]:
            await asyncio.sleep(0)


async def test_what_a_lost_link_left_is_not_prepared_but_gone_on_with(
    service: CloudService, edge: Edge, engine: Engine
) -> None:
    engine.unprepared = 1
    await edge.frames[edge.open(1, pace=PATIENT)].get()
    edge.link.abort()
    while service.status()["running"]:
        await asyncio.sleep(0)
    await asyncio.sleep(2 * IDLE_S)
    assert engine.unprepared == 1


async def test_whoever_comes_does_not_wait_for_idle_work(edge: Edge, engine: Engine) -> None:
    engine.endless = True
    await edge.answer(edge.open(1))
    await asyncio.to_thread(engine.preparing.wait, LIMIT_S)
    engine.endless = False
    assert await edge.answer(edge.open(2)) == (7, 7, 7)


async def test_an_edge_that_commits_takes_turns_with_the_cloud(service: CloudService, edge: Edge) -> None:
    stream = edge.link.connection.new_stream()
    opening = Open(stream, None, 0, (1, 2, 3), (), {"rule": "greedy"}, 9, (), AT_ONCE, limit=3)
    edge.link.send(opening)
    edge.link.send(Commit(stream, 3, (7, 8), Origin.EDGE_CONFIDENT, limit=6, audit=2))
    frames = edge.frames[stream]
    # This engine accepts no hint, and says 7.
    assert await frames.get() == Audit(stream, 3, b"\x01", 1)
    assert await frames.get() == Audit(stream, 4, b"\x00", 1)
    tokens = await frames.get()
    assert (tokens.base, tokens.ids, tokens.finish) == (5, (7,), Finish.NONE)
    edge.link.send(Commit(stream, 6, (), Origin.EDGE_CONFIDENT, limit=7))
    assert (await frames.get()).base == 6
    assert service.sessions()[0]["state"] == "held"
    edge.link.send(Commit(stream, 5, (9,), Origin.EDGE_CONFIDENT, limit=9))
    reset = await frames.get()
    assert reset.code is Code.BAD_REQUEST
    assert service.sessions() == []
    stats = service.stats()
    assert (stats["audited"], stats["agreed"]) == (2, 1)


async def test_a_hanging_engine_has_no_turn(service: CloudService, edge: Edge, engine: Engine) -> None:
    entered, go_on, step = threading.Event(), threading.Event(), engine.step

    def hang(work: Sequence[Work]) -> StepResult:
        entered.set()
        go_on.wait(LIMIT_S)
        return step(work)

    await service.engine_turn()
    engine.step = hang  # type: ignore[method-assign]
    stream = edge.open(1, 2, 3, max_tokens=1)
    assert await asyncio.to_thread(entered.wait, LIMIT_S)
    turn = asyncio.create_task(service.engine_turn())
    assert not (await asyncio.wait([turn], timeout=0.05))[0]
    assert service.summary() == "serving: 1 sessions running, 0 waiting, 1 edges connected"
    go_on.set()
    await turn
    assert (await edge.frames[stream].get()).finish is Finish.LENGTH


async def test_the_log_names_connection_and_session(
    service: CloudService, edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    healthy = edge.open(1, 2, 3)
    while (await edge.frames[healthy].get()).finish is Finish.NONE:
        pass
    assert isinstance(await edge.frames[edge.open(POISON)].get(), Reset)
    ended = [record for record in caplog.records if record.message.startswith("session ended: ")]
    assert [record.message.split(";")[0] for record in ended] == [
        "session ended: length",
        "session ended: a worker died",
    ]
    for record, numbers in zip(ended, [(1, 1, 1), (1, 2, 2)], strict=True):
        about = record.__dict__
        assert (about["connection"], about["session"], about["stream"]) == numbers
        assert about["peer"].startswith("127.0.0.1:")
