"""Pages between two state machines: whole, interrupted, damaged, and from a peer that means no good."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.errors import PageError
from ecd.wire.messages import Kv, KvOp
from ecd.wire.transfer import (
    CHUNK_BYTES,
    FIRST_WINDOW_BYTES,
    MAX_RUN_TOKENS,
    MOST_WINDOW_BYTES,
    Run,
    Sending,
    Wanted,
)

MODEL = b"m" * 16
RUN = 100
SIZES = (3 * CHUNK_BYTES + 5, CHUNK_BYTES, 40 * CHUNK_BYTES - 1, 1)
RUNS = [Run(RUN * n, RUN * (n + 1), random.Random(n).randbytes(size)) for n, size in enumerate(SIZES)]
LAST = RUNS[-1].last


def a_want(last: int = LAST) -> Wanted:
    return Wanted(MODEL, last, "f16+zstd", lambda first, last: 50 * CHUNK_BYTES)


def opened(wanted: Wanted, stream: int = 1) -> Sending:
    """The other end, that has heard the question and makes all that is asked for."""
    sending = Sending(wanted.ask(stream))
    for run in RUNS:
        if run.first >= sending.want.first:
            sending.add(run)
    return sending


def flow(
    sending: Sending, wanted: Wanted, at_most: int = 1 << 30, change: Callable[[Kv], Kv] = lambda frame: frame
) -> list[Run]:
    """Frames travel until there are none or `at_most` have; a millisecond each."""
    runs, now = [], 0.0
    while frames := sending.due():
        for frame in frames:
            if not at_most:
                return runs
            at_most -= 1
            now += 0.001
            if run := wanted.receive(change(frame), now):
                runs.append(run)
            if credit := wanted.grant(frame.stream):
                sending.credit(credit.amount)
    return runs


def test_what_arrives_is_what_was_sent_in_order() -> None:
    wanted = a_want()
    sending = opened(wanted)
    assert flow(sending, wanted) == RUNS
    assert wanted.complete
    assert sending.complete
    assert wanted.received_bytes == sum(SIZES)


def test_nothing_is_sent_without_credit() -> None:
    sending = opened(a_want())
    assert sum(len(frame.payload) for frame in sending.due()) <= FIRST_WINDOW_BYTES
    assert sending.due() == []
    assert sending.backlog
    assert not sending.complete
    sending.credit(CHUNK_BYTES)
    assert len(sending.due()) == 1


def test_the_window_grows_with_what_is_taken_and_never_beyond_its_bound() -> None:
    wanted = Wanted(MODEL, MAX_RUN_TOKENS, "f16+zstd", lambda first, last: 1 << 30)
    wanted.ask(1)
    given_bytes, taken, windows = FIRST_WINDOW_BYTES, 0, []
    frame = Kv(1, KvOp.PAGES, MODEL, 0, 9, 0, 9999, "f16+zstd", 1, bytes(CHUNK_BYTES))
    for number in range(2000):
        assert wanted.receive(replace(frame, chunk=number), 0.0) is None
        taken += CHUNK_BYTES
        if credit := wanted.grant(1):
            given_bytes += credit.amount
            windows.append(given_bytes - taken)
    assert windows == sorted(windows)
    assert windows[-1] == MOST_WINDOW_BYTES


def test_a_drop_ends_it_with_what_has_come() -> None:
    wanted = a_want()
    sending = opened(wanted)
    for frame in sending.due()[:5]:
        wanted.receive(frame, 0.0)
    assert wanted.receive(sending.give_up(), 0.0) is None
    assert wanted.complete
    assert wanted.last == RUNS[1].last


def test_credit_that_is_given_away_does_not_pile_up() -> None:
    greedy = Sending(replace(a_want().ask(1), chunks=(1 << 32) - 1))
    greedy.add(Run(0, RUN, bytes(2 * MOST_WINDOW_BYTES)))
    for _ in range(100):
        greedy.credit((1 << 32) - 1)
    assert sum(len(frame.payload) for frame in greedy.due()) == MOST_WINDOW_BYTES


@given(st.lists(st.integers(0, 45), max_size=6))
def test_after_lost_connections_only_what_is_missing_travels_again(lost_after: list[int]) -> None:
    wanted, runs, sent = a_want(), [], 0
    for stream, frames in enumerate(lost_after, 1):
        before = wanted.received_bytes
        if not wanted.complete:
            runs += flow(opened(wanted, stream), wanted, frames)
        sent += wanted.received_bytes - before
    if not wanted.complete:
        runs += flow(opened(wanted, 99), wanted)
    assert runs == RUNS
    assert wanted.received_bytes == sum(SIZES)


def test_a_run_that_was_made_anew_and_came_out_otherwise_begins_again() -> None:
    wanted = a_want(RUN)
    first = Sending(wanted.ask(1))
    first.add(RUNS[0])
    assert wanted.receive(first.due()[0], 0.0) is None
    second = Sending(wanted.ask(2))
    assert (second.want.first, second.want.chunk) == (0, 1)
    other = Run(0, RUN, RUNS[0].data[::-1])
    second.add(other)
    assert flow(second, wanted) == [other]


def flipped(frame: Kv, bit: int) -> Kv:
    payload = bytearray(frame.payload)
    payload[bit // 8 % len(payload)] ^= 1 << bit % 8
    return replace(frame, payload=bytes(payload))


@given(st.integers(0, 3), st.integers(0, 8 * CHUNK_BYTES - 1))
def test_one_wrong_bit_is_found_and_what_came_before_it_stays(run: int, bit: int) -> None:
    wanted = a_want()
    arrived: list[Run] = []

    def change(frame: Kv) -> Kv:
        arrived[:] = [r for r in RUNS if r.last <= frame.first]
        return flipped(frame, bit) if (frame.first, frame.chunk) == (RUNS[run].first, 0) else frame

    with pytest.raises(PageError, match="damaged"):
        flow(opened(wanted), wanted, change=change)
    assert arrived == RUNS[:run]
    assert wanted.next == RUNS[run].first


@pytest.mark.parametrize(
    "change",
    [
        {"model": b"n" * 16},
        {"encoding": "q8_0+zstd"},
        {"op": KvOp.WANT},
        {"op": KvOp.DROP},
        {"first": 1},
        {"last": 0},
        {"last": LAST + 1},
        {"last": MAX_RUN_TOKENS + 1},
        {"chunk": 1},
        {"chunk": 4},
        {"chunks": 0},
        {"chunks": 51},
        {"chunks": (1 << 32) - 1},
        {"payload": b""},
        {"payload": bytes(CHUNK_BYTES - 1)},
        {"payload": bytes(CHUNK_BYTES + 1)},
    ],
    ids=str,
)
def test_what_does_not_follow_is_refused_before_it_is_kept(change: dict[str, object]) -> None:
    wanted = Wanted(MODEL, LAST, "f16+zstd", lambda first, last: 50 * CHUNK_BYTES)
    frame = opened(wanted).due()[0]
    with pytest.raises(PageError):
        wanted.receive(replace(frame, **change), 0.0)  # type: ignore[arg-type]
    assert wanted.next == 0


@pytest.mark.parametrize(
    "change", [{"last": 50}, {"chunks": 5}, {"checksum": 1}, {"chunk": 0}, {"chunk": 2}], ids=str
)
def test_chunks_of_one_run_agree(change: dict[str, object]) -> None:
    wanted = a_want()
    first, second = opened(wanted).due()[:2]
    wanted.receive(first, 0.0)
    with pytest.raises(PageError):
        wanted.receive(replace(second, **change), 0.0)  # type: ignore[arg-type]


def test_more_than_the_credit_is_refused() -> None:
    wanted = a_want()
    frame = replace(opened(wanted).due()[0], chunks=50)
    for number in range(FIRST_WINDOW_BYTES // CHUNK_BYTES):
        wanted.receive(replace(frame, chunk=number), 0.0)
    with pytest.raises(PageError, match="credit"):
        wanted.receive(replace(frame, chunk=FIRST_WINDOW_BYTES // CHUNK_BYTES), 0.0)


def test_the_link_is_measured_where_chunks_follow_each_other() -> None:
    wanted = a_want()
    sending = opened(wanted)
    assert wanted.link_bytes_per_s is None
    flow(sending, wanted)
    assert wanted.link_bytes_per_s == pytest.approx(CHUNK_BYTES / 0.001, rel=0.1)
