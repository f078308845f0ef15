"""An answer's result as a table."""

from typing import Any

from ecd.terminal.summary import answer_rows, broken_rows, table

STATS = {
    "ttft_ms": 303.4,
    "total_ms": 801.0,
    "tokens_per_s": 46.61,
    "drafted": 9,
    "hints_sent": 7,
    "verified": 4,
    "accepted": 3,
    "acceptance_rate": 0.75,
    "target_forwards": 5,
    "target_step_ms": 21.5,
    "wire_bytes_up": 115,
    "wire_bytes_down": 434,
    "rtt_ms": 20.04,
    "resumed": 0,
    "cached_tokens": 0,
    "prefill_tokens": 31,
    "prefix_tokens": 0,
}


def rows(tokens: int = 8, **stats: Any) -> dict[str, str]:
    origins = ["draft-accepted"] * 3 + ["target"] * (tokens - 3)
    usage = {"prompt_tokens": 31, "completion_tokens": tokens, "total_tokens": 31 + tokens}
    result = {"stats": STATS | stats, "usage": usage, "origins": origins[:tokens], "seed": 7}
    return dict(answer_rows({**result, "finish_reason": "length"}))


def test_numbers_have_their_units_and_what_they_are_of() -> None:
    assert rows() == {
        "tokens": "8, after a prompt of 31",
        "prompt": "0 tokens held by the cloud, 31 read there, 31 sent",
        "ended by": "max-tokens",
        "first token": "after 303 ms",
        "all of it": "after 0.80 s",
        "speed": "46.6 tokens/s",
        "origins": "target 5, draft-accepted 3",
        "guesses": "9 made, 7 sent as hints",
        "acceptance": "3 of 4 verified hints (75%)",
        "target forwards": "5, 0.62 per token",
        "target step": "21.5 ms, the last one",
        "on the wire": "115 bytes up, 434 down",
        "round trip": "20.0 ms",
        "seed": "7",
    }


def test_what_was_not_measured_is_told_as_such() -> None:
    told = rows(
        tokens=0, verified=0, accepted=0, acceptance_rate=0.0, target_forwards=1, rtt_ms=None, resumed=2
    )
    assert told["origins"] == "-"
    assert told["acceptance"] == "0 of 0 verified hints"
    assert told["target forwards"] == "1"
    assert told["round trip"] == "not measured"
    assert told["resumed"] == "2 times after a lost link"


def test_a_second_turn_tells_what_was_new() -> None:
    told = rows(cached_tokens=20, prefill_tokens=11, prefix_tokens=25)
    assert told["prompt"] == "20 tokens held by the cloud, 11 read there, 6 sent"


def test_a_table_has_its_values_below_each_other() -> None:
    assert table([("a", "1"), ("long", "2")]) == "  a     1\n  long  2"


def test_of_a_broken_answer_there_are_its_tokens_and_why() -> None:
    assert dict(broken_rows(["target", "draft-accepted", "target"], "Ctrl-C")) == {
        "tokens": "3",
        "ended by": "Ctrl-C",
        "origins": "target 2, draft-accepted 1",
        "the rest": "is known of complete answers only",
    }
    assert dict(broken_rows([], "an error: no"))["origins"] == "-"
