"""When the cloud reads a prompt for the edge: the decision, and a prompt's way through the stages."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.assist import LEAST_TOKENS, MARGIN, Assist, Speeds, Stage, cloud_s, cloud_speeds, wins
from ecd.pages import RUN_TOKENS, Encoding, Shape
from ecd.wire.transfer import CHUNK_BYTES, Run, Sending

# SmolLM2-135M: 30 layers of 3 heads of 64 numbers. 1500 tokens are 18 MB.
SHAPE = Shape(b"d" * 16, 3, ((192, 192),) * 30)
BYTES = SHAPE.position_bytes(Encoding.Q8_0)
MBIT = 1e6 / 8
# An edge slowed to a quarter, and a cloud that is not.
SLOW = Speeds(1 / 150, 1 / 600, 0, 1000 * MBIT, 0.02)
PROMPT = 1500


def test_a_slow_edge_on_a_fast_link_is_helped() -> None:
    assert wins(PROMPT, PROMPT, BYTES, SLOW)
    assert PROMPT * SLOW.local_token_s > 2 * cloud_s(PROMPT, BYTES, SLOW)


@pytest.mark.parametrize(
    "change",
    [
        {"link_bytes_per_s": 10 * MBIT},
        {"local_token_s": 1 / 600},
        {"cloud_waiting": 6000},
        {"rtt_s": 10.0},
    ],
    ids=str,
)
def test_where_it_would_not_be_clearly_earlier_it_reads_by_itself(change: dict[str, float]) -> None:
    assert not wins(PROMPT, PROMPT, BYTES, replace(SLOW, **change))  # type: ignore[arg-type]


def test_short_prompts_and_the_end_of_long_ones_are_read_here() -> None:
    assert not wins(LEAST_TOKENS - 1, LEAST_TOKENS - 1, BYTES, replace(SLOW, local_token_s=9.0))
    assert not wins(300, PROMPT, BYTES, SLOW)


speeds = st.builds(
    Speeds,
    st.floats(1e-5, 1),
    st.floats(1e-5, 1),
    st.integers(0, 10_000),
    st.floats(1e4, 1e10),
    st.floats(0, 1),
)


@given(speeds, st.integers(LEAST_TOKENS, 100_000), st.floats(1.01, 100))
def test_whatever_gets_faster_speaks_for_whoever_got_faster(s: Speeds, tokens: int, factor: float) -> None:
    assert s.link_bytes_per_s is not None
    for better in (
        replace(s, link_bytes_per_s=s.link_bytes_per_s * factor),
        replace(s, cloud_token_s=s.cloud_token_s / factor),
        replace(s, local_token_s=s.local_token_s * factor),
    ):
        assert wins(tokens, tokens, BYTES, better) >= wins(tokens, tokens, BYTES, s)
    if wins(tokens, tokens, BYTES, s):
        assert MARGIN * tokens * BYTES / s.link_bytes_per_s < tokens * s.local_token_s


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ({"assist_token_ms": 2, "assist_waiting": 7, "running": 1}, (0.002, 7)),
        ({"assist_token_ms": 0, "assist_waiting": 7}, None),
        ({"assist_token_ms": "2", "assist_waiting": 7}, None),
        ({"assist_token_ms": 2.0, "assist_waiting": -1}, None),
        ({"assist_token_ms": float("nan"), "assist_waiting": 1}, None),
        ({}, None),
    ],
    ids=str,
)
def test_what_a_cloud_says_of_its_speed(load: dict[str, object], expected: tuple[float, int] | None) -> None:
    assert cloud_speeds(load) == expected


class Talk:
    """An assist, and a cloud that has every page at once; a chunk takes what the link says."""

    def __init__(self, mbit: float, tokens: int = PROMPT) -> None:
        self.assist = Assist(SHAPE, Encoding.Q8_0, tokens)
        self.chunk_s = CHUNK_BYTES / (mbit * MBIT)
        self.now = 0.0
        self.sending: Sending | None = None

    def speeds(self) -> Speeds:
        rate = self.assist.wanted.link_bytes_per_s if self.assist.wanted else None
        return replace(SLOW, link_bytes_per_s=rate)

    def begin(self, held: int = 64) -> bool:
        if not self.assist.consider(held, self.speeds(), self.now):
            return False
        assert self.assist.wanted is not None
        self.sending = Sending(self.assist.wanted.ask(1))
        for first in range(0, self.assist.tokens, RUN_TOKENS):
            last = min(first + RUN_TOKENS, self.assist.tokens)
            self.sending.add(Run(first, last, random.Random(first).randbytes((last - first) * BYTES)))
        return True

    def flow(self, frames: int = 1 << 30, *, damage: int | None = None) -> None:
        """Frames arrive until credit or stage ends it."""
        assert self.sending is not None
        assert self.assist.wanted is not None
        number = 0
        while number < frames and self.assist.stage is not Stage.OVER and (due := self.sending.due()):
            for frame in due:
                self.now += self.chunk_s
                hurt = frame if number != damage else replace(frame, checksum=1)
                self.assist.receive(hurt, self.speeds(), self.now)
                number += 1
            if self.assist.stage is Stage.WAITING and (credit := self.assist.wanted.grant(1)):
                self.sending.credit(credit.amount)


def test_on_a_fast_link_it_tries_then_waits_then_has_all_pages() -> None:
    talk = Talk(1000)
    assert talk.begin()
    assert talk.assist.stage is Stage.TRYING
    talk.flow()
    assert talk.assist.stage is Stage.WAITING
    assert talk.assist.complete
    assert talk.assist.runs[-1].last == PROMPT


def test_on_a_slow_link_it_reads_on_after_a_try() -> None:
    talk = Talk(10)
    assert talk.begin()
    talk.flow()
    assert talk.assist.stage is Stage.OVER
    assert talk.assist.failed is None
    assert talk.assist.wanted is not None
    assert talk.assist.wanted.received_bytes <= 128 << 10


def test_it_is_asked_once_and_only_if_it_could_win_on_the_best_of_links() -> None:
    assert not Talk(1000).begin(held=PROMPT - 100)
    talk = Talk(1000)
    assert talk.begin()
    assert not talk.assist.consider(128, talk.speeds(), 0.0)


def test_damaged_pages_end_it_with_a_reason_and_nothing_is_kept_of_their_run() -> None:
    talk = Talk(1000)
    talk.begin()
    talk.flow(damage=0)
    assert talk.assist.stage is Stage.OVER
    assert talk.assist.failed
    assert talk.assist.runs == []


def test_a_cloud_that_falls_silent_is_not_waited_for() -> None:
    talk = Talk(1000)
    talk.begin()
    assert talk.sending is not None
    for frame in talk.sending.due():
        talk.now += talk.chunk_s
        talk.assist.receive(frame, talk.speeds(), talk.now)
    assert talk.assist.stage is Stage.WAITING
    assert not talk.assist.late(talk.now + 1)
    assert talk.assist.late(talk.now + 60)
    assert talk.assist.stage is Stage.OVER
