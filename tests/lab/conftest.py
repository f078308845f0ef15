"""A small trace that needs no model."""

import pytest

from ecd.lab.trace import Provenance, Recording, Trace
from ecd.sampling import Guess, Sampling


@pytest.fixture
def trace() -> Trace:
    """Two prompts; in the first the draft is wrong once, and its second choice is right there."""
    return Trace(
        Provenance("big", "small", 8, {"ecd": "0"}, "a machine", "2026-01-01"),
        n_vocab=40,
        eog=(0, 1),
        pieces={10: b"a", 11: b" b", 12: b"\xf0\x9f", 13: b"\x99\x82", 0: b""},
        recordings=(
            Recording(
                "code",
                "first prompt",
                (2, 3, 4),
                Sampling(seed=5),
                (10, 11, 12, 13),
                (
                    Guess(10, 0.9, second=11),
                    Guess(20, 0.4, second=11),
                    Guess(12, 0.8, second=21),
                    Guess(13, 0.7, second=22),
                ),
                step_ms=30.0,
                draft_ms=5.0,
            ),
            Recording(
                "chat",
                "second prompt",
                tuple([2] * 600),
                Sampling(seed=5),
                (11, 0),
                (Guess(11, 0.5), Guess(0, 0.6)),
                step_ms=50.0,
                draft_ms=7.0,
            ),
        ),
    )
