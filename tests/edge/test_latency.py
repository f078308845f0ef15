"""Times that clients waited, by token."""

from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.latency import Histogram, Latencies

TIMES = st.lists(st.floats(0, 10), max_size=30)


@given(TIMES)
def test_every_time_is_counted_once_and_in_its_bucket(times: list[float]) -> None:
    seen = Histogram((0.5, 1.0, 2.0))
    for seconds in times:
        seen.add(seconds)
    assert seen.counts == [
        sum(seconds <= 0.5 for seconds in times),
        sum(0.5 < seconds <= 1.0 for seconds in times),
        sum(1.0 < seconds <= 2.0 for seconds in times),
        sum(seconds > 2.0 for seconds in times),
    ]
    assert seen.sum_s == sum(times)


def test_the_mean_between_tokens_is_what_a_token_takes() -> None:
    latencies = Latencies()
    latencies.came(2, 0.3, first=True)
    latencies.came(1, 0.1, first=False)
    latencies.came(5, 0.2, first=False)
    assert (sum(latencies.first_token.counts), latencies.first_token.sum_s) == (1, 0.3)
    # Seven tokens behind the first one.
    assert sum(latencies.inter_token.counts) == 7
    assert round(latencies.inter_token.sum_s, 9) == 0.3
