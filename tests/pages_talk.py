"""Systems without models for tests of pages: cells tell their token, and reading takes time.

`Reader` is the cloud's, `SlowDrafter` the edge's.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import numpy as np

from ecd.cloud.assist import Assist
from ecd.cloud.batcher import Batcher
from ecd.cloud.service import CloudService
from ecd.cloud.session import Vocabulary
from ecd.cloud.verifier import Capacity, Judged, StepResult, Work
from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Answer, Chunk
from ecd.edge.drafter import DraftTask, Prefill
from ecd.edge.meter import Meter
from ecd.edge.service import EdgeService
from ecd.edge.uplink import Backoff
from ecd.edge.uplinks import Place, Uplinks
from ecd.errors import EngineError
from ecd.pages import Cells, Encoding, Shape
from ecd.sampling import Guess, Verdict
from ecd.wire.connection import FEATURES, PAGES, Role, Settings
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.messages import Finish

FINGERPRINT = Fingerprint(1000, "aa", {"bos": 1}, "bpe", "bb")
SHAPE = Shape(b"d" * 16, 2, ((64, 64), (64, 32)))
CHUNK = 64


def cells_of(tokens: Sequence[int], first: int, last: int) -> Cells:
    """Noise that no compression shortens much, the token in front."""
    rows = [np.random.default_rng((tokens[p], p)).normal(size=SHAPE.width) for p in range(first, last)]
    cells = np.asarray(rows).astype(np.float16)
    cells[:, 0] = tokens[first:last]
    return cells


def next_token(tokens: Sequence[int]) -> int:
    """What the target says; a token that is lost or comes twice changes all that follow."""
    return (31 * tokens[-1] + 17 * tokens[-2] + len(tokens)) % 900 + 50


def text_behind(prompt: Sequence[int], length: int) -> tuple[int, ...]:
    """The target's answer."""
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(next_token(tokens))
    return tuple(tokens[len(prompt) :])


class Target:
    """A `Verifier` that takes 5 ms for a step, and knows a right hint from a wrong one."""

    capacity = Capacity(4, 4000)

    def step(self, work: Sequence[Work]) -> StepResult:
        time.sleep(0.005)
        return StepResult({item.key: self._judge(item) for item in work})

    def _judge(self, item: Work) -> Judged:
        tokens = list(item.tokens)
        for accepted, hint in enumerate(item.hints):
            tokens.append(next_token(tokens))
            if hint.token != tokens[-1]:
                return Judged(Verdict(tuple(tokens[len(item.tokens) :]), accepted), len(item.hints))
        tokens.append(next_token(tokens))
        return Judged(Verdict(tuple(tokens[len(item.tokens) :]), len(item.hints)), len(item.hints))

    def forget(self, key: int) -> None: ...

    def prepare(self, stop: Callable[[], bool]) -> bool:
        return False

    def stats(self) -> dict[str, int | float]:
        return {}

    def close(self) -> None: ...


def a_cloud(assist: Assist | None = None, model: str | None = None) -> CloudService:
    """A cloud on Target; with an assist it says that it has the pages of `model`."""
    settings = Settings(
        Role.CLOUD,
        "cloud",
        FINGERPRINT,
        limits={"max_streams": 8, "max_ahead": 16, "max_context": 4000},
        model={"name": "big", PAGES: model or SHAPE.model.hex()},
        features=(*FEATURES, PAGES),
        ping_interval_s=0.05,
    )
    vocabulary = Vocabulary(1000, frozenset(), lambda token: b"x")
    return CloudService(Target(), vocabulary, settings, Batcher(Target.capacity, 4, 4), assist=assist)


EDGE = Settings(Role.EDGE, "edge", FINGERPRINT, features=(*FEATURES, PAGES), ping_interval_s=0.05)


def an_edge(drafter: "SlowDrafter", port: int, encoding: Encoding | None = None) -> EdgeService:
    """An edge on a drafter, and its uplink to a local port."""
    edge = EdgeService(
        drafter,
        Acceptance(),
        Meter(),
        n_vocab=1000,
        piece=lambda token: b"x",
        link_wait_s=20.0,
        pages=drafter,
        encoding=encoding,
    )
    places = [Place("127.0.0.1", port)]
    edge.attach(Uplinks(places, EDGE, Backoff(0.01, 0.02), edge.on_event, lambda: edge.bound))
    return edge


@contextlib.asynccontextmanager
async def running(*jobs: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Jobs that run meanwhile. One that fails fails the test."""
    tasks = [asyncio.create_task(job()) for job in jobs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(outcome, asyncio.CancelledError):
                raise outcome  # type: ignore[misc]


async def connected(edge: EdgeService) -> None:
    """Returns once the edge has heard from its cloud."""
    async with asyncio.timeout(20.0):
        while edge.uplinks.link is None or not edge.uplinks.link.connection.peer_load:
            await asyncio.sleep(0.01)


async def to_its_end(answer: Answer) -> tuple[int, ...]:
    """The ids of all chunks of an answer; its text must be the target's."""
    ids: list[int] = []
    async with asyncio.timeout(20.0):
        while not isinstance(arrival := await answer.chunks.get(), Finish):
            assert isinstance(arrival, Chunk), arrival
            ids += arrival.ids
    request = answer.generation.request
    assert tuple(ids) == text_behind(request.prompt, request.max_tokens)
    return tuple(ids)


class Reader:
    """An `AssistEngine` that takes `token_s` for each token."""

    places = 2
    context_tokens = 4096
    shape = SHAPE

    def __init__(self, token_s: float = 1e-5) -> None:
        self.token_s = token_s
        self.fails_from: int | None = None
        self.asked: list[tuple[int, int]] = []
        self.tenants: list[str] = []

    def common(self, place: int, tokens: Sequence[int], tenant: str) -> int:
        return 0

    def cells(self, place: int, tokens: Sequence[int], tenant: str, first: int, last: int) -> Cells:
        self.asked.append((first, last))
        self.tenants.append(tenant)
        if self.fails_from is not None and last > self.fails_from:
            raise EngineError("the reader broke")
        time.sleep((last - first) * self.token_s)
        return cells_of(tokens, first, last)

    def close(self) -> None: ...


class SlowDrafter:
    """A `Drafter` and a `PageHolder` with one slot that reads CHUNK tokens in `chunk_s` and guesses well."""

    slots = branches = 1
    slot_tokens = 4096
    shape: Shape | None = SHAPE

    def __init__(self, chunk_s: float) -> None:
        self.chunk_s = chunk_s
        self.cells: list[int] = []
        self.read_here = 0
        self.puts: list[int] = []
        self.breaks = False

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        (task,) = tasks
        wanted = list(task.context)
        same = next((n for n, (a, b) in enumerate(zip(self.cells, wanted, strict=False)) if a != b), None)
        del self.cells[len(wanted) - 1 if same is None else same :]
        fresh = wanted[len(self.cells) : len(self.cells) + CHUNK]
        if len(fresh) == CHUNK:
            time.sleep(self.chunk_s)
        self.read_here += len(fresh)
        self.cells += fresh
        if len(self.cells) < len(wanted):
            return [()]
        time.sleep(0.001)
        return [(Guess(next_token(wanted), confidence=0.9),)]

    def release(self, slot: int) -> None:
        self.cells = []

    def close(self) -> None: ...

    def stats(self) -> dict[str, int]:
        return {}

    def prefill(self, slot: int) -> Prefill:
        return Prefill()

    def held(self, slot: int) -> int:
        return len(self.cells)

    def take(self, slot: int, tokens: Sequence[int]) -> Cells | None:
        held = next(
            (n for n, (a, b) in enumerate(zip(self.cells, tokens, strict=False)) if a != b),
            min(len(self.cells), len(tokens)),
        )
        return cells_of(tokens, 0, held) if held else None

    def put(self, slot: int, tokens: Sequence[int], parts: Sequence[Cells]) -> None:
        self.cells = []
        if self.breaks:
            raise EngineError("the cells do not fit")
        cells = np.concatenate(parts)
        assert cells.shape == (len(tokens), SHAPE.width)
        # q8_0 keeps a small number exactly enough to tell it.
        assert np.rint(cells[:, 0]).astype(int).tolist() == list(tokens)
        self.cells = list(tokens)
        self.puts.append(len(tokens))
