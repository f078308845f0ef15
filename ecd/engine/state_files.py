"""Saved states as files, so that they survive a restart.

Owns the files' format, their folder and its bound. A file is compressed with zstd, says which model and
engine it is of, and carries digests of its header and its payload: one that is damaged is dropped with a
warning, one of another model is left alone until its room is needed. Texts of users are in here, so only
their owner may read them.
"""

import contextlib
import hashlib
import logging
import os
import stat
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np
import zstandard

from ecd.engine.prefix_cache import WORTH_TOKENS, Saved, Text, Wanted
from ecd.errors import ConfigError

log = logging.getLogger(__name__)

SUFFIX = ".ecdkv"
MAGIC = b"ecd-kv-2"
DIGEST_BYTES = 16
# Behind the magic: the header's length and its digest.
_LEAD = struct.Struct(f">I{DIGEST_BYTES}s")
MAX_HEADER_BYTES = 16 << 20
# Fast; the numbers of a KV cache hardly get smaller by trying harder.
LEVEL = 1
# A file that is still being written is no older than that.
PART_SUFFIX, PART_S = ".part", 3600.0


class _Damaged(Exception):
    """A file is not what was written."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file of this model, and the text whose state it has."""

    path: Path
    text: Text


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()


class StateFiles:
    """Saved states of the model and engine with this fingerprint, in a folder of at most `max_bytes`.

    The folder may be shared by daemons and models: the bound is on all files in it, and the least recently
    used go first, whoever wrote them. Raises ConfigError when the folder cannot be made, or when others
    could put files into it.
    """

    def __init__(self, folder: Path, max_bytes: int, fingerprint: bytes):
        self._folder = folder
        self._max_bytes = max_bytes
        self._fingerprint = fingerprint
        self._files: dict[Path, _File] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_folder(folder)
            self._scan()
        except OSError as e:
            raise ConfigError(
                f"kv_cache.disk.path: cannot keep states in {folder}: {e.strerror}; choose a folder that "
                "can be written to, or leave `disk` out"
            ) from None

    def __len__(self) -> int:
        return len(self._files)

    @property
    def size_bytes(self) -> int:
        """Of all files in the folder."""
        return sum(size for _, size, _ in self._listed())

    def find(self, wanted: Wanted, more_than: int) -> tuple[int, Saved] | None:
        """As `PrefixCache.find`. A file that turns out damaged is dropped and the next best one taken."""
        while True:
            best = max(list(self._files.values()), key=lambda file: wanted.held_by(file.text), default=None)
            if best is None or (length := wanted.held_by(best.text)) < more_than + WORTH_TOKENS:
                return None
            try:
                saved = self._read(best)
            except FileNotFoundError:
                self._files.pop(best.path, None)  # another daemon needed its room
            except (OSError, _Damaged) as e:
                self._drop(best.path, e)
            else:
                return length, saved

    def covers(self, text: Text) -> bool:
        """Whether a file has all of that already, which then counts as used."""
        for file in list(self._files.values()):
            if file.text.covers(text):
                with contextlib.suppress(OSError):
                    os.utime(file.path)
                return True
        return False

    def write(self, saved: Saved) -> None:
        """Writes a state, in place of those that it covers; a failure costs a warning and the state."""
        if self.covers(saved.text):
            return
        state = zstandard.ZstdCompressor(level=LEVEL).compress(saved.state.data)
        tokens = saved.text.tokens.astype("<i4").tobytes()
        header = msgpack.packb(
            {
                "fingerprint": self._fingerprint,
                "tokens": tokens,
                "prompt_len": saved.text.prompt_len,
                "solid": saved.text.solid,
                "tenant": saved.text.tenant,
                "size": saved.state.nbytes,
                "digest": _digest(state),
            }
        )
        content = MAGIC + _LEAD.pack(len(header), _digest(header)) + header + state
        lengths = struct.pack(">III", len(tokens), saved.text.prompt_len, saved.text.solid)
        name = _digest(self._fingerprint, lengths, tokens, saved.text.tenant.encode())
        path = self._folder / (name.hex() + SUFFIX)
        if len(content) > self._max_bytes:
            # What it covers stays: that is better than nothing.
            return
        for file in [file for file in self._files.values() if saved.text.covers(file.text)]:
            self._remove(file.path)
        try:
            self._make_room(len(content))
            self._put(path, content)
            self._files[path] = _File(path, saved.text)
        except OSError as e:
            log.warning("a KV state could not be kept in %s: %s", self._folder, e.strerror)

    # -- files

    def _scan(self) -> None:
        for path, _, _ in self._listed():
            try:
                with path.open("rb") as stream:
                    header = _read_header(stream)
                if header["fingerprint"] == self._fingerprint:
                    self._files[path] = _File(path, _text_of(header))
            except FileNotFoundError:
                continue
            except (_Damaged, OSError) as e:
                self._drop(path, e)
        for part in self._folder.glob("*" + PART_SUFFIX):
            with contextlib.suppress(OSError):
                if part.stat().st_mtime < time.time() - PART_S:
                    part.unlink()

    def _listed(self) -> list[tuple[Path, int, float]]:
        """Path, bytes and time of last use of all files there are, least recently used first."""
        listed = []
        for path in self._folder.glob("*" + SUFFIX):
            with contextlib.suppress(OSError):
                facts = path.stat()
                listed.append((path, facts.st_size, facts.st_mtime))
        return sorted(listed, key=lambda each: each[2])

    def _read(self, file: _File) -> Saved:
        """By the header that is there now: another daemon may have saved the same text since, with numbers
        of its own.
        """
        with file.path.open("rb") as stream:
            header = _read_header(stream)
            payload = stream.read(self._max_bytes + 1)
        if len(payload) > self._max_bytes or _digest(payload) != header["digest"]:
            raise _Damaged("its content is not what was written")
        with contextlib.suppress(FileNotFoundError):
            os.utime(file.path)
        state = zstandard.ZstdDecompressor().decompress(payload, max_output_size=header["size"])
        return Saved(file.text, np.frombuffer(state, np.uint8))

    def _put(self, path: Path, content: bytes) -> None:
        """A reader sees all of it or nothing; what a power cut leaves, the digests find out."""
        handle, part = tempfile.mkstemp(suffix=PART_SUFFIX, dir=self._folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise

    def _make_room(self, size_bytes: int) -> None:
        """So many bytes more fit from here on: the least recently used files are gone."""
        listed = self._listed()
        total = sum(size for _, size, _ in listed)
        for path, size, _ in listed:
            if total + size_bytes <= self._max_bytes:
                break
            self._remove(path)
            total -= size

    def _drop(self, path: Path, why: Exception) -> None:
        log.warning("%s is damaged and is dropped: %s", path, why)
        self._remove(path)

    def _remove(self, path: Path) -> None:
        self._files.pop(path, None)
        with contextlib.suppress(OSError):
            path.unlink()


def _check_folder(folder: Path) -> None:
    """Raises ConfigError for one in which others could put files: what llama.cpp is given must be our own.

    Root may use another's folder, as in a container.
    """
    facts, own = folder.stat(), os.geteuid()
    if facts.st_mode & stat.S_IWOTH or (own and facts.st_uid not in (own, 0)):
        raise ConfigError(
            f"kv_cache.disk.path: others could put files into {folder} (uid {facts.st_uid}, mode "
            f"{stat.S_IMODE(facts.st_mode):04o}); `chmod 700` it, or name a folder of this user's"
        )


def _read_header(stream: BinaryIO) -> dict[str, Any]:
    """What stands before a file's state, up to which the stream is read. Raises _Damaged, OSError."""
    lead = stream.read(len(MAGIC) + _LEAD.size)
    if lead[: len(MAGIC)] != MAGIC or len(lead) != len(MAGIC) + _LEAD.size:
        raise _Damaged("it does not begin as it should")
    length, digest = _LEAD.unpack(lead[len(MAGIC) :])
    header = stream.read(min(length, MAX_HEADER_BYTES))
    if _digest(header) != digest:
        raise _Damaged("its header is not what was written")
    told: dict[str, Any] = msgpack.unpackb(header)
    return told


def _text_of(header: dict[str, Any]) -> Text:
    tokens = np.frombuffer(header["tokens"], "<i4").astype(np.int32)
    return Text(tokens, header["prompt_len"], header["solid"], header["tenant"])
