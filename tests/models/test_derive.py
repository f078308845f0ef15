"""Deriving, with the real SmolLM2 and llama.cpp's real quantiser; folders where gguf is installed."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import ecd
from ecd.engine.llama_quantize import quantize
from ecd.errors import ModelError
from ecd.models import catalogue, fetch, store
from ecd.models.catalogue import Derived, Fetched, HfRecipe, Recipe

llama_cpp = pytest.importorskip("llama_cpp")

DRAFT = "smollm2-135m-draft"
FOLDER = "smollm2-135m-hf"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published file under its official name; fetched into the user's store once."""
    origin = catalogue.find("smollm2-135m").origin
    assert isinstance(origin, Fetched)
    folder = tmp_path_factory.mktemp("official")
    (folder / origin.file).symlink_to(fetch.get("smollm2-135m"))
    return folder


@pytest.fixture
def fresh(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store beside the folder with the published file."""
    monkeypatch.setenv("ECD_MODELS_FROM", str(official))
    monkeypatch.setenv("ECD_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def files(folder: Path) -> list[str]:
    return sorted(
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and file.suffix != ".lock"
    )


def test_derives_on_first_use_from_a_parent_it_fetches_first(fresh: Path) -> None:
    entry = catalogue.find(DRAFT)
    assert store.state(entry) is store.State.ABSENT
    file = fetch.resolve(DRAFT)
    assert file.stat().st_size == entry.size
    assert files(fresh) == sorted(
        f"{name}.gguf{suffix}" for name in (DRAFT, "smollm2-135m") for suffix in ("", ".json")
    )
    assert store.state(entry) is store.State.DERIVED
    sidecar = store.read_sidecar(entry)
    assert sidecar is not None
    assert sidecar.sha256 == sha256(file)
    assert sidecar.derivation is not None
    assert sidecar.derivation.recipe == Recipe("Q4_0")
    assert sidecar.derivation.parent_sha256 == sha256(fresh / "smollm2-135m.gguf")
    store.verify(DRAFT)


def test_the_derived_file_loads(fresh: Path) -> None:
    model = llama_cpp.Llama(str(fetch.get(DRAFT)), n_ctx=64, n_threads=1, verbose=False)
    assert int(model.metadata["general.file_type"]) == llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    assert model.n_vocab() == 49152
    model.close()


def test_deriving_again_gives_the_same_bytes(fresh: Path) -> None:
    first = sha256(fetch.get(DRAFT))
    (fresh / f"{DRAFT}.gguf").unlink()
    assert store.path(DRAFT) is None
    assert sha256(fetch.get(DRAFT)) == first


def test_another_recipe_makes_it_again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch.get(DRAFT)
    other = Derived("smollm2-135m", Recipe("Q4_0", token_embedding="Q4_0", output="Q4_0"))
    changed = replace(catalogue.find(DRAFT), origin=other)
    monkeypatch.setitem(catalogue.MODELS, DRAFT, changed)
    assert store.path(DRAFT) is None
    with pytest.raises(ModelError, match=f"does not tell how this was made.*get {DRAFT}"):
        store.verify(DRAFT)
    before = (fresh / f"{DRAFT}.gguf").stat().st_size
    assert fetch.get(DRAFT).stat().st_size < before


def test_rotten_bytes_are_found(fresh: Path) -> None:
    file = fetch.get(DRAFT)
    before = file.stat()
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(b"\xa5")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelError, match=rf"{file} has sha256 [0-9a-f]+, expected [0-9a-f]+"):
        store.verify(DRAFT)


def test_a_disk_that_fills_up_leaves_no_half_file(fresh: Path) -> None:
    fetch.get("smollm2-135m")
    code = (
        "import resource; from ecd.models import fetch\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))\n"
        f"fetch.get({DRAFT!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(ecd.__file__).parents[1], capture_output=True, text=True
    )
    assert "ModelError: llama.cpp could not write" in done.stderr
    assert files(fresh) == ["smollm2-135m.gguf", "smollm2-135m.gguf.json"]


@pytest.mark.vllm
def test_a_folder_is_made_like_a_file(fresh: Path) -> None:
    pytest.importorskip("gguf")
    folder = fetch.resolve(FOLDER)
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    sidecar = store.read_sidecar(catalogue.find(FOLDER))
    assert sidecar is not None
    assert sidecar.derivation is not None
    assert sidecar.derivation.recipe == HfRecipe("float32")
    assert sidecar.derivation.parent_sha256 == sha256(fresh / "smollm2-135m.gguf")
    assert sidecar.derivation.gguf is not None
    store.verify(FOLDER)


@pytest.mark.vllm
def test_a_disk_that_fills_up_leaves_no_half_folder(fresh: Path) -> None:
    pytest.importorskip("gguf")
    fetch.get("smollm2-135m")
    code = (
        "import resource; from ecd.models import fetch\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))\n"
        f"fetch.get({FOLDER!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(ecd.__file__).parents[1], capture_output=True, text=True
    )
    assert "ModelError: not enough disk space in" in done.stderr
    assert files(fresh) == ["smollm2-135m.gguf", "smollm2-135m.gguf.json"]


def test_no_room_is_seen_up_front(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch.get("smollm2-135m")
    entry = replace(catalogue.find(DRAFT), size=1 << 60)
    monkeypatch.setitem(catalogue.MODELS, DRAFT, entry)
    with pytest.raises(ModelError, match=rf"{1 << 60:,} bytes needed"):
        fetch.get(DRAFT)
    assert files(fresh) == ["smollm2-135m.gguf", "smollm2-135m.gguf.json"]


def test_the_quantiser_tells_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "not.gguf"
    source.write_bytes(b"not a model" * 100)
    with pytest.raises(ModelError, match=r"llama\.cpp could not write .*not\.gguf as Q4_0 to .*: .*load"):
        quantize(source, tmp_path / "out", ftype="Q4_0", token_embedding=None, output=None, threads=1)
    with pytest.raises(ModelError, match="has no LLAMA_FTYPE_MOSTLY_Q17"):
        quantize(source, tmp_path / "out", ftype="Q17", token_embedding=None, output=None, threads=1)
    assert capfd.readouterr() == ("", "")
