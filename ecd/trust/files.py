"""The token file: read with suspicion, changed as a whole, read again when it has changed.

Owns modes, owners, locking and atomic replacement. What tokens mean is `tokens`' business.
"""

import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from ecd.errors import ConfigError
from ecd.trust.dangers import FORBIDDEN_MODE
from ecd.trust.tokens import Token, Tokens

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 4 << 20


def read_private(path: Path, setting: str) -> bytes:
    """What a file holds that others must not see. Raises ConfigError, also when they could."""
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_mode & FORBIDDEN_MODE:
                raise ConfigError(
                    f"{setting}: others than its owner could read or change {path} "
                    f"(mode {stat.S_IMODE(facts.st_mode):04o}); `chmod 600 {path}`"
                )
            if facts.st_uid not in (0, os.geteuid()):
                raise ConfigError(
                    f"{setting}: {path} belongs to uid {facts.st_uid}, not to this daemon's user; `chown` it"
                )
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as e:
        raise ConfigError(f"{setting}: cannot read {path}: {e.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{setting}: {path} is longer than {MAX_FILE_BYTES} bytes")
    return content


def load_tokens(path: Path) -> Tokens:
    """The tokens of a file. Raises ConfigError when it cannot be read, is no token file or not private."""
    try:
        return Tokens.model_validate_json(read_private(path, "tokens"))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"tokens: {path} is no token file{f' ({where})' if where else ''}: {first['msg']}; "
            "make one with `ecd token create`"
        ) from None


def change_tokens(path: Path, change: Callable[[Tokens], Tokens]) -> None:
    """Replaces the tokens of a file, an absent one having none, by what `change` makes of them.

    Nobody else changes the file meanwhile, and nobody ever sees half of it. Raises ConfigError, and what
    `change` raises; then the file is as it was.
    """
    try:
        folder = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as e:
        raise ConfigError(f"cannot use the folder of {path}: {e.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        there = path.exists()
        tokens = load_tokens(path) if there else Tokens()
        _replace(path, change(tokens), path.stat() if there else None)
    finally:
        os.close(folder)


def _replace(path: Path, tokens: Tokens, before: os.stat_result | None) -> None:
    content = tokens.model_dump_json(indent=1, exclude_unset=True)
    try:
        # mkstemp makes it for this user alone.
        number, name = tempfile.mkstemp(prefix=path.name, dir=path.absolute().parent)
        try:
            with os.fdopen(number, "w") as file:
                if before is not None:
                    # The daemon may read by its group, or root may be changing what belongs to it.
                    os.fchown(number, before.st_uid, before.st_gid)
                    os.fchmod(number, stat.S_IMODE(before.st_mode))
                file.write(content + "\n")
                file.flush()
                os.fsync(number)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
    except OSError as e:
        raise ConfigError(f"cannot write {path}: {e.strerror}") from None


class TokenFile:
    """The tokens of a file as they were when it was last read well. Raises ConfigError when it never was."""

    def __init__(self, path: Path):
        self.path = path
        self._stamp = self._look()
        self.tokens = load_tokens(path)

    def identify(self, shown: bytes | None) -> str:
        """The name of the token that was shown. Raises AuthError."""
        return self.tokens.identify(shown, datetime.now(UTC)).name

    def check(self, name: str) -> Token:
        """The token of that name. Raises AuthError when it is no longer good."""
        return self.tokens.check(name, datetime.now(UTC))

    def refresh(self) -> None:
        """Reads the file again if it has changed; one that cannot be used changes nothing and is told."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.tokens = load_tokens(self.path)
        except ConfigError as e:
            log.error("the tokens stay as they were: %s", e)
        else:
            log.info("tokens of %s read again: %d", self.path, len(self.tokens.tokens))

    def _look(self) -> tuple[int, ...]:
        try:
            facts = self.path.stat()
        except OSError:
            return ()
        # Its mode too: one that was refused for it is read again once that is mended.
        return (facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size)
