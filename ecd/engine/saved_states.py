"""States of sequences that had to leave the engine's cells: some in memory, more on a disk.

Owns which goes where. Called from the engine's thread; files are written by a thread of their own, since
compressing takes longer than a step.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from ecd.config import KvCache
from ecd.engine.prefix_cache import WORTH_TOKENS, PrefixCache, Saved, State, Text, Wanted
from ecd.engine.state_files import StateFiles
from ecd.errors import EngineError

log = logging.getLogger(__name__)

# States that may wait to be written; each is as large as the cells of a long text.
MAX_WAITING = 2


class SavedStates:
    """What `settings` allow to keep. `fingerprint`: of model and engine; it is asked for only with a disk.

    Raises ConfigError when the disk's folder cannot be made.
    """

    def __init__(self, settings: KvCache, fingerprint: Callable[[], bytes]):
        disk = settings.disk
        self._memory = PrefixCache(settings.max_bytes)
        self._files = None if disk is None else StateFiles(disk.path, disk.max_bytes, fingerprint())
        self._writer = ThreadPoolExecutor(1, "kv-writer")
        self._writes: list[Future[None]] = []

    def find(self, wanted: Wanted, more_than: int) -> tuple[int, Saved] | None:
        """What serves clearly more of it than `more_than` tokens, and how many; from the disk only where that
        is clearly more again.
        """
        found = self._memory.find(wanted, more_than)
        if self._files is None:
            return found
        return self._files.find(wanted, found[0] if found else more_than) or found

    def put(self, text: Text, save: Callable[[], State]) -> None:
        """Keeps a text's state, which is asked for only where it is worth it and not held yet."""
        nowhere = self._files is None and not self._memory.max_bytes
        if nowhere or len(text.tokens) < WORTH_TOKENS or self._memory.covers(text):
            return
        if (saved := _saved(text, save)) is None:
            return
        for gone in self._memory.put(saved):
            self._write_later(gone)

    def close(self, in_cells: Iterable[tuple[Text, Callable[[], State]]]) -> None:
        """Writes what memory and the cells hold to the disk, if there is one; takes as long as that takes."""
        self._writer.shutdown()
        if self._files is None:
            return
        for saved in self._memory:
            self._files.write(saved)
        for text, save in in_cells:
            if len(text.tokens) < WORTH_TOKENS or self._files.covers(text):
                continue
            if (last := _saved(text, save)) is not None:
                self._files.write(last)

    def stats(self) -> dict[str, int]:
        """What both hold: `saved_texts` and `saved_bytes` in memory, `disk_texts` and `disk_bytes`."""
        told = {"saved_texts": len(self._memory), "saved_bytes": self._memory.size_bytes}
        if self._files is not None:
            told |= {"disk_texts": len(self._files), "disk_bytes": self._files.size_bytes}
        return told

    def _write_later(self, saved: Saved) -> None:
        """It is only a cache: where writing is too slow, what comes too fast is lost."""
        self._writes = [write for write in self._writes if not write.done()]
        if self._files is not None and len(self._writes) < MAX_WAITING:
            self._writes.append(self._writer.submit(self._files.write, saved))


def _saved(text: Text, save: Callable[[], State]) -> Saved | None:
    """None, and a warning, where the engine does not give the state."""
    try:
        return Saved(text, save())
    except EngineError as e:
        log.warning("a text of %d tokens could not be kept: %s", len(text.tokens), e)
        return None
