"""The store's folders; its files are tested where they are fetched and derived."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from ecd.errors import ModelError
from ecd.models import catalogue, fetch, store
from ecd.models.catalogue import Derived, HfRecipe, Model
from ecd.models.cli import models

PARENT = "smollm2-135m"
CONTENT = {"config.json": b"{}", "model.safetensors": bytes(3_000_000), "sub/more.json": b"[1]"}
ENTRY = Model("tiny-hf", "a test", "Apache-2.0", 3_000_005, Derived(PARENT, HfRecipe("float32")))


@pytest.fixture(autouse=True)
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The one folder that the catalogue knows, and an empty store."""
    monkeypatch.setenv("ECD_MODELS", str(tmp_path / "store"))
    monkeypatch.setitem(catalogue.MODELS, ENTRY.name, ENTRY)
    return ENTRY


def published(content: dict[str, bytes] = CONTENT, recipe: HfRecipe | None = None) -> Path:
    made = store.partial_of(ENTRY) / "whole"
    for name, data in content.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(data)
    derivation = store.Derivation(store.published_sum(PARENT), recipe or HfRecipe("float32"), gguf="0.19.0")
    return store.publish(ENTRY, made, store.sum_of(made, "", store.silent), derivation)


def test_a_folder_is_published_whole_with_what_is_known_of_it() -> None:
    assert store.state(ENTRY) is store.State.ABSENT
    folder = published()
    assert folder == store.root() / "tiny-hf"
    assert {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()} == CONTENT
    assert store.path("tiny-hf") == fetch.get("tiny-hf") == fetch.resolve("tiny-hf") == folder
    assert store.state(ENTRY) is store.State.DERIVED
    store.verify("tiny-hf")
    sidecar = store.read_sidecar(ENTRY)
    assert sidecar is not None
    assert sidecar.size == ENTRY.size
    assert sidecar.derivation is not None
    assert (sidecar.derivation.recipe, sidecar.derivation.gguf) == (HfRecipe("float32"), "0.19.0")
    assert sorted(file.name for file in store.root().iterdir()) == [".partial", "tiny-hf", "tiny-hf.json"]
    assert not any((store.root() / ".partial").iterdir())


def test_the_sum_is_what_sha256sum_says_of_its_files() -> None:
    folder = published()
    said = subprocess.run(["sha256sum", *sorted(CONTENT)], cwd=folder, capture_output=True, check=True).stdout
    assert store.sum_of(folder, "", store.silent) == hashlib.sha256(said).hexdigest()


def test_progress_runs_once_over_all_files() -> None:
    told: list[tuple[int, int]] = []
    store.sum_of(published(), "sum", lambda what, done, total, /: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (ENTRY.size, ENTRY.size)


def test_a_newer_folder_takes_the_place_of_the_older() -> None:
    published()
    folder = published({"config.json": b"{2}"})
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    store.verify("tiny-hf")


@pytest.mark.parametrize("name", sorted(CONTENT))
def test_a_changed_file_is_noticed_unless_made_to_look_old_and_then_by_its_sum(name: str) -> None:
    file = published() / name
    before = file.stat()
    file.write_bytes(b"x" * before.st_size)
    assert store.path("tiny-hf") is None
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.path("tiny-hf") is not None
    with pytest.raises(ModelError, match=r"tiny-hf has sha256 [0-9a-f]+, expected [0-9a-f]+; delete it"):
        store.verify("tiny-hf")


def test_a_file_that_went_is_noticed() -> None:
    (published() / "config.json").unlink()
    assert store.path("tiny-hf") is None
    with pytest.raises(ModelError, match="has sha256"):
        store.verify("tiny-hf")


@pytest.mark.parametrize("recipe", [HfRecipe("bfloat16"), HfRecipe("float32", version=0)], ids=repr)
def test_a_folder_of_another_recipe_counts_as_none(recipe: HfRecipe) -> None:
    published(recipe=recipe)
    assert store.path("tiny-hf") is None
    with pytest.raises(ModelError, match="does not tell how this was made; run `ecd models get tiny-hf`"):
        store.verify("tiny-hf")


def test_the_commands_show_folders() -> None:
    runner = CliRunner()
    absent = runner.invoke(models, ["verify", "tiny-hf"])
    assert "tiny-hf is not in" in absent.stderr
    folder = published()
    assert runner.invoke(models, ["path", "tiny-hf"], catch_exceptions=False).output == f"{folder}\n"
    assert runner.invoke(models, ["get", "tiny-hf"], catch_exceptions=False).output == f"tiny-hf: {folder}\n"
    assert runner.invoke(models, ["verify"], catch_exceptions=False).stdout == "tiny-hf: ok\n"


def test_a_folder_of_the_user_is_taken_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file and no model is called"):
        fetch.resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert fetch.resolve(str(tmp_path)) == tmp_path
