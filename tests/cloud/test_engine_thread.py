"""The engine's thread: what comes of a step, and for how long it stood still with work at hand."""

from collections.abc import AsyncIterator, Sequence

import pytest
from test_cloud_service import POISON, Engine

from ecd.cloud.engine_thread import EngineThread
from ecd.cloud.verifier import StepResult, Work
from ecd.errors import EngineError, EngineLost
from ecd.sampling import Sampling


def work(*tokens: int) -> list[Work]:
    return [Work(1, tokens, len(tokens), Sampling(), [])]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def thread(engine: Engine) -> AsyncIterator[EngineThread]:
    thread = EngineThread(engine)
    yield thread
    thread.close()


async def test_a_gap_is_from_one_step_to_the_next_unless_there_was_no_work_between(
    thread: EngineThread,
) -> None:
    await (await thread.step([], work(1, 2)))
    assert thread.stats()["gaps"] == 0
    _, step_s = await (await thread.step([], work(1, 2)))
    assert step_s >= 0
    assert thread.stats()["gaps"] == 1
    thread.rest()
    await (await thread.step([], work(1, 2)))
    assert thread.stats()["gaps"] == 1
    # Nor is a step that only forgets one that somebody waited for.
    await (await thread.step([1], []))
    await (await thread.step([], work(1, 2)))
    assert thread.stats()["gaps"] == 1
    assert 0 < thread.stats()["gap_s"] < 10


@pytest.mark.parametrize("error", [EngineLost("a worker died"), EngineError("no memory")])
async def test_a_failure_is_that_of_the_sessions_of_the_step(
    thread: EngineThread, engine: Engine, error: EngineError
) -> None:
    engine.error = error
    result, _ = await (await thread.step([], work(POISON)))
    assert result.failed == {1: error}
    assert thread.stats()["engine_restarts"] == isinstance(error, EngineLost)
    result, _ = await (await thread.step([], work(1)))
    assert set(result.judged) == {1}


async def test_what_nobody_foresaw_is_an_engine_error(thread: EngineThread, engine: Engine) -> None:
    def step(work: Sequence[Work]) -> StepResult:
        raise ZeroDivisionError("one over none")

    engine.step = step  # type: ignore[method-assign]
    result, _ = await (await thread.step([], work(1)))
    assert isinstance(result.failed[1], EngineError)
    assert "one over none" in str(result.failed[1])
