"""Which positions of a session are the cloud's to commit, and which of the edge's tokens it is to compare.

Pure arithmetic on positions; knows no tokens, hints or engines. docs/PROTOCOL.md, section 8, has the rules.
"""

from collections import deque
from dataclasses import dataclass, field

from ecd.errors import BadRequest


@dataclass(slots=True)
class Turn:
    """Positions below `limit` are the cloud's, None: all of them. It only grows, and only the edge moves it.

    `audits`: spans [first, end) of the edge's tokens that are still to be compared, in order.
    """

    limit: int | None = None
    audits: deque[tuple[int, int]] = field(default_factory=deque)

    def left(self, length: int, end: int) -> int:
        """Tokens that the cloud may still commit behind so many, of a text that ends at `end` at most.

        With none left it is the edge's turn.
        """
        return max(0, (end if self.limit is None else min(end, self.limit)) - length)

    def check(self, length: int, base: int, ids: int, limit: int, audit: int) -> None:
        """Whether a COMMIT of so many ids from `base` on is in order. Raises BadRequest."""
        if self.limit is None:
            raise BadRequest("this session was opened without a limit: all of its positions are the cloud's")
        if limit < self.limit:
            raise BadRequest(f"COMMIT moves the limit back from {self.limit} to {limit}")
        if ids and (base != length or length < self.limit):
            raise BadRequest(
                f"COMMIT of {ids} ids at {base}, with {length} committed and the cloud's end at {self.limit}"
            )
        if audit > ids:
            raise BadRequest(f"COMMIT of {ids} ids asks for an audit of {audit}")

    def move(self, length: int, limit: int, audit: int) -> None:
        """A COMMIT that is in order has made the text so long."""
        self.limit = limit
        if audit:
            self.audits.append((length - audit, length))

    def audited(self, next_position: int) -> None:
        """The first span was compared up to this position."""
        _, end = self.audits.popleft()
        if next_position < end:
            self.audits.appendleft((next_position, end))
