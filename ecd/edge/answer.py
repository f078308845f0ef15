"""One running request as the service sees it: its generation, its text, its times and where its chunks go."""

import asyncio
from dataclasses import dataclass, field

from ecd.edge.generation import Generation
from ecd.errors import EcdError
from ecd.text import TextStream
from ecd.wire.messages import Finish


@dataclass(frozen=True, slots=True)
class Chunk:
    """Something new to show: text, and the tokens and origins that became known with it."""

    text: str
    ids: tuple[int, ...]
    origins: tuple[str, ...]


@dataclass(slots=True)
class Answer:
    """One running request: its generation, its text, and where its chunks go.

    Times are monotonic; `waiting_since` is when it last got tokens, lost its link or began.
    """

    id: int
    generation: Generation
    text: TextStream
    started_at: float
    waiting_since: float
    chunks: asyncio.Queue[Chunk | EcdError | Finish] = field(default_factory=asyncio.Queue)
    first_at: float | None = None
    first_tokens: int = 0
    last_at: float | None = None
    wire_up: int = 0
    wire_down: int = 0
    timer: asyncio.TimerHandle | None = None
    rtt_ms: float | None = None


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
