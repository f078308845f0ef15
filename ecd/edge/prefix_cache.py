"""What the edge keeps of texts that are over, and how much of it a new one takes over: the longest prefix by
token ids.

Owns the text that is over and still in llama.cpp's cells, and the others' saved states. How much of a text
serves another, and which states stay, is `engine.prefix_cache`'s; which cells hold a text that runs, the
drafter's. Called from the drafter's thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from ecd.config import KvCache
from ecd.engine.llama import LlamaContext
from ecd.engine.prefix_cache import WORTH_TOKENS, Text, Wanted
from ecd.engine.saved_states import SavedStates


@dataclass(frozen=True, slots=True, eq=False)
class InCells:
    """A text in the cells of a sequence."""

    sequence: int
    text: Text


class EdgePrefixCache:
    """The text that was over last stays in its cells, and no more than that one: each token attends to all
    cells in use, whosoever they are. Others are saved as `settings` allow.

    Raises ConfigError when the disk's folder cannot be made.
    """

    def __init__(self, context: LlamaContext, settings: KvCache):
        self._context = context
        self._saved = SavedStates(settings, context.fingerprint)
        self._kept: InCells | None = None

    def keep(self, over: InCells) -> None:
        """A text is over and stays in its cells."""
        self.make_way()
        self._kept = over

    def make_way(self) -> None:
        """The cells of the text that is over are wanted: it is saved."""
        self._save()
        self._free()

    def begin(self, wanted: Wanted, main: int, running: Iterable[InCells], *, fresh: bool) -> int:
        """Puts a beginning of a new text into the cells of `main`, the longest that there is, and says how
        long. `main` may hold more behind it. `running`: texts that are not over. `fresh`: nothing is taken.
        """
        self._save(wanted)
        held = 0 if fresh else self._take_over(wanted, main, running)
        self._free(but=main)
        return held

    def stats(self) -> dict[str, int]:
        """Tokens in cells of a text that is over, and what is saved."""
        return {
            "kept_tokens": 0 if self._kept is None else len(self._kept.text.tokens),
            **self._saved.stats(),
        }

    def close(self, running: Iterable[InCells]) -> None:
        """What survives a restart is written."""
        in_cells = self._with_kept(running)
        self._saved.close((each.text, partial(self._context.save, each.sequence)) for each in in_cells)

    def _with_kept(self, running: Iterable[InCells]) -> list[InCells]:
        return [*([] if self._kept is None else [self._kept]), *running]

    def _take_over(self, wanted: Wanted, main: int, running: Iterable[InCells]) -> int:
        in_cells = self._with_kept(running)
        best = max(in_cells, key=lambda each: wanted.held_by(each.text), default=None)
        held = 0 if best is None else wanted.held_by(best.text)
        if found := self._saved.find(wanted, held):
            return found[0] if self._context.load(main, found[1].state) else 0
        if best is not None and held and best.sequence != main:
            self._context.copy(best.sequence, main, held)
        return held

    def _save(self, wanted: Wanted | None = None) -> None:
        """Saves the text that is over and still in the cells, unless `wanted` goes on from it."""
        kept = self._kept
        if (
            kept is not None
            and len(kept.text.tokens) - (wanted.common(kept.text) if wanted else 0) >= WORTH_TOKENS
        ):
            self._saved.put(kept.text, partial(self._context.save, kept.sequence))

    def _free(self, but: int | None = None) -> None:
        """Its cells are free again; those of the sequence `but` are in use by now."""
        kept, self._kept = self._kept, None
        if kept is not None and kept.sequence != but:
            self._context.truncate(kept.sequence, 0)
