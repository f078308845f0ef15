"""Contenders side by side: who is asked when, and who stands where."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ecd.lab.bootstrap import Resampled
from ecd.lab.contenders import Question, Reply
from ecd.lab.peers import Measurement, colocated_of, measure_all, peers, standings, table
from ecd.lab.plan import colocated
from ecd.lab.runs import Reception

QUESTIONS = [Question("code", f"prompt {n}", (n,)) for n in range(6)]


class Fake:
    def __init__(self, name: str, asked: list[tuple[str, int]]):
        self.name = name
        self._asked = asked

    def answer(self, question: Question, max_tokens: int) -> Reply:
        self._asked.append((self.name, question.ids[0]))
        return Reply((1, 2, 3), Reception(at_s=[0.5, 1.0, 1.5], tokens=[1, 1, 1]))


def test_everyone_answers_everything_in_changing_order() -> None:
    asked: list[tuple[str, int]] = []
    contenders = [Fake("a", asked), Fake("b", asked), Fake("c", asked)]
    made = list(measure_all(contenders, QUESTIONS, max_tokens=3, repeats=2, seed=1))
    assert made[0] == Measurement(asked[0][0], 0, 0, 2, 1.0, 500.0, (1, 2, 3))
    assert sorted(asked) == sorted(2 * [(name, n) for name in "abc" for n in range(6)])
    # All have been asked a question before anyone is asked the next.
    assert [prompt for _, prompt in asked] == 2 * [n for n in range(6) for _ in range(3)]
    assert len({asked[i][0] for i in range(0, len(asked), 3)}) > 1


def made(name: str, seconds: float, ids: tuple[int, ...] = (1, 2)) -> list[Measurement]:
    return [Measurement(name, n, repeat, 30, seconds, 40.0, ids) for n in range(3) for repeat in range(2)]


def test_ratios_are_to_the_first_and_texts_are_compared_with_its() -> None:
    measurements = made("plain", 2.0) + made("fast", 1.0, ids=(1,)) + made("other", 4.0, ids=(1, 3))
    plain, fast, other = standings(measurements, ["plain", "fast", "other"], ["code"] * 3, seed=0)
    assert fast.tokens_per_s == {"median": 30.0, "min": 30.0, "max": 30.0}
    assert [row.ratio.median for row in (plain, fast, other) if row.ratio] == [1.0, 2.0, 0.5]
    # (1,) lacks only the token that ends (1, 2).
    assert (plain.same_text, fast.same_text, other.same_text) == (1.0, 1.0, 0.0)
    text = table([plain, fast, other], colocated(10.0, 30.0, 0.02, 0.8), threads=1)
    assert "2.00 (2.00 - 2.00)" in text
    assert "1 thread." in text
    assert "resamples of repeats within each prompt" in text
    assert "times the target alone" in text


def test_what_fails_is_counted_and_the_rest_is_kept() -> None:
    def refused(question: Question, max_tokens: int) -> Reply:
        raise ConnectionRefusedError("nobody is there")

    def silent(question: Question, max_tokens: int) -> Reply:
        return Reply((), Reception())

    contenders = [Fake(name, []) for name in ("plain", "gone", "mute")]
    contenders[1].answer, contenders[2].answer = refused, silent  # type: ignore[method-assign]
    made = list(measure_all(contenders, QUESTIONS, max_tokens=3, repeats=1, seed=1))
    assert {m.contender: m.error for m in made} == {
        "plain": None,
        "gone": "nobody is there",
        "mute": "the answer had no text",
    }
    rows = standings(made, ["plain", "gone", "mute"], [q.kind for q in QUESTIONS], seed=0)
    assert [row.failed for row in rows] == [0, 6, 6]
    assert rows[0].tokens_per_s is not None
    assert (rows[1].tokens_per_s, rows[1].ratio, rows[1].ttft_ms, rows[1].same_text) == (None,) * 4
    assert table(rows, None, threads=1).count("6 failed") == 2
    # Nor is anything lost where nobody answered at all.
    assert [row.tokens_per_s for row in standings([], ["plain"], ["code"], seed=0)] == [None]


def test_prompts_are_resampled_within_their_classes() -> None:
    kinds = ["code", "code", "chat", "chat"]
    made = [
        Measurement(name, n, 0, 30, seconds[kinds[n] == "chat"], 40.0, (1,))
        for name, seconds in (("plain", (1.0, 4.0)), ("fast", (0.5, 4.0)))
        for n in range(4)
    ]
    _, fast = standings(made, ["plain", "fast"], kinds, seed=0)
    assert fast.ratio is not None
    assert fast.ratio.resampled == Resampled.OF_CLASSES
    # Prompts of a class are alike here, so that nothing is in doubt.
    assert fast.ratio.lo == fast.ratio.hi == pytest.approx(10 / 9)


def test_the_formula_needs_all_conditions() -> None:
    conditions = {"draft_ms": 10.0, "step_ms": 30.0, "slope": 0.02, "acceptance": 0.8, "rtt_ms": None}
    assert colocated_of(conditions) == colocated(10.0, 30.0, 0.02, 0.8)
    assert colocated_of(conditions | {"slope": None}) is None


@pytest.mark.slow
def test_the_small_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecd.lab.peers.find_server", lambda: None)
    (tmp_path / "prompts").write_text(json.dumps({"class": "chat", "prompt": "Name three colours."}))
    arguments = ["--target", "smollm2-135m", "--draft", "smollm2-135m-draft", "--max-tokens", "12"]
    arguments += ["--prompts", str(tmp_path / "prompts"), "--json", str(tmp_path / "out")]
    result = CliRunner().invoke(peers, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "rows are left out" in result.output
    report = json.loads((tmp_path / "out").read_text())
    assert report["results"][0]["name"] == "plain loop"
    assert [row["same_text"] for row in report["results"]] == [1.0] * 5
