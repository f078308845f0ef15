"""Engines without models for tests of pages: cells tell their token, and reading takes time.

`Reader` is the cloud's, `SlowDrafter` the edge's.
"""

import time
from collections.abc import Sequence

import numpy as np

from ecd.edge.drafter import DraftTask
from ecd.errors import EngineError
from ecd.pages import Cells, Shape
from ecd.sampling import Guess

SHAPE = Shape(b"d" * 16, 2, ((64, 64), (64, 32)))
CHUNK = 64


def cells_of(tokens: Sequence[int], first: int, last: int) -> Cells:
    """Noise that no compression shortens much, the token in front."""
    rows = [np.random.default_rng((tokens[p], p)).normal(size=SHAPE.width) for p in range(first, last)]
    cells = np.asarray(rows).astype(np.float16)
    cells[:, 0] = tokens[first:last]
    return cells


class Reader:
    """An `AssistEngine` that takes `token_s` for each token."""

    places = 2
    context_tokens = 4096
    shape = SHAPE

    def __init__(self, token_s: float = 1e-5) -> None:
        self.token_s = token_s
        self.fails_from: int | None = None
        self.asked: list[tuple[int, int]] = []

    def common(self, place: int, tokens: Sequence[int]) -> int:
        return 0

    def cells(self, place: int, tokens: Sequence[int], first: int, last: int) -> Cells:
        self.asked.append((first, last))
        if self.fails_from is not None and last > self.fails_from:
            raise EngineError("the reader broke")
        time.sleep((last - first) * self.token_s)
        return cells_of(tokens, first, last)

    def close(self) -> None: ...


class SlowDrafter:
    """A `Drafter` and a `PageHolder` with one slot that reads CHUNK tokens in `chunk_s` and guesses 7."""

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
        return [(Guess(7, confidence=0.9),) if len(self.cells) == len(wanted) else ()]

    def release(self, slot: int) -> None:
        self.cells = []

    def close(self) -> None: ...

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
