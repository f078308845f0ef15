"""How often guesses come true, by drafter and by how sure the drafter was.

Pure counting, with old guesses counting less and less. It does not know what is decided by it. One thread
writes; another may read its floats.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any, Protocol

from ecd.decayed_rate import DecayedRate

# Finer towards 1, where most of a good draft model's guesses are: upper edges of all buckets but the last.
BUCKETS = (0.2, 0.4, 0.6, 0.75, 0.875, 0.95, 0.99)
# A bucket starts as if so many guesses had come true just as often as their confidence says, an answer's
# record of copies as if as often as the edge's.
PRIOR_GUESSES = 4.0
# Guesses after which an old one counts 1/e.
MEMORY_GUESSES = 100.0
# A drafter that is certain may err, and one that is not may be right.
_LEAST = 0.01


NO_COPIES = DecayedRate(1.0)


@dataclass(slots=True)
class _Record:
    drafted: int = 0
    settled: int = 0
    right: int = 0
    recent: DecayedRate = field(default_factory=lambda: DecayedRate(MEMORY_GUESSES))
    buckets: tuple[DecayedRate, ...] = field(
        default_factory=lambda: tuple(DecayedRate(MEMORY_GUESSES) for _ in range(len(BUCKETS) + 1))
    )


class Rates(Protocol):
    """What those see of `Acceptance` who go by chances and settle guesses."""

    def rate(self, drafter: str, confidence: float) -> float: ...

    def copy_rate(self, slot: int | None, confidence: float, before: int) -> float: ...

    def drafted(self, drafter: str, guesses: int = 1) -> None: ...

    def settle(self, drafter: str, confidence: float, right: bool) -> None: ...


class Acceptance:
    """Counts of all drafters by name. A guess is settled when the tokens before it are known to be right."""

    def __init__(self) -> None:
        # What became of the copies that the text in a slot offered, taken or not.
        self.copies: dict[int, DecayedRate] = {}
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

        (right + 4 c) / (settled + 4) over the decayed counts of the confidence c's bucket: the prior is the
        confidence itself.
        """
        prior = min(max(confidence, _LEAST), 1 - _LEAST)
        record = self._records.get(drafter)
        if record is None:
            return prior
        return record.buckets[bisect_right(BUCKETS, confidence)].estimate(prior, PRIOR_GUESSES)

    def copy_rate(self, slot: int | None, confidence: float, before: int) -> float:
        """The chance that a copied guess comes true in the answer of this slot, if `before` copies just
        before it do.

        Answers differ in how well they can be copied much more than places in them do. So the edge's rate is
        a prior that weighs PRIOR_GUESSES, and the answer's own copies, those before this one among them, are
        the evidence.
        """
        record = self.copies.get(slot, NO_COPIES) if slot is not None else NO_COPIES
        prior = self.rate("lookup", confidence)
        return (record.successes + before + PRIOR_GUESSES * prior) / (record.trials + before + PRIOR_GUESSES)

    def mean(self, drafter: str) -> float | None:
        """Share of the last hundred or so guesses that came true; None before the first."""
        record = self._records.get(drafter)
        return None if record is None else record.recent.mean

    def totals(self) -> dict[str, dict[str, Any]]:
        """Counts since start by drafter, as `stats` shows them. `acceptance_rate`: right / settled.

        `recent`: the mean of the last hundred or so. `confidence`: by the upper edge of each bucket in which
        guesses were settled, the share of right ones and how many they count for.
        """
        return {
            drafter: {
                "drafted": record.drafted,
                "settled": record.settled,
                "right": record.right,
                "acceptance_rate": record.right / record.settled if record.settled else None,
                "recent": record.recent.mean,
                "confidence": {
                    f"{edge:g}": {"rate": bucket.mean, "settled": bucket.trials}
                    for edge, bucket in zip((*BUCKETS, 1.0), record.buckets, strict=True)
                    if bucket.trials
                },
            }
            for drafter, record in self._records.items()
        }

    def _record(self, drafter: str) -> _Record:
        # Not setdefault, which would build a record for every token.
        if drafter not in self._records:
            self._records[drafter] = _Record()
        return self._records[drafter]
