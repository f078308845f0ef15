"""Shapes of responses: log-probabilities of parts of characters, and what several choices took together."""

from typing import Any

from ecd.edge.answer import Chunk
from ecd.edge.gateway.replies import CHAT, COMPLETION, Reply, Spelling, summary, usage
from ecd.logprobs import TokenLogprobs
from tests.edge.gateway.instant_cloud import END, ByteModel

E_ACUTE = tuple("é".encode())


def told(token: int) -> TokenLogprobs:
    return TokenLogprobs(-0.5, ((token, -0.5), (0xC4, -1.0), (0xC5, -2.0)))


def test_parts_of_a_character_are_told_as_bytes_and_counted_once() -> None:
    reply = Reply(CHAT, 0, Spelling(ByteModel()))
    chunk = Chunk("é", E_ACUTE, ("target",) * 2, ("", "é"), tuple(map(told, E_ACUTE)))
    first, second = reply.piece(chunk)["logprobs"]["content"]
    assert (first["token"], first["bytes"]) == ("\ufffd", [0xC3])
    assert bytes(first["bytes"] + second["bytes"]).decode() == "é"
    plain = Reply(COMPLETION, 0, Spelling(ByteModel()))
    logprobs = plain.piece(chunk)["logprobs"]
    later = plain.piece(Chunk("a", (97, END), ("target",) * 2, ("a", ""), (told(97), told(END))))["logprobs"]
    assert logprobs["text_offset"] + later["text_offset"] == [0, 0, 1, 2]
    # One text stands for several tokens; the likeliest of them is told.
    assert later["top_logprobs"][0] == {"a": -0.5, "\ufffd": -1.0}


def result(prompt: int, completion: int, **stats: Any) -> dict[str, Any]:
    none = {"verified": 0, "accepted": 0, "target_forwards": completion, "rtt_ms": None, "ttft_ms": 5.0}
    none |= {"tokens_per_s": 10.0, "wire_bytes_up": 1, "wire_bytes_down": 2}
    return {
        "token_ids": [7] * completion,
        "origins": ["target"] * completion,
        "seed": 3,
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
        "stats": none | stats,
    }


def test_a_prompt_counts_once_however_many_answers_it_has() -> None:
    results = [result(5, 1), result(5, 2), result(9, 3), result(9, 4)]
    assert usage(results, prompts=2) == {"prompt_tokens": 14, "completion_tokens": 10, "total_tokens": 24}


def test_rates_are_of_all_choices_together() -> None:
    results = [
        result(5, 4, verified=4, accepted=3, target_forwards=1, rtt_ms=7.0),
        result(5, 4, verified=1, accepted=0, target_forwards=4),
    ]
    together = summary(results, tokens=True)
    assert (together["acceptance_rate"], together["forwards_per_token"]) == (3 / 5, 5 / 8)
    assert (together["rtt_ms"], together["wire_bytes"], together["seeds"]) == (7.0, 6, [3, 3])
    assert (together["ids"], together["origins"]) == ([7] * 8, ["target"] * 8)
    alone = summary([result(5, 0)], tokens=False)
    assert (alone["acceptance_rate"], alone["forwards_per_token"], alone["ids"]) == (0.0, 0.0, [])
