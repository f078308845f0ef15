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


@dataclass(frozen=True, slots=True)
class OtherEdge:
    """The edge that an answer was handed over to."""

    link: Link


@dataclass(slots=True)
class Answer:
    """One running request: its generation, its text, and where its chunks go.

    Times are monotonic; `waiting_since` is when it last got tokens, lost its link or began, `due` is that of
    `timer`, `drafted_at` that of the draft model's first guess. `at`: where its frames go, the cloud where it
    runs or ran last or another edge; None before the first. `open_bytes`: what asking for it took on the
    link. `timeline` is there when the request wants one.
    """

    id: int
    generation: Generation
    text: TextStream
    started_at: float
    waiting_since: float
    at: Uplink | OtherEdge | None = None
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

    @property
    def link(self) -> Link | None:
        """What its frames go over; None where there is no connection."""
        return None if self.at is None else self.at.link

    @property
    def cloud(self) -> Uplink | None:
        """The cloud that it is at; None for none, and at another edge."""
        return self.at if isinstance(self.at, Uplink) else None

    @property
    def about(self) -> dict[str, Any]:
        """What a line of the log names it by."""
        connection = 0 if self.cloud is None else self.cloud.connects
        return {"connection": connection, "session": self.id, "stream": self.generation.stream}

    @property
    def prefill_tokens(self) -> int:
        """Of the prompt, those that the cloud had to read; none of a prompt that it was never sent."""
        prompt = self.generation.request.prompt
        return len(prompt) - self.generation.tally.cached_tokens if self.open_bytes else 0

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

    def add(self, answer: Answer) -> None:
        """The answer is over."""
        generation, tally = answer.generation, answer.generation.tally
        self.committed += len(generation.origins) - len(generation.request.committed)
        self.drafted += tally.drafted
        self.verified += tally.verified
        self.accepted += tally.accepted
        self.target_forwards += tally.forwards
        self.resumed += tally.resumed
        self.cached_tokens += tally.cached_tokens
        self.prefill_tokens += answer.prefill_tokens
        self.prefix_tokens += tally.prefix_tokens
        self.draft_cached_tokens += answer.draft_prefill.cached
        self.draft_prefill_tokens += answer.draft_prefill.read
        self.alternates_sent += tally.alternates_sent
        self.alternates_used += tally.alternates_used
