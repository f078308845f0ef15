"""Cells of a llama.cpp context by position: taken out of a sequence, put into one.

Owns what this context's states look like, which it finds out from one of its own. Called from the context's
thread.
"""

from collections.abc import Sequence

import numpy as np

from ecd.engine.kv_state import read, write
from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.errors import EngineError
from ecd.pages import Cells, Shape


class KvCells:
    """The cells of `context`, whose sequence 0 must be empty. EngineError for other kinds of caches."""

    def __init__(self, model: LlamaModel, context: LlamaContext):
        self._context = context
        context.decode([Segment(0, 0, (0,), 0)])
        self._layout, _, _ = read(context.save(0))
        context.truncate(0, 0)
        self.shape = Shape(model.digest(), model.kv_heads, self._layout.layers)

    def take(self, sequence: int, first: int, last: int) -> Cells:
        """The cells of a sequence's positions `first` to `last` - 1; EngineError if it does not hold them."""
        layout, positions, cells = read(self._context.save(sequence))
        at = int(np.searchsorted(positions, first))
        wanted = positions[at : at + last - first]
        if layout.layers != self._layout.layers or wanted.tolist() != list(range(first, last)):
            raise EngineError(f"sequence {sequence} does not hold the positions {first} to {last}")
        return cells[at : at + last - first]

    def take_apart(self, sequence: int, scratch: int, first: int, last: int) -> Cells:
        """The same by way of an empty sequence, so that the rest of a long one is not copied too.

        Only where cells are shared.
        """
        self._context.copy(sequence, scratch, last, first)
        try:
            return self.take(scratch, first, last)
        finally:
            self._context.truncate(scratch, 0)

    def put(self, sequence: int, parts: Sequence[Cells]) -> None:
        """The sequence holds these cells, one part behind the other, from position 0 on, and nothing else.

        Raises EngineError when they do not fit; it holds nothing then.
        """
        cells = np.concatenate(parts)
        if cells.dtype != np.float16 or cells.ndim != 2 or cells.shape[1] != self._layout.width:
            raise EngineError(f"cells of shape {cells.shape} are not those of this model")
        if not self._context.load(sequence, write(self._layout, 0, cells)):
            raise EngineError(f"{len(cells)} positions of pages do not fit the context; raise context_tokens")
