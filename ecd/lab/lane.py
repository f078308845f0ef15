"""A bad network as pure arithmetic: what is wrong with a link, when, and when each byte is due.

Owns `Conditions`, `Schedule` and `Lane`. Knows no socket and no clock: time is passed in, in seconds.
"""

import math
import random
from collections import deque
from dataclasses import dataclass
from enum import Enum

from ecd.errors import ConfigError

QUEUE_LIMIT_BYTES = 4 << 20  # queued in one direction of one connection before its sender is no longer read
SEGMENT_BYTES = 1448  # the least that is serialised at once: what one Ethernet frame carries
SEGMENT_S = 0.001  # on a fast line a segment is what passes in this time, to bound the work per byte


class Direction(Enum):
    """Which way bytes go: `UP` from the connecting client to the upstream server."""

    UP = "up"
    DOWN = "down"


class Mark(Enum):
    """What a lane hands over in place of bytes."""

    EOF = "eof"  # the sender ended its half of the stream
    RESET = "reset"  # the sender's socket broke
    CUT = "cut"  # the schedule ends the connection here
    DIE = "die"  # the schedule makes the connection half-open here


@dataclass(frozen=True, slots=True)
class Conditions:
    """How each direction of a connection is treated; a round trip is 2 x `delay_s`, bandwidth 0 is no limit.

    Raises ConfigError for a value that is negative, infinite or no number.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bandwidth_bps: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= number < math.inf for number in (self.delay_s, self.jitter_s, self.bandwidth_bps)):
            raise ConfigError(f"link conditions must be finite and not negative: {self}")


@dataclass(frozen=True, slots=True)
class Cut:
    """Reset both sides of a connection (counted from 0) once exactly `after_bytes` that way are delivered."""

    after_bytes: int
    direction: Direction
    connection: int = 0


@dataclass(frozen=True, slots=True)
class CutAt:
    """Reset every open connection `at_s` seconds after the link's start."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Stall:
    """Deliver nothing for `for_s` seconds from `at_s` on; what was under way arrives that much later."""

    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """Make a connection swallow everything, unclosed, once exactly `after_bytes` that way are delivered."""

    after_bytes: int
    direction: Direction
    connection: int = 0


@dataclass(frozen=True, slots=True)
class HalfOpenAt:
    """Make every connection open at `at_s` swallow everything, unclosed; later connections are sound."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Refuse:
    """Reset new connections at once for `for_s` seconds from `at_s` on; they do not count as connections."""

    at_s: float
    for_s: float


Event = Cut | CutAt | Stall | HalfOpen | HalfOpenAt | Refuse


@dataclass(frozen=True, slots=True)
class Schedule:
    """What goes wrong and when, fixed before the link starts."""

    events: tuple[Event, ...] = ()

    def stop(self, connection: int, direction: Direction) -> Cut | HalfOpen | None:
        """The first event that a byte count triggers on this lane."""
        stops = [
            event
            for event in self.events
            if isinstance(event, Cut | HalfOpen)
            and (event.connection, event.direction) == (connection, direction)
        ]
        return min(stops, key=lambda stop: stop.after_bytes, default=None)

    def refuses(self, at_s: float) -> bool:
        """Whether a connection that arrives `at_s` after the start is turned away."""
        return any(isinstance(e, Refuse) and e.at_s <= at_s < e.at_s + e.for_s for e in self.events)


NOTHING_PLANNED = Schedule()


def random_schedule(
    seed: int,
    duration_s: float,
    *,
    cuts: int = 3,
    stalls: int = 3,
    half_opens: int = 0,
    longest_stall_s: float = 0.5,
    furthest_byte: int = 1 << 16,
) -> Schedule:
    """Draw cuts, stalls and half-open deaths over `duration_s`; the same arguments give the same schedule.

    A death or cut comes at a time or at a byte, evenly; the k-th, if by byte, is for connection k, since a
    client that lives on reconnects after each.
    """
    rng = random.Random(seed)
    events: list[Event] = [
        Stall(rng.uniform(0, duration_s), rng.uniform(0, longest_stall_s)) for _ in range(stalls)
    ]
    ends: list[tuple[type[Cut | HalfOpen], type[CutAt | HalfOpenAt]]] = [(Cut, CutAt)] * cuts
    ends += [(HalfOpen, HalfOpenAt)] * half_opens
    rng.shuffle(ends)
    for connection, (at_byte, at_time) in enumerate(ends):
        if rng.random() < 0.5:
            events.append(at_byte(rng.randrange(furthest_byte), rng.choice(list(Direction)), connection))
        else:
            events.append(at_time(rng.uniform(0, duration_s)))
    return Schedule(tuple(events))


class Lane:
    """One direction of one connection: takes bytes with the time they came, hands them out when they are due.

    All times are seconds of one clock that the caller chooses and that never goes back.
    """

    def __init__(self, conditions: Conditions, rng: random.Random, stop: Cut | HalfOpen | None = None):
        self.conditions = conditions  # a change holds for what is offered from then on
        self.queued_bytes = 0
        self.delivered_bytes = 0
        self.swallowing = False
        self.intact = True  # nothing was swallowed
        self.corrupting = False  # the next bytes handed out are overwritten
        self._rng = rng
        self._stop = stop
        self._queue: deque[tuple[float, bytes | Mark]] = deque()  # only its head is taken: none overtakes
        self._line_free_s = 0.0  # when the last bit offered has left the sender
        self._held_until_s = 0.0

    @property
    def full(self) -> bool:
        """Whether the sender must wait."""
        return self.queued_bytes >= QUEUE_LIMIT_BYTES

    @property
    def due_s(self) -> float | None:
        """When `take` next has something, None if it waits for `offer`."""
        return self._queue[0][0] if self._queue else None

    def offer(self, now_s: float, data: bytes) -> None:
        """Take in bytes that came from the sender; one jitter is drawn for all of them."""
        if self.swallowing:
            self.intact = False
            return
        bps = self.conditions.bandwidth_bps
        travel_s = self.conditions.delay_s + self._rng.uniform(0, self.conditions.jitter_s)
        size_bytes = max(SEGMENT_BYTES, int(bps / 8 * SEGMENT_S)) if bps else max(1, len(data))
        self._line_free_s = max(self._line_free_s, now_s)
        for start in range(0, len(data), size_bytes):
            piece = data[start : start + size_bytes]
            self._line_free_s += len(piece) * 8 / bps if bps else 0.0
            self._queue.append((self._line_free_s + travel_s, piece))
        self.queued_bytes += len(data)

    def end(self, now_s: float, mark: Mark) -> None:
        """Take in the sender's end, to be handed out behind its bytes."""
        if self.swallowing:
            self.intact = False
        else:
            self._queue.append((max(self._line_free_s, now_s) + self.conditions.delay_s, mark))

    def take(self, now_s: float) -> bytes | Mark | None:
        """Hand out the next thing that is due by now; bytes end exactly where the stop is."""
        if self._stop is not None and self.delivered_bytes >= self._stop.after_bytes:
            mark = Mark.CUT if isinstance(self._stop, Cut) else Mark.DIE
            self._stop = None
            return mark
        if not self._queue or self._queue[0][0] > now_s:
            return None
        due_s, item = self._queue.popleft()
        if isinstance(item, Mark):
            return item
        if self._stop is not None:
            room_bytes = self._stop.after_bytes - self.delivered_bytes
            if len(item) > room_bytes:
                self._queue.appendleft((due_s, item[room_bytes:]))
                item = item[:room_bytes]
        self.delivered_bytes += len(item)
        self.queued_bytes -= len(item)
        if self.corrupting:
            self.corrupting = False
            return b"\xff" * len(item)
        return item

    def hold(self, now_s: float, until_s: float) -> None:
        """Stop the lane's time until `until_s`: all that is under way is due that much later."""
        begin_s = max(now_s, self._held_until_s)
        if until_s <= begin_s:
            return
        shift_s = until_s - begin_s
        self._held_until_s = until_s
        self._queue = deque((max(due_s, begin_s) + shift_s, item) for due_s, item in self._queue)
        self._line_free_s = max(self._line_free_s, begin_s) + shift_s

    def swallow(self) -> None:
        """Lose what is queued and what is offered from now on, until `swallowing` is unset."""
        self.intact = self.intact and not self._queue
        self.swallowing = True
        self._queue.clear()
        self.queued_bytes = 0
