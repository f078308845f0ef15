"""Log-probabilities: against exact sums, and what is said of logits that have none."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.errors import BadRequest, EngineError
from ecd.logprobs import LOWEST, MAX_TOP, TokenLogprobs, as_asked, check_top, token_logprobs, verdict_logprobs
from ecd.sampling import Logits


def logits(*values: float) -> Logits:
    return np.array(values, dtype=np.float32)


ROWS = st.lists(st.floats(-80, 80, width=32) | st.integers(-2, 2).map(float), min_size=1, max_size=40).map(
    lambda values: logits(*values)
)
CASES = ROWS.flatmap(lambda row: st.tuples(st.just(row), st.integers(0, len(row) - 1)))


@given(CASES, st.integers(0, MAX_TOP))
def test_they_are_logarithms_of_the_softmax_at_temperature_1(case: tuple[Logits, int], count: int) -> None:
    row, token = case
    before = row.copy()
    told = token_logprobs(row, token, count)
    shares = [math.exp(float(x) - float(row.max())) for x in row]
    exact = [float(x) - float(row.max()) - math.log(math.fsum(shares)) for x in row]
    assert told.logprob == pytest.approx(exact[token], rel=1e-6, abs=1e-6)
    assert [value for _, value in told.top] == pytest.approx(
        [exact[i] for i, _ in told.top], rel=1e-6, abs=1e-6
    )
    ranked = sorted(range(len(row)), key=lambda i: (-row[i], i))
    assert [i for i, _ in told.top] == ranked[:count]
    numbers = [told.logprob, *(value for _, value in told.top)]
    assert all(value <= 0 and value == float(np.float32(value)) for value in numbers)
    assert (row == before).all()


def test_a_token_has_the_same_value_as_among_the_likeliest() -> None:
    told = token_logprobs(logits(1, 3, 2), 2, 2)
    assert [i for i, _ in told.top] == [1, 2]
    assert dict(told.top)[2] == told.logprob


def test_what_is_impossible_has_the_lowest_value_and_no_infinity() -> None:
    assert token_logprobs(logits(-math.inf, 0), 0, 2) == (LOWEST, ((1, 0.0), (0, LOWEST)))
    assert token_logprobs(logits(-3e38, 3e38), 0, 0) == (LOWEST, ())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_make_no_distribution_are_the_engine_s_fault(bad: float) -> None:
    with pytest.raises(EngineError, match=f"largest logit is {bad}"):
        token_logprobs(logits(0, bad), 0, 1)
    with pytest.raises(EngineError, match="largest logit is -inf"):
        token_logprobs(logits(-math.inf, -math.inf), 0, 1)


def test_a_verdict_has_one_for_each_token_and_none_unless_asked() -> None:
    rows = [logits(0, 1), logits(1, 0), logits(5, 5)]
    told = verdict_logprobs(rows, (1, 0), 1)
    assert told == (token_logprobs(rows[0], 1, 1), token_logprobs(rows[1], 0, 1))
    assert verdict_logprobs(rows, (1, 0), None) is None


def test_more_than_the_most_are_refused_by_name() -> None:
    for count in (None, 0, MAX_TOP):
        check_top(count)
    for count in (-1, MAX_TOP + 1):
        with pytest.raises(BadRequest, match=rf"logprobs must be in 0\.\.20, not {count}"):
            check_top(count)


@pytest.mark.parametrize(
    ("told", "count", "fits"),
    [
        (None, None, True),
        (None, 0, False),
        ((TokenLogprobs(-1.0, ()),), None, False),
        ((TokenLogprobs(-1.0, ()),), 0, True),
        ((TokenLogprobs(-1.0, ((1, -1.0),)),), 0, False),
        ((TokenLogprobs(-1.0, ((1, -1.0),)),), 2, True),
        ((TokenLogprobs(-1.0, ()), TokenLogprobs(-1.0, ())), 0, False),
        ((), 0, False),
    ],
)
def test_what_is_told_of_one_token_fits_what_was_asked(
    told: tuple[TokenLogprobs, ...] | None, count: int | None, fits: bool
) -> None:
    assert as_asked(told, 1, count) is fits


def test_results_carry_them_as_json_can() -> None:
    assert TokenLogprobs(-0.5, ((7, -0.5), (2, -1.0))).to_map() == {
        "logprob": -0.5,
        "top": [[7, -0.5], [2, -1.0]],
    }
