"""What becomes of an answer whose stream the cloud has ended: opened again at once, later or never.

Pure; knows the error code and how much was committed, and nothing of links.
"""

from dataclasses import dataclass
from enum import Enum, auto

from ecd.errors import Code

# So often in a row is an answer opened again without a token between: engines may be failing by it.
MAX_ENGINE_LOSSES = 3


class Reopen(Enum):
    """When to send OPEN again."""

    NOW = auto()
    LATER = auto()
    NEVER = auto()


@dataclass(slots=True)
class Reopening:
    """Engines that were lost under one answer, in a row, and at how many committed tokens the last was.

    `whole`: whether its prompt is to be sent whole, since the cloud no longer had a part of it.
    """

    whole: bool = False
    _losses: int = 0
    _lost_at: int = 0

    def after(self, code: Code, committed: int, elsewhere: bool) -> Reopen:
        """The stream was reset with `code` after so many tokens; `elsewhere`: another cloud takes it now."""
        match code:
            case Code.ENGINE_RESTARTED:
                self._losses = self._losses + 1 if committed == self._lost_at else 1
                self._lost_at = committed
                return Reopen.NOW if self._losses <= MAX_ENGINE_LOSSES else Reopen.NEVER
            case Code.UNKNOWN_PREFIX if not self.whole:
                self.whole = True
                return Reopen.NOW
            case Code.DRAINING | Code.BUSY if elsewhere:
                return Reopen.NOW
            case Code.DRAINING:
                return Reopen.LATER
            case Code.BUSY if committed:
                return Reopen.LATER
            case _:
                return Reopen.NEVER
