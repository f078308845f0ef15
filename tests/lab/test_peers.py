"""Contenders side by side: who is asked when, and who stands where."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

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
    plain, fast, other = standings(measurements, ["plain", "fast", "other"], seed=0)
    assert fast.tokens_per_s == {"median": 30.0, "min": 30.0, "max": 30.0}
    assert [row.ratio.median for row in (plain, fast, other) if row.ratio] == [1.0, 2.0, 0.5]
    # (1,) lacks only the token that ends (1, 2).
    assert (plain.same_text, fast.same_text, other.same_text) == (1.0, 1.0, 0.0)
    text = table([plain, fast, other], colocated(10.0, 30.0, 0.02, 0.8), threads=1)
    assert "2.00 (2.00 - 2.00)" in text
    assert "1 thread." in text
    assert "resamples of repeats within each prompt" in text
    assert "times the target alone" in text


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
