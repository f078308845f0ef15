"""Exactness with the pair for speed: Qwen2.5-Coder 1.5B BF16 in the cloud, 0.5B Q4_0 at the edge. Hours."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ecd.client import BlockingClient
from ecd.engine.llama import LlamaModel
from ecd.lab.system import DaemonProcess, address_of, running_cloud, running_edge
from ecd.models.fetch import resolve
from ecd.oracle import TOLERANCE, OracleAnswer, Report, check, generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Sampling

pytestmark = pytest.mark.large

TARGET, DRAFT = "qwen2.5-coder-1.5b-bf16", "qwen2.5-coder-0.5b-q4_0"
PROMPTS_FILE = Path(__file__).parents[1] / "prompts.jsonl"
PROMPTS = [json.loads(line)["prompt"] for line in PROMPTS_FILE.read_text().splitlines()]
MAX_TOKENS = 128
ROOM = ("--sessions", "1", "--context-tokens", "1024")


@pytest.fixture(scope="module")
def qwen() -> LlamaModel:
    return LlamaModel(resolve(TARGET))


def ask(edge: DaemonProcess, prompt: str, temperature: float) -> dict[str, Any]:
    with BlockingClient(edge.socket) as client:
        *_, result = client.stream(prompt, temperature=temperature, seed=7, max_tokens=MAX_TOKENS)
    return result


def ask_all(folder: Path, temperature: float, *cloud_flags: str) -> list[dict[str, Any]]:
    folder.mkdir()
    with (
        running_cloud(folder, TARGET, *ROOM, *cloud_flags) as cloud,
        running_edge(folder, DRAFT, address_of(cloud), *ROOM) as edge,
    ):
        return [ask(edge, prompt, temperature) for prompt in PROMPTS]


def tell(
    setting: str, temperature: float, runs: list[dict[str, Any]], alone: list[OracleAnswer]
) -> list[int]:
    """Prints what the runs took; the indices of those whose tokens are not the oracle's."""
    tokens = sum(run["usage"]["completion_tokens"] for run in runs)
    verified, accepted, forwards = (
        sum(run["stats"][name] for run in runs) for name in ("verified", "accepted", "target_forwards")
    )
    different = [i for i, run in enumerate(runs) if run["token_ids"] != list(alone[i].token_ids)]
    print(
        f"{setting}, temperature {temperature}: {tokens} tokens, acceptance {accepted / verified:.3f}, "
        f"forwards per token {forwards / tokens:.3f}, answers that differ {len(different)} of {len(runs)}",
        flush=True,
    )
    return different


@pytest.mark.parametrize("temperature", [0.8, 0.0])
def test_two_daemons_give_the_targets_text(tmp_path: Path, qwen: LlamaModel, temperature: float) -> None:
    """Token by token in the stable setting; in the default one every token within tolerance of the choice."""

    def alone(prompt: str) -> OracleAnswer:
        ids = prompt_tokens(qwen, prompt, chat=True)
        sampling = Sampling.of("exact", temperature, seed=7)
        return generate(qwen, ids, sampling, max_tokens=MAX_TOKENS, stop=(), threads=1)

    with ThreadPoolExecutor(1) as pool:
        expected_later = pool.map(alone, PROMPTS)
        stable = ask_all(tmp_path / "stable", temperature, "--stable")
        default = ask_all(tmp_path / "default", temperature)
        expected = list(expected_later)

    assert not tell("stable", temperature, stable, expected)
    assert [run["text"] for run in stable] == [answer.text for answer in expected]
    reports: list[Report] = []
    for index in tell("default", temperature, default, expected):
        reports.append(check(qwen, default[index], tolerance=TOLERANCE, threads=1))
        gaps = [f"{c.gap:.3f}" for c in reports[-1].checks if c.gap]
        print(f"prompt {index}: {len(gaps)} near ties, gaps {gaps}", flush=True)
    assert not sum(report.wrong for report in reports)
