"""When a cloud committed which tokens: a verifier around another, which notes how far each step came.

Owns the file of notes. Times are CLOCK_MONOTONIC, the same for all processes of a machine, so that a client's
can be held against them.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from ecd.cloud.verifier import StepResult, Verifier, Work

Commits = dict[tuple[int, int], float]


class NotingVerifier:
    """`Verifier` that leaves all work to `inner` and writes its notes to `path` when it is closed."""

    def __init__(self, inner: Verifier, path: Path):
        self.capacity = inner.capacity
        self._inner = inner
        self._path = path
        self._notes: list[tuple[int, int, float]] = []

    def step(self, work: Sequence[Work]) -> StepResult:
        """The other's step."""
        before = {item.key: len(item.tokens) - item.prompt_len for item in work}
        result = self._inner.step(work)
        at_s = monotonic()
        for key, judged in result.judged.items():
            self._notes.append((key, before[key] + len(judged.verdict.tokens), at_s))
        return result

    def forget(self, key: int) -> None:
        """The other's."""
        self._inner.forget(key)

    def prepare(self, stop: Callable[[], bool]) -> bool:
        """The other's."""
        return self._inner.prepare(stop)

    def stats(self) -> dict[str, int | float]:
        """The other's."""
        return self._inner.stats()

    def close(self) -> None:
        """Writes the notes and closes the other."""
        self._path.write_text(json.dumps(self._notes))
        self._inner.close()


def load_commits(path: Path) -> Commits:
    """When an answer, by number from 1, came to have so many tokens; monotonic seconds."""
    return {(session, tokens): at_s for session, tokens, at_s in json.loads(path.read_text())}
