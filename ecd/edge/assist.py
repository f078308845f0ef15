"""Whether the cloud reads a prompt for this edge's draft model, and what has come of that.

Pure. Owns when to ask, when to wait, when to give up; decides from measured speeds only. Knows no links and
no engines: time is passed in, in seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from ecd.errors import PageError
from ecd.pages import RUN_TOKENS, Encoding, Shape
from ecd.wire.messages import Kv
from ecd.wire.transfer import Run, Wanted

# Fewer tokens are read here before anything could arrive.
LEAST_TOKENS = 256
# The cloud must promise to be so much faster: estimates are rough, and waiting for nothing costs twice.
MARGIN = 1.5
# Without a new page for so many times as long as all of them should take, there will be none; and for so many
# seconds where that is not known.
PATIENCE, PATIENCE_S = 2.0, 5.0


@dataclass(frozen=True, slots=True)
class Speeds:
    """What was measured. Seconds for a token of a prompt here and at the cloud, where `cloud_waiting` tokens
    of others come first; what the link brings (None: not known yet) and its RTT.
    """

    local_token_s: float
    cloud_token_s: float
    cloud_waiting: int
    link_bytes_per_s: float | None
    rtt_s: float


def cloud_speeds(load: Mapping[str, Any]) -> tuple[float, int] | None:
    """Seconds for a token, and tokens that wait, as a cloud's PONG tells them; None if it does not."""
    match load:
        case {"assist_token_ms": int() | float() as token_ms, "assist_waiting": int() as waiting} if (
            0 < token_ms < 1e6 and waiting >= 0
        ):
            return token_ms / 1000, waiting
    return None


def cloud_s(tokens: int, position_bytes: int, speeds: Speeds) -> float:
    """How long the pages of so many tokens take from now on.

    One run of them is on its way while the next is read, so the slower of the two decides, and the other
    counts for one run. Where the link is not known its part is left out: the best case.
    """
    reading = tokens * speeds.cloud_token_s
    sending = tokens * position_bytes / speeds.link_bytes_per_s if speeds.link_bytes_per_s else 0.0
    one_run = min(1.0, RUN_TOKENS / tokens)
    waiting = speeds.cloud_waiting * speeds.cloud_token_s
    return speeds.rtt_s + waiting + max(reading, sending) + one_run * min(reading, sending)


def wins(to_read: int, tokens: int, position_bytes: int, speeds: Speeds) -> bool:
    """Whether the draft is ready clearly earlier by the pages of `tokens` than by reading `to_read` here."""
    if to_read < LEAST_TOKENS:
        return False
    return MARGIN * cloud_s(tokens, position_bytes, speeds) < to_read * speeds.local_token_s


class Stage(Enum):
    """READING here; TRYING what the link brings, and reading on; WAITING for pages; OVER, for good."""

    READING = auto()
    TRYING = auto()
    WAITING = auto()
    OVER = auto()


@dataclass(slots=True)
class Assist:
    """One prompt of `tokens` tokens and its way into the draft model's cells.

    `runs` are complete pages, in order; `held` positions are read here.
    """

    shape: Shape
    encoding: Encoding
    tokens: int
    stage: Stage = Stage.READING
    wanted: Wanted | None = None
    runs: list[Run] = field(default_factory=list)
    held: int = 0
    failed: str | None = None
    _give_up_at: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether all pages are there."""
        return self.wanted is not None and self.wanted.complete

    def consider(self, held: int, speeds: Speeds, now: float) -> bool:
        """So much is read here; whether pages are to be asked for from now on."""
        self.held = held
        if self.stage is not Stage.READING or not self._wins(speeds):
            return False
        self.wanted = Wanted(self.shape.model, self.tokens, self.encoding, self._most_bytes)
        self.stage = Stage.TRYING
        self._go_on(speeds, now)
        return True

    def adopt(self, now: float) -> None:
        """The text comes from another edge, which has its pages: they are to be asked and waited for."""
        self.wanted = Wanted(self.shape.model, self.tokens, self.encoding, self._most_bytes)
        self.stage, self._give_up_at = Stage.WAITING, now + PATIENCE_S

    def receive(self, message: Kv, speeds: Speeds | None, now: float) -> None:
        """A frame about the pages, by which the stage may change. `failed` says what was wrong with it.

        speeds: None where it is not a matter of speed.
        """
        if self.wanted is None or self.stage is Stage.OVER:
            return
        try:
            if run := self.wanted.receive(message, now):
                self.runs.append(run)
        except PageError as e:
            self.failed, self.stage = str(e), Stage.OVER
            return
        if self.wanted.complete:
            self.stage = Stage.WAITING
        elif speeds is None:
            self._give_up_at = now + PATIENCE_S
        else:
            # Those that wait at the cloud are this prompt's by now.
            self._go_on(replace(speeds, cloud_waiting=0), now)

    def late(self, now: float) -> bool:
        """Whether pages that were waited for did not come: they are not waited for any more."""
        if self.stage is not Stage.WAITING or self.complete or now < self._give_up_at:
            return False
        self.failed, self.stage = "pages did not come in time", Stage.OVER
        return True

    def _go_on(self, speeds: Speeds, now: float) -> None:
        """The speeds are known better than before."""
        assert self.wanted is not None
        if speeds.link_bytes_per_s is None:
            return
        missing = self.tokens - self.wanted.next
        if wins(self.tokens - self.held, missing, self._position_bytes, speeds):
            self.stage = Stage.WAITING
            self._give_up_at = now + PATIENCE * cloud_s(missing, self._position_bytes, speeds) + 1.0
        elif self.stage is Stage.TRYING:
            self.stage = Stage.OVER

    def _wins(self, speeds: Speeds) -> bool:
        return wins(self.tokens - self.held, self.tokens, self._position_bytes, speeds)

    @property
    def _position_bytes(self) -> int:
        return self.shape.position_bytes(self.encoding)

    def _most_bytes(self, first: int, last: int) -> int:
        return self.shape.most_bytes(self.encoding, first, last)
