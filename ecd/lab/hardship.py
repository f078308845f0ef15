"""What a soak does to a daemon's surroundings: a disk without room, a token that expires.

Owns how either is done and undone. Knows no schedule, and nothing of answers.
"""

import resource
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ecd.trust.files import change_tokens
from ecd.trust.settings import Limits
from ecd.trust.tokens import Tokens, new_secret

NAME = "soak"
# For what a daemon logs meanwhile. A saved state is larger: a model's cells for 64 tokens and more.
LOG_ROOM_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class EdgeToken:
    """The one token in a cloud's token file, and its secret for the edges."""

    file: Path
    secret: str

    @classmethod
    def create(cls, file: Path) -> "EdgeToken":
        """A good one, in a new file. Its sessions are not limited: those of dead links count for a while."""
        secret = new_secret()
        change_tokens(
            file, lambda tokens: tokens.created(NAME, secret, datetime.now(UTC), None, Limits(sessions=None))
        )
        return cls(file, secret)

    @property
    def error(self) -> str:
        """What everyone is told whom the token no longer lets in."""
        return f"the token {NAME!r} expired on"

    def expire(self) -> None:
        """It is no longer good; the cloud notices when it looks at its file next."""
        self._set_expiry(datetime.now(UTC))

    def renew(self) -> None:
        """It is good again, for good."""
        self._set_expiry(None)

    def _set_expiry(self, expires: datetime | None) -> None:
        def changed(tokens: Tokens) -> Tokens:
            (token,) = tokens.tokens
            return Tokens(tokens=(token.model_copy(update={"expires": expires}),))

        change_tokens(self.file, changed)


def fill_disk(pid: int, log: Path) -> None:
    """For this process the disk is full, but for a little more of its log: no file grows beyond that.

    A limit on the size of files fails writes as a full disk does (setrlimit(2), EFBIG in place of ENOSPC),
    and needs neither privileges nor a disk.
    """
    soft = log.stat().st_size + LOG_ROOM_BYTES
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def free_disk(pid: int) -> None:
    """Undoes `fill_disk`."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
