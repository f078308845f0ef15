"""From answers to the report: formulas, intervals, what is left out, and the page."""

import json
from typing import Any

import pytest

from ecd.lab.ablation.conditions import Ablation, built_in, conditions_of
from ecd.lab.ablation.conversations import Check, Conversation, Turn
from ecd.lab.ablation.page import page, pictures, text_table
from ecd.lab.ablation.records import Answer, Asked, Exchange
from ecd.lab.ablation.summary import experiments_of

BASE: dict[str, Any] = {"cloud": {"model": "big"}, "edge": {"model": "small"}, "request": {}}
CONVERSATIONS = (
    Conversation("sums", (Turn("1 + 1?", Check(number="2")),)),
    Conversation("turns", (Turn("<b>Hello</b>"), Turn("Why?"))),
)
CONDITIONS = conditions_of(BASE, [Ablation(name="baseline"), Ablation(name="other", description="<i>")])


def answer(tokens: int = 4, **changes: Any) -> Answer:
    given: dict[str, Any] = {
        "token_ids": tuple(range(tokens)), "latency_ms": 100.0, "ttft_ms": 20.0, "decoded": tokens - 1,
        "decode_ms": 60.0, "forwards": 2, "drafted": 6, "verified": 4, "accepted": 3, "wire_bytes": 90,
        "prefill_tokens": 30, "cached_tokens": 10, "agreed": tokens, "edge_tokens": 1,
        "audited": 4, "audits_agreed": 3, "most_ahead": 5,
    }  # fmt: skip
    return Answer(**given | changes)


def experiments(*exchanges: Exchange) -> list[dict[str, Any]]:
    return experiments_of(CONDITIONS, CONVERSATIONS, exchanges, seed=0)


def had(condition: str, conversation: int, *answers: Answer, repeat: int = 0) -> Exchange:
    return Exchange(Asked(condition, repeat, conversation), answers)


def test_the_summary_is_of_sums_over_all_answers() -> None:
    (baseline, _) = experiments(
        had("baseline", 0, answer(right=True)),
        had("baseline", 1, answer(tokens=8, decode_ms=40.0, agreed=4), answer(latency_ms=400.0)),
    )
    assert baseline["summary"] == {
        "latency_ms": 200,
        "ttft_ms": 20,
        "tokens_per_s": pytest.approx(1000 * 13 / 160),
        "acceptance_rate": 0.75,
        "forwards_per_token": 6 / 16,
        "wire_bytes": 90,
        "prefill_tokens": 30,
        "cached_tokens": 10,
        "agreement": 12 / 16,
        "audited_agreement": 3 / 4,
        "success_rate": 1,
        "exact_match": 1,
        "edge_share": 3 / 16,
        "draft_prefill_tokens": 0,
        "draft_cached_tokens": 0,
        "drafted_per_token": 18 / 16,
        "most_ahead": 5,
    }
    assert [turn["summary"]["latency_ms"] for turn in baseline["turns"]] == [100, 400]
    assert baseline["classes"]["turns"]["latency_ms"] == 250
    assert baseline["classes"]["turns"]["exact_match"] is None
    first = baseline["prompts"][0]
    assert (first["conversation"], first["class"], first["turn"], first["prompt"]) == (0, "sums", 1, "1 + 1?")
    assert (first["agreement"], first["exact_match"], first["tokens_per_s"]) == (1, 1, 50)


def test_answers_that_failed_count_as_such_only() -> None:
    (baseline, other) = experiments(
        had("baseline", 0, answer(right=False)),
        had("baseline", 1, answer(), Answer(error="gone")),
        had("other", 0, Answer(error="gone")),
    )
    assert baseline["summary"]["success_rate"] == pytest.approx(2 / 3)
    assert baseline["summary"]["exact_match"] == 0
    assert baseline["summary"]["latency_ms"] == 100
    assert baseline["turns"][1]["summary"]["latency_ms"] is None
    assert other["summary"]["success_rate"] == 0
    assert other["summary"]["latency_ms"] is None
    assert other["intervals"]["latency_ms"] is None
    assert other["to_baseline"]["latency_ms"] is None
    assert other["same_text"] is None
    assert other["prompts"][0]["error"] == "gone"


def test_what_cannot_be_told_is_none_and_not_nought() -> None:
    (baseline, _) = experiments(
        had("baseline", 0, answer(verified=0, accepted=0, agreed=None, decode_ms=0.0))
    )
    for name in ("acceptance_rate", "agreement", "exact_match", "tokens_per_s"):
        assert baseline["summary"][name] is None
        assert baseline["intervals"][name] is None


def test_ratios_compare_the_same_conversations() -> None:
    (_, other) = experiments(
        *(had("baseline", 0, answer(latency_ms=100.0), repeat=r) for r in range(3)),
        *(had("other", 0, answer(latency_ms=50.0, wire_bytes=0), repeat=r) for r in range(3)),
    )
    ratio = other["to_baseline"]["latency_ms"]
    assert (ratio["median"], ratio["lo"], ratio["hi"], ratio["pairs"]) == (0.5, 0.5, 0.5, 3)
    assert ratio["resampled"] == "repeats"
    wire = other["intervals"]["wire_bytes"]
    assert (wire["lo"], wire["hi"]) == (0, 0), "nothing sent is a number, with an interval"
    assert other["to_baseline"]["wire_bytes"] is None


def test_intervals_hold_the_mean_and_are_wider_for_what_varies() -> None:
    (baseline, _) = experiments(
        *(had("baseline", 0, answer(latency_ms=80.0 + 10 * r), repeat=r) for r in range(5))
    )
    interval = baseline["intervals"]["latency_ms"]
    assert 80 < interval["lo"] < baseline["summary"]["latency_ms"] == 100 < interval["hi"] < 120
    still = baseline["intervals"]["ttft_ms"]
    assert still["lo"] == still["hi"] == 20


def test_the_same_text_is_that_of_the_same_repeat_and_turn() -> None:
    (baseline, other) = experiments(
        had("baseline", 0, answer(4)),
        had("baseline", 0, answer(5), repeat=1),
        had("baseline", 1, answer(6), answer(7)),
        had("other", 0, answer(5)),
        had("other", 0, answer(5), repeat=1),
        had("other", 1, answer(6), answer(7)),
    )
    assert baseline["same_text"] == 1
    assert other["same_text"] == 0.75


def report_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "target": "big", "draft": "small", "machine": "a cpu, 8 GiB",
        "versions": {"ecd": "0"},
        "command": "ecd ablate", "written": "now", "rtt_ms": 20.0, "prompts_file": "tasks",
        "conversations": 2, "repeats": 1, "failed": 1, "intervals": "95 %", "experiments": found,
    }  # fmt: skip


def test_the_page_has_all_and_needs_nothing_else() -> None:
    pytest.importorskip("matplotlib")
    conditions = conditions_of(BASE, built_in("llama", (0.5, 0.9)))
    exchanges = [
        had(condition.name, number, *(answer(right=bool(number)) for _ in conversation.turns))
        for condition in conditions
        for number, conversation in enumerate(CONVERSATIONS)
        # One condition of which there is nothing.
        if condition.name != "cloud_only"
    ]
    found = experiments_of(conditions, CONVERSATIONS, exchanges, seed=0)
    # As it is after it was written.
    found = json.loads(json.dumps(found))
    drawn = pictures(found)
    assert drawn.keys() == {"times.png", "work.png", "turns.png", "confident.png"}
    assert all(png.startswith(b"\x89PNG") for png in drawn.values())
    html = page(report_of(found), drawn)
    for part in (*(condition.name for condition in conditions), "Turn 2", "confident by threshold", "a cpu"):
        assert part in html
    assert "<b>Hello" not in html
    assert "&lt;b&gt;Hello" in html
    assert html.count("data:image/png") == 4
    assert "src=" not in html.replace('src="data:', "")
    assert "href" not in html
    assert text_table(found).count("\n") == len(conditions)


def test_settings_are_no_html() -> None:
    conditions = conditions_of(
        BASE | {"request": {"stop": ["</table>"]}},
        [Ablation(name="baseline"), Ablation(name="other", config_overrides={"request.stop": ["<script>"]})],
    )
    exchanges = [had(name, 0, answer()) for name in ("baseline", "other")]
    html = page(report_of(experiments_of(conditions, CONVERSATIONS, exchanges, seed=0)), {})
    assert "[&quot;&lt;/table&gt;&quot;] &rarr; [&quot;&lt;script&gt;&quot;]" in html
    assert "<script>" not in html


def test_without_mode_confident_there_is_no_curve() -> None:
    pytest.importorskip("matplotlib")
    found = experiments(had("baseline", 0, answer()), had("other", 0, answer()))
    drawn = pictures(found)
    assert "confident.png" not in drawn
    html = page(report_of(found), drawn)
    assert "&lt;i&gt;" in html
    assert "confident by threshold" not in html
