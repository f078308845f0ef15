"""An edge on llama.cpp and a cloud on vLLM, as real daemons: one model at both ends, whatever happens."""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from ecd.client import BlockingClient
from ecd.lab.shipped import find_file
from ecd.lab.system import DaemonProcess, address_of, running_cloud, running_edge
from ecd.lab.trace import load_prompts

pytest.importorskip("vllm")
psutil = pytest.importorskip("psutil")

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ENGINE_ARGS = '{"dtype": "float32", "enforce_eager": true, "block_size": 32}'
DRAFT = "smollm2-135m-draft"
TOKENS = 48
PROMPTS = [
    "Write a Python function that merges two sorted lists.",
    "List five facts about the Moon.",
    "What is the capital of France?",
    "Tell me a short story about a robot.",
    "Natalia sold clips to 48 of her friends in April, and half as many in May. How many did she sell?",
    "Explain what a hash table is.",
    "Write a haiku about the sea.",
    "Translate 'good morning' into German.",
]


@pytest.fixture(scope="module")
def vllm_cloud(folder: Path) -> Iterator[DaemonProcess]:
    """A cloud with SmolLM2 on vLLM, float32."""
    flags = ["--engine", "vllm", "--engine-args", ENGINE_ARGS, "--context-tokens", "1024", "--sessions", "8"]
    with running_cloud(folder, "smollm2-135m-hf", *flags) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def vllm_edge(folder: Path, vllm_cloud: DaemonProcess) -> Iterator[DaemonProcess]:
    """An edge with the GGUF of the small draft, connected to it."""
    with running_edge(folder, DRAFT, address_of(vllm_cloud), "--context-tokens", "1024") as daemon:
        yield daemon


def ask(edge: DaemonProcess, prompt: Any, started: Event | None = None, **args: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with BlockingClient(edge.socket) as client:
        for event in client.stream(prompt, **({"max_tokens": TOKENS} | args)):
            if started is not None:
                started.set()
            result = event
    return result


def ask_all(
    edge: DaemonProcess, prompts: Sequence[str | list[int]] = PROMPTS, **args: Any
) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return list(pool.map(lambda prompt: ask(edge, prompt, **args), prompts))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 7, "top_p": 0.95, "repetition_penalty": 1.1},
    ],
    ids=["greedy", "coupled"],
)
def test_hints_change_nothing_in_the_text(vllm_edge: DaemonProcess, settings: dict[str, Any]) -> None:
    plain = ask_all(vllm_edge, draft=False, **settings)
    hinted = ask_all(vllm_edge, patience_ms="rounds", hint_tokens=4, ahead_tokens=4, **settings)
    assert [r["token_ids"] for r in hinted] == [r["token_ids"] for r in plain]
    assert sum(r["stats"]["accepted"] for r in hinted) > 0
    assert sum(r["stats"]["accepted"] for r in plain) == 0


@pytest.mark.large
def test_the_pair_agrees_as_it_does_inside_llama_cpp(
    vllm_edge: DaemonProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rounds: dict[str, Any] = {"patience_ms": "rounds", "hint_tokens": 4, "ahead_tokens": 4}
    rounds |= {"max_tokens": 64, "temperature": 0.0}

    # As many texts as it takes: answers of two engines part ways at near ties.
    prompts = [asked.text for asked in load_prompts(find_file("prompts", "mixed"))]

    def rate(edge: DaemonProcess) -> float:
        stats = [result["stats"] for result in ask_all(edge, prompts, **rounds)]
        return sum(s["accepted"] for s in stats) / sum(s["verified"] for s in stats)

    folder = tmp_path_factory.mktemp("llama")
    with (
        running_cloud(folder, "smollm2-135m") as cloud,
        running_edge(folder, DRAFT, address_of(cloud)) as edge,
    ):
        inside = rate(edge)
    assert abs(rate(vllm_edge) - inside) < 0.03


def test_an_edge_that_commits_takes_turns_with_vllm_and_is_audited_by_it(vllm_edge: DaemonProcess) -> None:
    confident = {"mode": "confident", "threshold": 0.7, "audit_share": 1.0, "temperature": 0.0}
    result = ask(vllm_edge, PROMPTS[0], **confident)
    ids, prompt, stats = result["token_ids"], result["prompt_token_ids"], result["stats"]
    contexts = [[*prompt, *ids[:count]] for count in range(len(ids))]
    choices = [each["token_ids"][0] for each in ask_all(vllm_edge, contexts, draft=False, max_tokens=1)]
    own = [origin == "edge-confident" for origin in result["origins"]]
    differ = [token != choice for token, choice in zip(ids, choices, strict=True)]
    assert 0 < sum(own) < len(own)
    assert sum(wrong for wrong, edges in zip(differ, own, strict=True) if not edges) == 0
    # Audits that were not back at the end are not in the result.
    assert sum(own) - 16 <= stats["audited"] <= sum(own)
    wrong = sum(wrong for wrong, edges in zip(differ, own, strict=True) if edges)
    assert wrong - 16 <= stats["audited"] - stats["agreed"] <= wrong


def test_stats_show_the_engine(vllm_edge: DaemonProcess, vllm_cloud: DaemonProcess) -> None:
    ask(vllm_edge, PROMPTS[0])
    engine = vllm_cloud.call("stats")["engine"]
    assert 0 <= engine["kv_use"] <= 1
    assert engine["kv_blocks"] > 0
    assert engine["evictions"] == 0


def test_a_second_turn_sends_what_is_new_and_vllm_reads_what_is_new(vllm_edge: DaemonProcess) -> None:
    about = "Counting boards, gears, relays, valves and transistors: each made the next one possible. " * 14
    asked: list[dict[str, str]] = [{"role": "user", "content": about + "Which came first?"}]
    first = ask(vllm_edge, asked)
    asked += [{"role": "assistant", "content": first["text"]}, {"role": "user", "content": "Why?"}]
    second, fresh = ask(vllm_edge, asked), ask(vllm_edge, asked, kv_cache=False)
    assert second["stats"]["prefix_tokens"] > 192
    assert second["stats"]["cached_tokens"] > 192
    assert second["stats"]["open_bytes"] < fresh["stats"]["open_bytes"] / 2
    assert (fresh["stats"]["prefix_tokens"], fresh["stats"]["cached_tokens"]) == (0, 0)
    assert second["prompt_token_ids"] == fresh["prompt_token_ids"]


def test_a_worker_killed_in_the_middle_changes_no_text(
    vllm_edge: DaemonProcess, vllm_cloud: DaemonProcess
) -> None:
    settings = {"temperature": 0.0, "max_tokens": 96}
    expected = [r["token_ids"] for r in ask_all(vllm_edge, **settings)]
    restarts = vllm_cloud.call("stats")["engine_restarts"]
    started = [Event() for _ in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = [
            pool.submit(ask, vllm_edge, prompt, event, **settings)
            for prompt, event in zip(PROMPTS, started, strict=True)
        ]
        for event in started:
            assert event.wait(60)
        os.kill(worker_of(vllm_cloud), signal.SIGKILL)
        found = [answer.result(180)["token_ids"] for answer in answers]
    assert found == expected
    assert vllm_cloud.call("stats")["engine_restarts"] == restarts + 1


def worker_of(cloud: DaemonProcess) -> int:
    """The process in which vLLM computes."""
    assert cloud.process is not None
    (worker,) = [
        child.pid
        for child in psutil.Process(cloud.process.pid).children(recursive=True)
        if "resource_tracker" not in " ".join(child.cmdline())
    ]
    return int(worker)
