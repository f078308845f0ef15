"""Which models which engine takes, and what is said of the others."""

from pathlib import Path

import pytest

from ecd.errors import ModelError
from ecd.models import catalogue, forms
from ecd.models.forms import gguf_file, hugging_face_model

FOLDERS = {"smollm2-135m-hf", "qwen2.5-coder-1.5b-hf"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a model in each form, and a store that has everything."""
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "renamed").write_bytes(b"GGUF")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forms, "resolve", lambda name: Path("/store") / name)


def test_vllm_takes_folders_and_names_on_the_hub() -> None:
    assert hugging_face_model("hf") == "hf"
    assert hugging_face_model("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    for name in FOLDERS:
        assert hugging_face_model(name) == f"/store/{name}"


@pytest.mark.parametrize(
    "model", ["a.gguf", "renamed", "not/here.gguf", *sorted(catalogue.MODELS.keys() - FOLDERS)]
)
def test_gguf_files_are_not_for_vllm(model: str) -> None:
    with pytest.raises(ModelError, match=r"is a GGUF file, and vLLM loads .*smollm2-135m-hf.*--engine llama"):
        hugging_face_model(model)


@pytest.mark.parametrize("model", ["empty", "nowhere", "/no/where", "", "a/b/c", "../x"])
def test_what_is_neither_folder_nor_name_is_said_to_be_so(model: str) -> None:
    with pytest.raises(ModelError, match=r"no Hugging Face folder and no model is called .*OWNER/NAME"):
        hugging_face_model(model)


def test_llama_cpp_takes_files_and_the_other_names() -> None:
    for model in ("a.gguf", *(catalogue.MODELS.keys() - FOLDERS)):
        assert gguf_file(model) == Path("/store") / model


@pytest.mark.parametrize("model", ["hf", *sorted(FOLDERS)])
def test_folders_are_not_for_llama_cpp(model: str) -> None:
    with pytest.raises(
        ModelError, match=r"is a Hugging Face folder, and .*smollm2-135m, .*--engine vllm"
    ) as said:
        gguf_file(model)
    assert "-hf," not in str(said.value)
