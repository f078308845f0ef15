"""The bucket: over any time nobody gets more than its rate, and who keeps to it never waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.trust.bucket import TokenBucket


def test_a_second_s_worth_is_there_at_once_and_more_has_to_be_waited_for() -> None:
    bucket = TokenBucket.full(10.0, now=100.0)
    bucket.take(10, 100.0)
    assert bucket.wait_s(100.0) == 0
    bucket.take(5, 100.0)
    assert bucket.wait_s(100.0) == pytest.approx(0.5)
    assert bucket.wait_s(100.3) == pytest.approx(0.2)
    assert bucket.wait_s(100.5) == 0


def test_it_never_holds_more_than_a_second_s_worth() -> None:
    bucket = TokenBucket.full(10.0, now=0.0)
    assert bucket.wait_s(3600.0) == 0
    bucket.take(20, 3600.0)
    assert bucket.wait_s(3600.0) == pytest.approx(1.0)


def test_nobody_waits_longer_than_a_second_however_much_was_taken() -> None:
    bucket = TokenBucket.full(10.0, now=0.0)
    bucket.take(1e9, 0.0)
    assert bucket.wait_s(0.0) == pytest.approx(1.0)


def test_a_clock_that_stands_still_or_steps_back_gives_nothing() -> None:
    bucket = TokenBucket.full(10.0, now=5.0)
    bucket.take(15, 5.0)
    assert bucket.wait_s(4.0) == pytest.approx(0.5)
    assert bucket.wait_s(4.0) == pytest.approx(0.5)


@given(
    st.floats(0.5, 1000),
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 50)), min_size=1, max_size=60),
)
def test_who_waits_as_told_gets_its_rate_a_burst_and_the_last_thing_it_took(
    rate: float, steps: list[tuple[float, float]]
) -> None:
    bucket, now, taken, largest = TokenBucket.full(rate, 0.0), 0.0, 0.0, 0.0
    for pause, amount in steps:
        now += max(pause, bucket.wait_s(now))
        amount = min(amount, rate)
        bucket.take(amount, now)
        taken, largest = taken + amount, max(largest, amount)
        assert taken <= rate * (now + 1) + largest + 1e-6 * taken


@given(st.floats(0.5, 1000), st.lists(st.floats(0.001, 1), min_size=1, max_size=60))
def test_who_keeps_to_the_rate_never_waits(rate: float, pauses: list[float]) -> None:
    bucket, now = TokenBucket.full(rate, 0.0), 0.0
    for pause in pauses:
        now += pause
        bucket.take(rate * pause * 0.999, now)
        assert bucket.wait_s(now) == 0
