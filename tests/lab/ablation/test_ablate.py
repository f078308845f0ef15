"""`ecd ablate`: what is refused, what an interruption leaves, and a whole run with real models."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ecd.cli import cli
from ecd.errors import BadRequest, ConfigError, DaemonError, EcdError
from ecd.lab.ablation import command
from ecd.lab.ablation.conditions import WINDOW, Condition
from ecd.lab.ablation.conversations import Conversation
from ecd.lab.ablation.records import Answer, Asked, Exchange
from tests.conftest import DRAFT, TARGET

PAIR = ("--target", TARGET, "--draft", DRAFT)
LONG = "Counting boards, gears, relays, valves and transistors: each made the next one possible. " * 16


def ablate(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["ablate", *arguments])


def prompts_in(folder: Path, *lines: Any) -> str:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return str(file)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "o"], "give --target and --draft"),
        (["--out", "o", "--target", "big"], "give --target and --draft"),
        (["--out", "o", *PAIR, "--config", "x.yaml"], "the models stand there"),
        ([*PAIR], "--out"),
        (["--out", "o", *PAIR, "--repeat", "0"], "--repeat"),
        (["--out", "o", *PAIR, "--thresholds", "0.5,high"], "--thresholds"),
        (["--out", "o", *PAIR, "--thresholds", "1.5"], "--thresholds"),
    ],
)
def test_options_that_make_no_sense(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = ablate(*arguments)
    assert result.exit_code == 2
    assert says in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_bad_override_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    config = tmp_path / "ablation.yaml"
    config.write_text(
        f"cloud: {{model: {TARGET}}}\nedge: {{model: {DRAFT}}}\nexperiments:\n  ablations:\n"
        "  - {name: mine, config_overrides: {edge: {confidence: {strategy: hope}}}}\n"
    )
    result = ablate("--config", str(config), "--out", str(tmp_path / "out"))
    assert isinstance(result.exception, ConfigError)
    assert "'mine'" in str(result.exception)
    assert "edge.confidence.strategy: " in str(result.exception)
    assert not (tmp_path / "out").exists()


class System:
    """Stands in for daemons: answers at once, and is ended by `by` before its answer number `until`."""

    def __init__(self, until: int, by: BaseException | None = None):
        self.until = until
        self.by = by or KeyboardInterrupt()
        self.had: list[Asked] = []
        self.started: list[list[str]] = []

    @contextlib.contextmanager
    def running_pairs(
        self, folder: Path, conditions: Sequence[Condition], rtt_ms: float
    ) -> Iterator[dict[str, str]]:
        self.started.append([condition.name for condition in conditions])
        yield {condition.name: condition.name for condition in conditions}

    def converse(self, pair: str, asked: Asked, conversation: Conversation, agreed: Any) -> Exchange:
        assert pair == asked.condition
        if len(self.had) == self.until:
            raise self.by
        self.had.append(asked)
        answers = [
            Answer(text="x", token_ids=(1, 2), latency_ms=10, ttft_ms=5, forwards=2, decoded=1, decode_ms=5)
            for _ in conversation.turns
        ]
        return Exchange(asked, tuple(answers))


def replaced_by(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "running_pairs", system.running_pairs)
    monkeypatch.setattr(command, "converse", system.converse)
    monkeypatch.setattr(command, "_agreed", lambda cloud: lambda result: None)


def test_an_interrupted_run_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_in(tmp_path, "one", "two", {"messages": [{"content": "a"}, {"content": "b"}]})
    out = tmp_path / "out"
    arguments = [*PAIR, "--prompts", prompts, "--out", str(out), "--thresholds", "none", "--repeat", "2"]
    first = System(until=20)
    replaced_by(first, monkeypatch)
    result = ablate(*arguments)
    assert result.exit_code != 0
    assert "20 of 36 conversations are in" in result.output
    assert not (out / "ablation_report.json").exists()

    second = System(until=1000)
    replaced_by(second, monkeypatch)
    result = ablate(*arguments)
    assert result.exit_code == 0, result.output
    assert len(second.had) == 16
    assert not set(first.had) & set(second.had)
    assert len(second.started) == 1, "the first repeat was complete"
    report = json.loads((out / "ablation_report.json").read_text())
    assert [len(experiment["prompts"]) for experiment in report["experiments"]] == [8] * 6

    more = System(until=1000)
    replaced_by(more, monkeypatch)
    assert ablate(*arguments[:-1], "3").exit_code == 0
    assert len(more.had) == 18
    fewer = System(until=0)
    replaced_by(fewer, monkeypatch)
    assert ablate(*arguments[:-1], "1").exit_code == 0
    report = json.loads((out / "ablation_report.json").read_text())
    assert {len(experiment["prompts"]) for experiment in report["experiments"]} == {4}


def test_a_daemon_that_is_gone_ends_the_run_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*PAIR, "--prompts", prompts_in(tmp_path, "one"), "--out", str(tmp_path / "out")]
    replaced_by(System(3, DaemonError("`ecd edge` ended with code -9")), monkeypatch)
    result = ablate(*arguments)
    assert isinstance(result.exception, DaemonError)
    assert "3 of 12 conversations are in" in result.output
    again = System(until=1000)
    replaced_by(again, monkeypatch)
    assert ablate(*arguments).exit_code == 0
    assert len(again.had) == 9


def test_what_cannot_be_written_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = ablate(*PAIR, "--out", "/dev/null/x")
    assert isinstance(result.exception, BadRequest)
    assert "/dev/null/x: Not a directory; choose another --out" in str(result.exception)

    replaced_by(System(until=1000), monkeypatch)
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    result = ablate(*PAIR, "--prompts", prompts_in(tmp_path, "one"), "--out", str(tmp_path / "out"))
    assert isinstance(result.exception, EcdError)
    assert "report.html: Is a directory; the answers are kept" in str(result.exception)


def test_another_run_does_not_go_on_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced_by(System(until=1000), monkeypatch)
    arguments = [*PAIR, "--out", str(tmp_path / "out"), "--prompts", prompts_in(tmp_path, "one")]
    assert ablate(*arguments).exit_code == 0
    result = ablate(*arguments, "--rtt-ms", "7")
    assert isinstance(result.exception, BadRequest)
    assert "rtt_ms; choose another --out" in str(result.exception)


# Under `cost` the cloud waits for hints, so that what comes of them does not depend on this machine's speed.
SETTINGS = f"""
cloud: {{model: {TARGET}, context_tokens: 1024}}
edge: {{model: {DRAFT}, context_tokens: 1024, objective: cost}}
request: {{max_tokens: 20}}
experiments:
  ablations:
    - name: sure
      description: the edge commits what it is half sure of
      config_overrides: {{edge.mode: confident, edge: {{threshold: 0.5, audit_share: 1.0}}}}
"""
EXACT = ("baseline", "no_confidence", "no_draft_verify", "no_kv_cache", "cloud_only")


@pytest.mark.slow
def test_every_ablation_differs_where_it_must(tmp_path: Path) -> None:
    config, out = tmp_path / "ablation.yaml", tmp_path / "out"
    config.write_text(SETTINGS)
    prompts = prompts_in(
        tmp_path,
        {"class": "sums", "prompt": "What is 9 times 8?", "check": {"number": "72"}},
        {
            "class": "turns",
            "messages": [{"content": LONG + "Which came first?"}, {"content": "And which came last?"}],
        },
    )
    result = ablate(
        "--config", str(config), "--prompts", prompts, "--out", str(out), "--thresholds", "none",
        "--rtt-ms", "60",
    )  # fmt: skip
    assert result.exit_code == 0, result.output + repr(result.exception)
    report = json.loads((out / "ablation_report.json").read_text())
    found = {experiment["name"]: experiment for experiment in report["experiments"]}
    assert list(found) == [
        "baseline", "no_confidence", "no_draft_verify", "no_kv_cache", "edge_only", "cloud_only", "sure",
    ]  # fmt: skip
    summary = {name: experiment["summary"] for name, experiment in found.items()}
    second = {name: experiment["turns"][1]["summary"] for name, experiment in found.items()}
    assert {each["success_rate"] for each in summary.values()} == {1.0}

    # The text is the target's under every switch of exact mode, and in no other.
    assert {found[name]["same_text"] for name in EXACT} == {1.0}
    assert {summary[name]["agreement"] for name in EXACT} == {1.0}
    assert summary["edge_only"]["agreement"] < 1

    assert second["baseline"]["cached_tokens"] > 200
    # The others may copy all that they guess, and not ask the draft model.
    assert second["edge_only"]["draft_cached_tokens"] > 200
    assert summary["no_kv_cache"]["cached_tokens"] == summary["no_kv_cache"]["draft_cached_tokens"] == 0
    assert second["no_kv_cache"]["ttft_ms"] > second["baseline"]["ttft_ms"]

    assert summary["edge_only"]["wire_bytes"] == summary["edge_only"]["prefill_tokens"] == 0
    assert summary["edge_only"]["forwards_per_token"] == 0
    assert summary["edge_only"]["edge_share"] == 1
    assert summary["sure"]["edge_share"] > 0
    assert 0 < summary["sure"]["audited_agreement"] <= 1
    assert summary["sure"]["forwards_per_token"] < 1
    assert all(told["audited"] == told["edge_tokens"] for told in found["sure"]["prompts"])

    assert summary["no_draft_verify"]["forwards_per_token"] == 1
    assert summary["no_draft_verify"]["acceptance_rate"] is None
    assert summary["cloud_only"]["forwards_per_token"] == 1
    assert summary["cloud_only"]["drafted_per_token"] == 0
    assert summary["baseline"]["forwards_per_token"] < 1

    ahead = {name: [told["most_ahead"] for told in found[name]["prompts"]] for name in found}
    assert max(ahead["no_confidence"]) == WINDOW
    assert found["no_confidence"]["config"]["edge"]["confidence"]["strategy"] == "none"
    assert ahead["cloud_only"] == [0, 0, 0]

    assert [told["right"] is None for told in found["baseline"]["prompts"]] == [False, True, True]
    assert found["sure"]["changes"]["edge.threshold"] == {"baseline": "adaptive", "here": 0.5}
    assert {"report.html", "times.png", "work.png", "turns.png", "confident.png"} <= {
        place.name for place in out.iterdir()
    }
