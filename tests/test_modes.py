"""Who chooses the tokens, with real models and daemons: the target, the draft, or each where it is sure."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecd.addresses import split_address
from ecd.client import BlockingClient, Client
from ecd.engine.llama import LlamaModel
from ecd.errors import RemoteError
from ecd.lab.lane import Conditions
from ecd.lab.link import EmulatedLink
from ecd.lab.system import DaemonProcess, address_of, running_edge
from ecd.oracle import TOLERANCE, OracleAnswer, check, generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Sampling

# What a draft evaluates in batches of other shapes, on cells that its lines share, differs a little more.
DRAFT_TOLERANCE = 0.5
PROMPT = "Write a Python function that merges two sorted lists."
SETTINGS = """
confidence: {strategy: ensemble, weights: {max_prob: 1, entropy: 1, margin: 2}}
keepalive: {ping_interval_s: 0.2, silence_s: 1.0}
reconnect: {first_s: 0.05, longest_s: 0.2}
"""


@pytest.fixture(scope="module")
def ensemble_edge(tmp_path_factory: pytest.TempPathFactory, cloud: DaemonProcess) -> Iterator[DaemonProcess]:
    """An edge whose confidence is another than usual."""
    folder = tmp_path_factory.mktemp("ensemble")
    config = folder / "edge.yaml"
    config.write_text(SETTINGS)
    with running_edge(folder, "smollm2-135m-draft", address_of(cloud), "--config", str(config)) as daemon:
        yield daemon


def ask(daemon: DaemonProcess, prompt: str = PROMPT, **args: Any) -> dict[str, Any]:
    with BlockingClient(daemon.socket) as client:
        *_, result = client.stream(prompt, **{"max_tokens": 64, **args})
    return result


def alone(model: LlamaModel, max_tokens: int = 64, **settings: Any) -> OracleAnswer:
    ids = prompt_tokens(model, PROMPT, chat=True)
    return generate(model, ids, Sampling.of(**settings), max_tokens=max_tokens, stop=(), threads=1)


def check_origins(result: dict[str, Any], target: LlamaModel) -> float:
    """Every token that is not the edge's is the target's choice; returns how many of the edge's are too."""
    checks = check(target, result, tolerance=TOLERANCE, threads=1).checks
    own = [gap for gap, origin in zip(checks, result["origins"], strict=True) if origin == "edge-confident"]
    others = [
        gap for gap, origin in zip(checks, result["origins"], strict=True) if origin != "edge-confident"
    ]
    assert all(each.gap <= TOLERANCE for each in others)
    return sum(each.gap == 0 for each in own) / len(own) if own else 1.0


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 7}], ids=["greedy", "coupled"])
def test_edge_only_is_the_drafts_own_text_and_sends_nothing(
    edge: DaemonProcess, draft: LlamaModel, sampling: dict[str, Any]
) -> None:
    result = ask(edge, mode="edge-only", **sampling)
    assert set(result["origins"]) == {"edge-confident"}
    assert check(draft, result, tolerance=DRAFT_TOLERANCE, threads=1).wrong == 0
    stats = result["stats"]
    assert (stats["wire_bytes_up"], stats["wire_bytes_down"], stats["target_forwards"]) == (0, 0, 0)
    assert result["finish_reason"] in ("stop", "length")


def test_edge_only_stops_at_stop_texts(edge: DaemonProcess) -> None:
    whole = ask(edge, mode="edge-only")["text"]
    result = ask(edge, mode="edge-only", stop=[whole[20:25]])
    assert (result["text"], result["finish_reason"]) == (whole[: whole.index(whole[20:25])], "stop")


def test_cloud_only_is_the_targets_text_a_forward_for_each_token(
    edge: DaemonProcess, target: LlamaModel
) -> None:
    result = ask(edge, mode="cloud-only")
    assert result["token_ids"] == list(alone(target).token_ids)
    assert result["stats"]["target_forwards"] == len(result["token_ids"])
    assert result["stats"]["drafted"] == 0


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 7}], ids=["greedy", "coupled"])
@pytest.mark.parametrize("threshold", [0.6, 0.95])
def test_confident_tokens_are_of_whom_their_origin_says_and_audits_tell_the_truth(
    edge: DaemonProcess, target: LlamaModel, threshold: float, sampling: dict[str, Any]
) -> None:
    result = ask(edge, mode="confident", threshold=threshold, audit_share=1.0, **sampling)
    stats = result["stats"]
    own = result["origins"].count("edge-confident")
    assert 0 < own < len(result["origins"])
    assert stats["handovers"] > 0
    assert stats["target_forwards"] < len(result["token_ids"])
    agreed = check_origins(result, target)
    # Audits that were not back at the end are not in the result.
    assert own - 16 <= stats["audited"] <= own
    assert abs(stats["agreed"] / stats["audited"] - agreed) <= 16 / own


def test_the_prompt_crosses_the_link_once_however_often_the_turn_changes(edge: DaemonProcess) -> None:
    result = ask(edge, "one two three four " * 60, mode="confident", threshold=0.8, max_tokens=32)
    # Two bytes for each token of the prompt.
    prompt = 2 * len(result["prompt_token_ids"])
    assert result["stats"]["handovers"] > 4
    assert result["stats"]["wire_bytes_up"] < prompt + 60 * 32 < 5 * prompt


def test_modes_are_set_while_the_daemon_runs(edge: DaemonProcess) -> None:
    def ecdctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ecd.ctl", "--socket", str(edge.socket), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    told = ecdctl("set", "mode=edge-only", "threshold=0.7", "--json")
    assert (json.loads(told.stdout)["mode"], json.loads(told.stdout)["threshold"]) == ("edge-only", 0.7)
    try:
        assert set(ask(edge, max_tokens=8)["origins"]) == {"edge-confident"}
        assert "edge-confident" not in ask(edge, max_tokens=8, mode="exact")["origins"]
        wrong = ecdctl("set", "mode=confident", "audit_share=7")
        assert (wrong.returncode, wrong.stderr[:19]) == (1, "error: audit_share:")
        assert ask(edge, max_tokens=8)["mode"] == "edge-only"
    finally:
        edge.call("set", settings={"mode": "exact", "threshold": "adaptive"})
    assert ask(edge, max_tokens=8)["mode"] == "exact"
    with pytest.raises(RemoteError, match="sessions cannot be set while running"):
        edge.call("set", settings={"sessions": 2})


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 7}], ids=["greedy", "coupled"])
def test_in_exact_mode_confidence_changes_no_token(
    ensemble_edge: DaemonProcess, target: LlamaModel, sampling: dict[str, Any]
) -> None:
    result = ask(ensemble_edge, **sampling)
    assert result["token_ids"] == list(alone(target, **sampling).token_ids)
    assert result["stats"]["drafted"] > 0


async def test_turns_survive_lost_links(tmp_path: Path, cloud: DaemonProcess, target: LlamaModel) -> None:
    host, port = split_address(address_of(cloud))
    async with EmulatedLink(host, port, Conditions(delay_s=0.01)) as link:
        config = tmp_path / "edge.yaml"
        config.write_text(SETTINGS)
        edge = running_edge(
            tmp_path, "smollm2-135m-draft", f"{link.host}:{link.port}", "--config", str(config)
        )
        daemon = await asyncio.to_thread(edge.__enter__)
        try:
            async with Client(daemon.socket) as client:
                seen = 0
                async for event in client.stream(
                    PROMPT, mode="confident", threshold=0.5, audit_share=0.5, max_tokens=96
                ):
                    if event["event"] == "text":
                        before, seen = seen, seen + len(event["ids"])
                        if before // 20 != seen // 20:
                            link.cut()
                    elif event["event"] == "done":
                        result = event
        finally:
            await asyncio.to_thread(edge.__exit__, None, None, None)
    assert result["stats"]["resumed"] > 0
    assert seen == len(result["token_ids"])
    assert {"edge-confident"} < set(result["origins"])
    check_origins(result, target)
