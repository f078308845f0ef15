"""What goes into one batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.engine.packing import Demand, Portion, chunk_end, pack

DEMANDS = st.lists(
    st.builds(Demand, pending=st.one_of(st.just(1), st.integers(1, 300)), hints=st.integers(0, 8)),
    max_size=20,
)
SIZES = st.tuples(DEMANDS, st.integers(0, 128), st.integers(0, 64))


@given(SIZES)
def test_a_batch_is_never_too_big_and_nobody_gets_more_than_wished(
    case: tuple[list[Demand], int, int],
) -> None:
    demands, batch, chunk = case
    portions = pack(demands, batch_tokens=batch, chunk_tokens=chunk)
    assert len(portions) == len(demands)
    assert sum(p.pending + p.hints for p in portions) <= batch
    assert sum(p.pending for p, d in zip(portions, demands, strict=True) if d.pending > 1) <= chunk
    for portion, demand in zip(portions, demands, strict=True):
        assert 0 <= portion.pending <= demand.pending
        assert 0 <= portion.hints <= demand.hints


@given(SIZES)
def test_single_tokens_go_first(case: tuple[list[Demand], int, int]) -> None:
    demands, batch, chunk = case
    portions = pack(demands, batch_tokens=batch, chunk_tokens=chunk)
    singles = [p.pending for p, d in zip(portions, demands, strict=True) if d.pending == 1]
    assert singles == [int(index < batch) for index in range(len(singles))]


@given(SIZES)
def test_long_demands_are_served_in_order_and_use_the_whole_chunk(
    case: tuple[list[Demand], int, int],
) -> None:
    demands, batch, chunk = case
    portions = pack(demands, batch_tokens=batch, chunk_tokens=chunk)
    singles = sum(p.pending for p, d in zip(portions, demands, strict=True) if d.pending == 1)
    left = min(chunk, batch - singles)
    for portion, demand in zip(portions, demands, strict=True):
        if demand.pending > 1:
            assert portion.pending == min(demand.pending, left)
            left -= portion.pending


@given(SIZES)
def test_hints_come_only_behind_a_single_pending_token_and_evenly(
    case: tuple[list[Demand], int, int],
) -> None:
    demands, batch, chunk = case
    portions = pack(demands, batch_tokens=batch, chunk_tokens=chunk)
    eligible = []
    for portion, demand in zip(portions, demands, strict=True):
        if portion.pending == demand.pending == 1:
            eligible.append((portion.hints, demand.hints))
        else:
            assert portion.hints == 0
    room = batch - sum(p.pending for p in portions)
    assert sum(got for got, _ in eligible) == min(room, sum(wish for _, wish in eligible))
    # Who got less than wished is at most one behind anybody else, and not behind anyone later.
    short = [(index, got) for index, (got, wish) in enumerate(eligible) if got < wish]
    for index, got in short:
        assert all(other <= got + 1 for other, _ in eligible)
        assert all(other <= got for other, _ in eligible[index + 1 :])


@pytest.mark.parametrize(
    ("demands", "batch", "chunk", "portions"),
    [
        ([], 8, 4, []),
        ([Demand(1, 3)], 8, 4, [Portion(1, 3)]),
        ([Demand(1, 3), Demand(1, 3)], 5, 4, [Portion(1, 2), Portion(1, 1)]),
        ([Demand(100), Demand(1, 2)], 8, 4, [Portion(4), Portion(1, 2)]),
        ([Demand(3, 2), Demand(100, 2)], 8, 4, [Portion(3), Portion(1)]),
        ([Demand(100), Demand(5)], 8, 4, [Portion(4), Portion(0)]),
        ([Demand(1), Demand(1), Demand(1)], 2, 4, [Portion(1), Portion(1), Portion(0)]),
        ([Demand(1, 0), Demand(1, 1), Demand(1, 9)], 9, 4, [Portion(1), Portion(1, 1), Portion(1, 5)]),
    ],
)
def test_some_batches(demands: list[Demand], batch: int, chunk: int, portions: list[Portion]) -> None:
    assert pack(demands, batch_tokens=batch, chunk_tokens=chunk) == portions


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8), st.integers(1, 64))
def test_every_prompt_gets_through_in_the_end(prompts: list[int], chunk: int) -> None:
    left, batches = list(prompts), 0
    while any(left):
        waiting = [n for n in left if n]
        portions = iter(pack([Demand(n) for n in waiting], batch_tokens=chunk + 8, chunk_tokens=chunk))
        left = [n - next(portions).pending if n else 0 for n in left]
        batches += 1
        assert batches <= sum(prompts)


@given(st.integers(0, 500), st.integers(1, 64), st.integers(0, 500))
def test_chunks_end_at_fixed_places(prompt_len: int, chunk: int, start: int) -> None:
    start = min(start, prompt_len)
    end = chunk_end(start, prompt_len, chunk)
    assert start <= end <= prompt_len
    assert end - start <= chunk
    assert end == prompt_len or end % chunk == 0
    if start < prompt_len:
        assert end > start
        # Whoever starts anywhere in a chunk ends at the same place.
        assert chunk_end(start // chunk * chunk, prompt_len, chunk) == end
