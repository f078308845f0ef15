"""One running request as the service sees it: its generation, its text, its times and where its chunks go."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from ecd.edge.drafter import Prefill
from ecd.edge.generation import Generation
from ecd.edge.reopening import Reopening
from ecd.edge.timeline import Timeline
from ecd.edge.uplink import Uplink
from ecd.errors import EcdError
from ecd.logprobs import TokenLogprobs
from ecd.text import TextStream
from ecd.wire.link import Link
from ecd.wire.messages import Finish


@dataclass(frozen=True, slots=True)
class Chunk:
    """Something new to show: committed tokens, and what text has become certain with them.

    Origins, `pieces` (what text became certain with each, all of them together are the text), and logprobs if
    they are wanted, are those of the ids. Text that may still become a stop string,
    or that ends inside a character, comes with a later chunk; `ids` never wait for it.
    """

    text: str
    ids: tuple[int, ...]
    origins: tuple[str, ...]
    pieces: tuple[str, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(slots=True)
class Answer:
    """One running request: its generation, its text, and where its chunks go.

    Times are monotonic; `waiting_since` is when it last got tokens, lost its link or began, `due` is that of
    `timer`, `drafted_at` that of the draft model's first guess. `uplink`: to the cloud where it runs or ran
    last. `open_bytes`: what asking for it took on the link. `timeline` is there when the request wants one,
    `link` while the answer is another edge's.
    """

    id: int
    generation: Generation
    text: TextStream
    started_at: float
    waiting_since: float
    uplink: Uplink | None = None
    chunks: asyncio.Queue[Chunk | EcdError | Finish] = field(default_factory=asyncio.Queue)
    reopening: Reopening = field(default_factory=Reopening)
    first_at: float | None = None
    first_tokens: int = 0
    last_at: float | None = None
    drafted_at: float | None = None
    draft_prefill: Prefill = field(default_factory=Prefill)
    open_bytes: int = 0
    wire_up: int = 0
    wire_down: int = 0
    due: float | None = None
    timer: asyncio.TimerHandle | None = None
    rtt_ms: float | None = None
    timeline: Timeline | None = None
    link: Link | None = None

    @property
    def source(self) -> Link | None:
        """Where its tokens come from: the edge that it was handed over to, or else its cloud."""
        return self.link or (self.uplink.link if self.uplink is not None else None)

    @property
    def later_tokens(self) -> int:
        """Tokens behind the first piece: those that came between `first_at` and `last_at`.

        Where another edge began the answer, the tokens that it came with are none of them.
        """
        generation = self.generation
        return len(generation.origins) - len(generation.request.committed) - self.first_tokens

    def live(self) -> dict[str, Any]:
        """What it has taken so far, named as in a result's `stats`, and how far guesses are `ahead`."""
        tally = self.generation.tally
        return {
            "verified": tally.verified,
            "accepted": tally.accepted,
            "target_forwards": tally.forwards,
            "ahead": self.generation.ahead,
            "wire_bytes_up": self.wire_up,
            "wire_bytes_down": self.wire_down,
            "rtt_ms": self.rtt_ms,
        }


@dataclass(slots=True)
class EdgeTotals:
    """Counters since start, as `stats` shows them."""

    answers: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    committed: int = 0
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    target_forwards: int = 0
    alternates_sent: int = 0
    alternates_used: int = 0
    resumed: int = 0
    cached_tokens: int = 0
    prefill_tokens: int = 0
    prefix_tokens: int = 0
    draft_cached_tokens: int = 0
    draft_prefill_tokens: int = 0
    assisted: int = 0
    assisted_tokens: int = 0
    assists_failed: int = 0
    page_bytes: int = 0
