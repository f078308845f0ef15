"""Waits between connection attempts."""

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.uplink import Backoff


class Fixed(random.Random):
    """Draws the same number always."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


@given(st.floats(0.001, 10), st.floats(0.001, 100), st.integers(1, 10**9), st.integers(0, 2**32))
def test_a_wait_is_between_half_and_all_of_the_doubled_time(
    first: float, longest: float, failures: int, seed: int
) -> None:
    delay = Backoff(first, longest).delay_s(failures, random.Random(seed))
    ceiling = min(longest, first * 2.0 ** min(failures - 1, 100))
    assert ceiling / 2 <= delay <= ceiling


def test_waits_double_up_to_the_longest() -> None:
    backoff = Backoff(0.1, 5.0)
    longest = [backoff.delay_s(n, Fixed(1.0)) for n in range(1, 12)]
    assert longest[:6] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    assert longest[6:] == [5.0] * 5
    assert [backoff.delay_s(n, Fixed(0.0)) for n in range(1, 12)] == [wait / 2 for wait in longest]
    assert all(a <= b for a, b in pairwise(longest))


def test_edges_that_fail_together_come_back_apart() -> None:
    backoff = Backoff(0.1, 5.0)
    waits = [backoff.delay_s(8, random.Random(seed)) for seed in range(500)]
    assert min(waits) < 2.6
    assert max(waits) > 4.9
    assert len(set(waits)) == 500
