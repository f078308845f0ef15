"""What a lost engine means for the sessions of a cloud: a service over TCP with an engine without a model."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from ecd.cloud.batcher import Batcher
from ecd.cloud.service import CloudService
from ecd.cloud.session import Vocabulary
from ecd.cloud.verifier import Capacity, Judged, StepResult, Work
from ecd.errors import Code, EngineError, EngineLost
from ecd.sampling import Verdict
from ecd.wire.connection import Connected, Connection, Event, Received, Role, Settings
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.link import Link
from ecd.wire.messages import Draft, Finish, Open, Pace, Reset, Tokens

FINGERPRINT = Fingerprint(1000, "aa", {"bos": 1}, "bpe", "bb")
LIMITS = {"max_streams": 8, "max_ahead": 16, "max_context": 100}
LIMIT_S = 10.0
# Longer than the test: such a session takes part in a step only when a hint of its own has come.
PATIENT, AT_ONCE = Pace(20_000_000, 1), Pace(0, 1)
POISON = 666


class Engine:
    """Says 7 after everything, and is lost by a prompt that begins with POISON."""

    capacity = Capacity(4, 100)

    def __init__(self) -> None:
        self.error: EngineError = EngineLost("a worker died")

    def step(self, work: Sequence[Work]) -> StepResult:
        if any(item.tokens[0] == POISON for item in work):
            raise self.error
        return StepResult({item.key: Judged(Verdict((7,), 0), len(item.hints)) for item in work})

    def forget(self, key: int) -> None: ...

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

    def open(self, *prompt: int, pace: Pace = AT_ONCE, max_tokens: int = 3) -> int:
        stream = self.link.connection.new_stream()
        self.link.send(Open(stream, None, 0, prompt, (), {"rule": "greedy"}, max_tokens, (), pace))
        return stream


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def service(engine: Engine) -> AsyncIterator[CloudService]:
    settings = Settings(Role.CLOUD, "cloud under test", FINGERPRINT, limits=LIMITS)
    vocabulary = Vocabulary(1000, frozenset(), lambda token: b"x")
    service = CloudService(engine, vocabulary, settings, Batcher(engine.capacity, 4, 4), lambda: None)
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
