"""Conversations through both daemons: later turns send and read what is new, and the text is the same."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ecd.client import BlockingClient
from ecd.engine.llama import LlamaModel
from ecd.lab.system import DaemonProcess, address_of, running_cloud, running_edge
from ecd.oracle import generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Sampling
from tests.conftest import DRAFT, TARGET

ABOUT = "Counting boards, gears, relays, valves and transistors: each made the next one possible. "
QUESTIONS = ("Which of these came first?", "And which came last? One word, please.", "Why?")
SETTINGS: tuple[dict[str, Any], ...] = ({}, {"temperature": 0.8, "seed": 5})
ROUNDS: dict[str, Any] = {"patience_ms": "rounds", "hint_tokens": 2, "ahead_tokens": 2}
QUICK = "reconnect: {first_s: 0.05, longest_s: 0.3}\n"
Messages = list[dict[str, str]]


@dataclass
class Chat:
    """One conversation: what was said, and the result of each turn."""

    edge: DaemonProcess
    messages: Messages

    def say(self, question: str, **args: Any) -> dict[str, Any]:
        asked = [*self.messages, {"role": "user", "content": question}]
        result = ask(self.edge, asked, **args)
        self.messages = [*asked, {"role": "assistant", "content": result["text"]}]
        return result


def ask(edge: DaemonProcess, messages: Messages, **args: Any) -> dict[str, Any]:
    with BlockingClient(edge.socket) as client:
        *_, result = client.stream(messages, **({"max_tokens": 24} | args))
    return result


def about(name: str) -> Messages:
    """Some 300 tokens that no other test has."""
    return [{"role": "system", "content": f"This is for {name}. " + ABOUT * 14}]


def stats_of(result: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(result["stats"][name] for name in names)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    file = folder / "edge.yaml"
    file.write_text(f"{QUICK}kv_cache: {{disk: {{path: {folder / 'kv'}}}}}\n")
    return file


@pytest.fixture(scope="module")
def edge(folder: Path, cloud: DaemonProcess, settings: Path) -> Iterator[DaemonProcess]:
    with running_edge(folder, DRAFT, address_of(cloud), "--config", str(settings)) as daemon:
        yield daemon


@pytest.mark.parametrize("sampling", SETTINGS, ids=["greedy", "coupled"])
def test_every_turn_is_the_targets_own_and_reads_what_is_new(
    edge: DaemonProcess, target: LlamaModel, sampling: dict[str, Any]
) -> None:
    chat = Chat(edge, about(f"turns {sampling}"))
    for turn, question in enumerate(QUESTIONS):
        result = chat.say(question, **sampling)
        prompt = prompt_tokens(target, chat.messages[:-1], chat=True)
        assert result["prompt_token_ids"] == list(prompt)
        expected = generate(target, prompt, Sampling.of(**sampling), max_tokens=24, stop=(), threads=1)
        assert result["token_ids"] == list(expected.token_ids)
        cached, read, unsent = stats_of(result, "cached_tokens", "prefill_tokens", "prefix_tokens")
        assert cached + read == len(prompt)
        if turn:
            assert read < 200
            assert len(prompt) - unsent < 128


def test_open_is_as_large_as_what_is_new(edge: DaemonProcess) -> None:
    chat = Chat(edge, about("bytes"))
    first, second = chat.say(QUESTIONS[0]), chat.say(QUESTIONS[1])
    (whole,), (delta,) = stats_of(first, "open_bytes"), stats_of(second, "open_bytes")
    assert whole > 2 * len(first["prompt_token_ids"]) - 2 * 64
    # Two bytes a token, up to 63 tokens more than are new, and 150 bytes of hash and settings.
    new = len(second["prompt_token_ids"]) - len(first["prompt_token_ids"]) - len(first["token_ids"])
    assert delta < 2 * (new + 63) + 150


def test_without_the_cache_all_is_sent_and_read_and_the_text_is_the_same(edge: DaemonProcess) -> None:
    chat = Chat(edge, about("on and off"))
    chat.say(QUESTIONS[0])
    asked = [*chat.messages, {"role": "user", "content": QUESTIONS[1]}]
    off, on = ask(edge, asked, kv_cache=False), ask(edge, asked)
    assert off["token_ids"] == on["token_ids"]
    assert stats_of(off, "cached_tokens", "prefix_tokens", "draft_cached_tokens") == (0, 0, 0)
    assert all(stats_of(on, "cached_tokens", "prefix_tokens"))
    assert off["stats"]["prefill_tokens"] == len(off["prompt_token_ids"])
    assert off["stats"]["open_bytes"] > 4 * on["stats"]["open_bytes"]


def test_stats_of_both_daemons_tell_of_it(edge: DaemonProcess, cloud: DaemonProcess) -> None:
    chat = Chat(edge, about("stats"))
    chat.say(QUESTIONS[0])
    before = [daemon.call("stats") for daemon in (edge, cloud)]
    result = chat.say(QUESTIONS[1])
    after = [daemon.call("stats") for daemon in (edge, cloud)]
    for name in ("cached_tokens", "prefill_tokens", "prefix_tokens", "draft_cached_tokens"):
        assert after[0][name] - before[0][name] == result["stats"][name]
    assert after[0]["kv_cache"].keys() == {
        "kept_tokens",
        "saved_texts",
        "saved_bytes",
        "disk_texts",
        "disk_bytes",
    }
    engine = [stats["engine"] for stats in (before[1], after[1])]
    assert engine[1]["cached_tokens"] - engine[0]["cached_tokens"] == result["stats"]["cached_tokens"]
    assert engine[1]["hits"] - engine[0]["hits"] == 1


def test_a_restarted_edge_finds_its_texts_on_the_disk(edge: DaemonProcess, cloud: DaemonProcess) -> None:
    chat = Chat(edge, about("restart"))
    # The draft model is asked, however slow it is; how much it reads meanwhile is its own business.
    chat.say(QUESTIONS[0], max_tokens=16, **ROUNDS)
    edge.signal(signal.SIGTERM)
    edge.start()
    edge.wait(lambda status: bool(status["link"]["state"] == "connected"))
    result = chat.say(QUESTIONS[1], max_tokens=4, **ROUNDS)
    assert result["stats"]["draft_cached_tokens"] > 64
    # The edge does not know any more what it has sent, and the cloud still has what it has read.
    assert stats_of(result, "prefix_tokens") == (0,)
    assert result["stats"]["cached_tokens"] > 250
    assert chat.say(QUESTIONS[2])["stats"]["prefix_tokens"] > 250


def test_a_cloud_that_forgot_is_sent_the_whole(tmp_path: Path, target: LlamaModel, settings: Path) -> None:
    with (
        running_cloud(tmp_path, TARGET) as cloud,
        running_edge(tmp_path, DRAFT, address_of(cloud), "--config", str(settings)) as edge,
    ):
        chat = Chat(edge, about("restarted cloud"))
        chat.say(QUESTIONS[0])
        listen = address_of(cloud)
        # Of one that drains the edge knows that the next there will hold nothing.
        cloud.signal(signal.SIGKILL)
        cloud.flags = ["--listen", listen, "--model", TARGET]
        cloud.start()
        cloud.wait(lambda status: True)
        edge.wait(lambda status: bool(status["link"]["state"] == "connected"))
        result = chat.say(QUESTIONS[1])
        prompt = prompt_tokens(target, chat.messages[:-1], chat=True)
        expected = generate(target, prompt, Sampling(), max_tokens=24, stop=(), threads=1)
        assert result["token_ids"] == list(expected.token_ids)
        assert stats_of(result, "cached_tokens", "prefix_tokens", "resumed") == (0, 0, 0)
        assert "send the whole prompt" in edge.log.read_text()
        # Both OPENs, the one that was refused and the whole one.
        assert result["stats"]["open_bytes"] > 2 * len(prompt)
        assert chat.say(QUESTIONS[2])["stats"]["prefix_tokens"] > 250


def test_an_edge_without_a_cache_asks_without(tmp_path: Path, cloud: DaemonProcess) -> None:
    file = tmp_path / "edge.yaml"
    file.write_text("kv_cache: false\n")
    with running_edge(tmp_path, DRAFT, address_of(cloud), "--config", str(file)) as edge:
        chat = Chat(edge, about("an edge without"))
        chat.say(QUESTIONS[0])
        result = chat.say(QUESTIONS[1])
        assert stats_of(result, "cached_tokens", "prefix_tokens", "draft_cached_tokens") == (0, 0, 0)
        assert edge.call("stats")["kv_cache"] == {}
