"""The model store: one folder, in it a file or a folder per model, and beside each what is known of it.

Owns the folder's layout, locks, sums and disk space. Must not know networks, wheels or llama.cpp.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, assert_never

from pydantic import TypeAdapter

from ecd.errors import ModelError
from ecd.models import catalogue
from ecd.models.catalogue import Derived, Fetched, HfRecipe, Model, Recipe

_CHUNK = 1 << 20
# EFBIG is a file size limit and EDQUOT a quota: for the person the same as a full disk
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Progress(Protocol):
    """Told, often, how far a long step is: what it is, and bytes done of bytes in total. Must not block."""

    def __call__(self, what: str, done: int, total: int, /) -> None: ...


def silent(_what: str, _done: int, _total: int, /) -> None:
    """The Progress for callers that show none."""


class State(StrEnum):
    """Whether the store has a model."""

    PRESENT = "present"
    DERIVED = "derived"
    ABSENT = "not fetched"


@dataclass(frozen=True, slots=True)
class Derivation:
    """What a derived model was made from and with: a version of llama-cpp-python, or of gguf for a folder."""

    parent_sha256: str
    recipe: Recipe | HfRecipe
    llama_cpp: str | None = None
    gguf: str | None = None


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What was true of a file when it was hashed; size in bytes, mtime in nanoseconds since the epoch.

    Of a folder: the sum as `sum_of` forms it, the size of all its files and the newest mtime of any.
    """

    sha256: str
    size: int
    mtime_ns: int
    derivation: Derivation | None


_SIDECAR = TypeAdapter(Sidecar)


def root() -> Path:
    """The store's folder: ECD_MODELS, or ecd/models in the user's cache folder."""
    if chosen := os.environ.get("ECD_MODELS"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ecd" / "models"


def place_of(model: Model) -> Path:
    """Where the model's file or folder is, or will be."""
    match model.origin:
        case Derived(recipe=HfRecipe()):
            return root() / model.name
        case Fetched() | Derived():
            return root() / f"{model.name}.gguf"
        case other:
            assert_never(other)


def partial_of(model: Model) -> Path:
    """The folder for the model's unfinished files, made if it is not there."""
    folder = root() / ".partial" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def discard_partial(model: Model) -> None:
    """Removes the model's unfinished files."""
    shutil.rmtree(root() / ".partial" / model.name, ignore_errors=True)


def path(name: str) -> Path | None:
    """The finished file or folder of the entry `name`, None if the store has none; hashes nothing.

    Raises ModelError if no entry is called so.
    """
    return ready(catalogue.find(name))


def ready(model: Model) -> Path | None:
    """The file or folder if its sidecar tells that it is whole and, if derived, made by today's recipe."""
    known = read_sidecar(model)
    if known is None or not _describes(known, model):
        return None
    place = place_of(model)
    try:
        now = _stamp(place)
    except FileNotFoundError:
        return None
    return place if now == (known.size, known.mtime_ns) else None


def _stamp(place: Path) -> tuple[int, int]:
    stats = [file.stat() for file in _files(place)]
    return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    return sorted(file for file in place.rglob("*") if file.is_file())


def state(model: Model) -> State:
    """Whether the model is there, and if so whether it was made here; hashes nothing."""
    if ready(model) is None:
        return State.ABSENT
    match model.origin:
        case Fetched():
            return State.PRESENT
        case Derived():
            return State.DERIVED
        case other:
            assert_never(other)


def _describes(known: Sidecar, model: Model) -> bool:
    match model.origin:
        case Fetched(sha256=expected):
            return known.sha256 == expected
        case Derived(parent=parent, recipe=recipe):
            made = known.derivation
            return made is not None and made.recipe == recipe and made.parent_sha256 == published_sum(parent)
        case other:
            assert_never(other)


def published_sum(name: str) -> str:
    """The sha256 of the fetched entry `name`; raises ModelError if `name` is not one."""
    match catalogue.find(name).origin:
        case Fetched(sha256=expected):
            return expected
        case Derived():
            raise ModelError(f"{name} is itself derived, nothing can be derived from it")
        case other:
            assert_never(other)


def _sidecar_of(model: Model) -> Path:
    place = place_of(model)
    return place.with_name(f"{place.name}.json")


def read_sidecar(model: Model) -> Sidecar | None:
    """What the store knows of the model; None if nothing, or nothing that can be read."""
    try:
        return _SIDECAR.validate_json(_sidecar_of(model).read_bytes())
    except (OSError, ValueError):
        return None


def record(model: Model, sha256: str, derivation: Derivation | None) -> None:
    """Writes the sidecar of the finished file or folder, whose sum the caller has just computed."""
    size, mtime_ns = _stamp(place_of(model))
    known = Sidecar(sha256, size, mtime_ns, derivation)
    temporary = partial_of(model) / "sidecar.json"
    temporary.write_bytes(_SIDECAR.dump_json(known, indent=2) + b"\n")
    sync(temporary)
    os.replace(temporary, _sidecar_of(model))


def publish(model: Model, data: Path, sha256: str, derivation: Derivation | None) -> Path:
    """Gives the checked file or folder its final name, writes its sidecar and removes what is unfinished."""
    for file in _files(data):
        sync(file)
    place = place_of(model)
    if place.is_dir():
        # a folder can only be renamed to one that is empty or not there
        os.replace(place, partial_of(model) / "outdated")
    os.replace(data, place)
    record(model, sha256, derivation)
    discard_partial(model)
    return place


def sync(file: Path) -> None:
    """Has the kernel write `file` to the disk."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def sha256_of(file: Path, what: str, progress: Progress) -> str:
    """The sha256 of `file` in hex; `what` is the step's name for `progress`."""
    digest, done, total = hashlib.sha256(), 0, file.stat().st_size
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(what, done, total)
    return digest.hexdigest()


def sum_of(place: Path, what: str, progress: Progress) -> str:
    """The sha256 of a file; of a folder, that of what `sha256sum` prints for its files, sorted by name."""
    if not place.is_dir():
        return sha256_of(place, what, progress)
    digest, before, (total, _) = hashlib.sha256(), 0, _stamp(place)
    for file in _files(place):

        def within(step: str, done: int, _size: int, /, before: int = before) -> None:
            progress(step, before + done, total)

        digest.update(f"{sha256_of(file, what, within)}  {file.relative_to(place)}\n".encode())
        before += file.stat().st_size
    return digest.hexdigest()


def verify(name: str, progress: Progress = silent) -> None:
    """Hashes the whole entry `name`: against the published sum, or a derived one's sum when it was made.

    Raises ModelError that says what is wrong: no such entry, not in the store, another sum.
    """
    model = catalogue.find(name)
    place = place_of(model)
    if not place.exists():
        raise ModelError(f"{name} is not in {root()}; run `ecd models get {name}`")
    expected = _expected_sum(model)
    found = sum_of(place, f"{name}: checking", progress)
    if found != expected:
        raise ModelError(
            f"{name}: {place} has sha256 {found}, expected {expected}; "
            f"delete it and run `ecd models get {name}`"
        )


def _expected_sum(model: Model) -> str:
    match model.origin:
        case Fetched(sha256=expected):
            return expected
        case Derived():
            known = read_sidecar(model)
            if known is None or not _describes(known, model):
                raise ModelError(
                    f"{model.name}: {_sidecar_of(model)} does not tell how this was made; "
                    f"run `ecd models get {model.name}` to make it again"
                )
            return known.sha256
        case other:
            assert_never(other)


@contextlib.contextmanager
def locked(model: Model, progress: Progress) -> Iterator[None]:
    """Holds the model for one process; waits, without a limit, while another process has it."""
    root().mkdir(parents=True, exist_ok=True)
    # the lock file stays: removing it would let two processes lock two files of one name
    with (root() / f".{model.name}.lock").open("a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"{model.name}: another process is getting it, waiting", 0, model.size)
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def require_room(needed: int) -> None:
    """Raises ModelError unless the store's disk has `needed` bytes free."""
    free = shutil.disk_usage(root()).free
    if free < needed:
        raise ModelError(_full_message(needed, free))


def is_full(error: BaseException) -> bool:
    """Whether `error` says that the disk, a quota or a file size limit left no room."""
    return isinstance(error, OSError) and error.errno in _FULL


def full_disk(needed: int) -> ModelError:
    """The error that tells of a disk that filled up during a step that takes `needed` bytes."""
    return ModelError(_full_message(needed, shutil.disk_usage(root()).free))


def _full_message(needed: int, free: int) -> str:
    return (
        f"not enough disk space in {root()}: {needed:,} bytes needed, {free:,} free; "
        "make room, or set ECD_MODELS to a folder on a larger disk"
    )
