"""The seam to a drafter whose KV cells can be taken and given, position by position.

Methods are called from the drafter's thread, but `shape`, `prefill` and `held`, which anyone may ask while no
call runs.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ecd.edge.drafter import Prefill
from ecd.pages import Cells, Shape


@runtime_checkable
class PageHolder(Protocol):
    """What of a drafter the assist and the hand-over need."""

    @property
    def shape(self) -> Shape | None:
        """What its cells are like; None where they cannot be taken or given."""
        ...

    def prefill(self, slot: int) -> Prefill:
        """What of the slot's text was held already when it began."""
        ...

    def held(self, slot: int) -> int:
        """Positions that the slot's main line holds."""
        ...

    def take(self, slot: int, tokens: Sequence[int]) -> Cells | None:
        """The cells of as many of the tokens as the slot holds, from the first on; None for none."""
        ...

    def put(self, slot: int, tokens: Sequence[int], parts: Sequence[Cells]) -> None:
        """The slot holds the tokens by these cells, and nothing else.

        Raises EngineError when they do not fit; it holds nothing then.
        """
        ...
