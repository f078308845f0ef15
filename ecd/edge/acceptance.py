"""How often guesses come true, by drafter and by how sure the drafter was.

Pure counting. It does not know what is decided by it. One thread writes; another may read its floats.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

# Finer towards 1, where most of a good draft model's guesses are: upper edges of all buckets but the last.
BUCKETS = (0.2, 0.4, 0.6, 0.75, 0.875, 0.95, 0.99)
# A bucket starts as if so many guesses had come true just as often as their confidence says.
PRIOR_GUESSES = 4.0
# Guesses after which an old one counts 1/e.
MEMORY_GUESSES = 100.0
_KEEP = 1 - 1 / MEMORY_GUESSES
# A drafter that is certain may err, and one that is not may be right.
_LEAST = 0.01


@dataclass(slots=True)
class _Decayed:
    """Right ones among settled ones, newer ones counting more."""

    settled: float = 0.0
    right: float = 0.0

    def add(self, right: bool) -> None:
        self.settled = self.settled * _KEEP + 1
        self.right = self.right * _KEEP + right


@dataclass(slots=True)
class _Record:
    drafted: int = 0
    settled: int = 0
    right: int = 0
    recent: _Decayed = field(default_factory=_Decayed)
    buckets: tuple[_Decayed, ...] = field(
        default_factory=lambda: tuple(_Decayed() for _ in range(len(BUCKETS) + 1))
    )


class Acceptance:
    """Counts of all drafters by name. A guess is settled when the tokens before it are known to be right."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def drafted(self, drafter: str, guesses: int = 1) -> None:
        """So many guesses were made; not all of them will be settled."""
        self._record(drafter).drafted += guesses

    def settle(self, drafter: str, confidence: float, right: bool) -> None:
        """A guess of this confidence turned out to be the target's token, or not."""
        record = self._record(drafter)
        record.settled += 1
        record.right += right
        record.recent.add(right)
        record.buckets[bisect_right(BUCKETS, confidence)].add(right)

    def rate(self, drafter: str, confidence: float) -> float:
        """The chance that such a guess comes true, never 0 or 1.

        (4 c + right) / (4 + settled) over the decayed counts of the confidence c's bucket: the mean of a Beta
        posterior whose prior is the confidence itself.
        """
        prior = min(max(confidence, _LEAST), 1 - _LEAST)
        record = self._records.get(drafter)
        if record is None:
            return prior
        bucket = record.buckets[bisect_right(BUCKETS, confidence)]
        return (PRIOR_GUESSES * prior + bucket.right) / (PRIOR_GUESSES + bucket.settled)

    def mean(self, drafter: str) -> float | None:
        """Share of the last hundred or so guesses that came true; None before the first."""
        record = self._records.get(drafter)
        if record is None or not record.recent.settled:
            return None
        return record.recent.right / record.recent.settled

    def totals(self) -> dict[str, dict[str, Any]]:
        """Counts since start by drafter, as `stats` shows them. `acceptance_rate`: right / settled."""
        return {
            drafter: {
                "drafted": record.drafted,
                "settled": record.settled,
                "right": record.right,
                "acceptance_rate": record.right / record.settled if record.settled else None,
            }
            for drafter, record in self._records.items()
        }

    def _record(self, drafter: str) -> _Record:
        # Not setdefault, which would build a record for every token.
        if drafter not in self._records:
            self._records[drafter] = _Record()
        return self._records[drafter]
