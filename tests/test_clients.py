"""Programs of others against a live edge and cloud, as docs/CLIENTS.md shows them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecd.lab.system import DaemonProcess, address_of, running_edge, url_of

PROMPT = "Write a Python function that merges two sorted lists."
MODEL, DRAFT = "smollm2-135m", "smollm2-135m-draft"
DOCUMENT = (Path(__file__).parents[1] / "docs" / "CLIENTS.md").read_text(encoding="utf-8")
# Those whose programs are installed for the tests.
SECTIONS = ("curl", "OpenAI's package", "llm")
BLOCKS = [
    (kind, block)
    for section in DOCUMENT.split("\n## ")[1:]
    if section.partition("\n")[0] in SECTIONS
    for kind, block in re.findall(r"^```(sh|python)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
]


@pytest.fixture(scope="module")
def edge(folder: Path, cloud: DaemonProcess) -> Iterator[DaemonProcess]:
    with running_edge(folder, DRAFT, address_of(cloud), "--http", "127.0.0.1:0") as daemon:
        yield daemon


def expected(edge: DaemonProcess, **args: Any) -> str:
    """The same on the control socket."""
    return str(edge.call("run", **({"prompt": PROMPT, "max_tokens": 24} | args))["text"])


@pytest.fixture
def settings(tmp_path: Path, edge: DaemonProcess) -> dict[str, str]:
    """The environment of an `llm` that knows the edge as a model for chats and as one for completions."""
    models = [
        {"model_id": "ecd", "model_name": MODEL, "api_base": f"{url_of(edge)}/v1"},
        {"model_id": "ecd-text", "model_name": MODEL, "api_base": f"{url_of(edge)}/v1", "completion": True},
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    return os.environ | {"LLM_USER_PATH": str(tmp_path)}


def llm(settings: dict[str, str], *arguments: str) -> str:
    """What the program prints."""
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        env=settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("kind", "block"), BLOCKS)
def test_what_the_document_shows_runs(
    kind: str, block: str, settings: dict[str, str], edge: DaemonProcess
) -> None:
    here = block.replace("http://127.0.0.1:8082", url_of(edge))
    assert here != block
    command = {"sh": ["bash", "-euo", "pipefail", "-c", here], "python": [sys.executable, "-c", here]}[kind]
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        env=settings | {"PATH": programs},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert '"error"' not in done.stdout


OPTIONS = ("-o", "temperature", "0", "-o", "max_tokens", "24")


@pytest.mark.parametrize("stream", [(), ("--no-stream",)], ids=["streamed", "whole"])
def test_the_llm_tool_gets_the_target_s_answer(
    settings: dict[str, str], edge: DaemonProcess, stream: tuple[str, ...]
) -> None:
    assert llm(settings, "-m", "ecd", *OPTIONS, *stream, PROMPT) == expected(edge) + "\n"


def test_the_llm_tool_goes_on_with_a_conversation_and_counts_its_tokens(
    settings: dict[str, str], edge: DaemonProcess
) -> None:
    first = llm(settings, "-m", "ecd", *OPTIONS, "-s", "Be brief.", PROMPT).removesuffix("\n")
    second = llm(settings, "-c", *OPTIONS, "Shorter.")
    said = [("system", "Be brief."), ("user", PROMPT), ("assistant", first), ("user", "Shorter.")]
    messages = [{"role": role, "content": content} for role, content in said]
    assert second == expected(edge, prompt=messages) + "\n"
    newest, oldest = sorted(
        json.loads(llm(settings, "logs", "--json", "-n", "2")), key=lambda log: -log["input_tokens"]
    )
    assert oldest["output_tokens"] <= newest["output_tokens"] == 24
    assert newest["input_tokens"] == edge.call("run", prompt=messages, max_tokens=1)["usage"]["prompt_tokens"]


def test_the_llm_tool_completes_a_text(settings: dict[str, str], edge: DaemonProcess) -> None:
    answer = llm(settings, "-m", "ecd-text", *OPTIONS, "def merge(a, b):")
    assert answer == expected(edge, prompt="def merge(a, b):", chat=False) + "\n"
