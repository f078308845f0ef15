"""A TCP connection in virtual time: both ends' real state machines and the bytes between them.

Nothing arrives by itself: whoever tests says how many bytes do, and what is lost.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ecd.errors import Code
from ecd.wire.connection import Closed, Connection, Event, State
from ecd.wire.link import PriorityQueue


@dataclass(slots=True)
class End:
    """One end of a wire; `inbox` is on its way to it, `ended` when nothing will follow that.

    `closed` once its owner was told of the end.
    """

    connection: Connection
    on_event: Callable[["Wire", Event], None]
    queue: PriorityQueue = field(default_factory=PriorityQueue)
    inbox: bytearray = field(default_factory=bytearray)
    ended: bool = False
    closed: bool = False
    gone: bool = False


class Wire:
    """One TCP connection. `swallows`: it is half-open; `tampered`: somebody else wrote into it."""

    def __init__(self, edge: End, cloud: End) -> None:
        self.edge, self.cloud = edge, cloud
        self.swallows = self.tampered = False

    def other(self, end: End) -> End:
        return self.cloud if end is self.edge else self.edge

    def flush(self, end: End) -> None:
        """What an end has to say goes on its way, in the order of its priorities."""
        for frame in end.connection.output():
            end.queue.push(frame)
        while end.queue.size_bytes:
            data = end.queue.pop(1 << 10)
            if not (end.gone or self.swallows):
                self.other(end).inbox += data
        if end.connection.state is State.CLOSED:
            self._leave(end)

    def deliver(self, end: End, count: int, now: float) -> bool:
        """The next bytes arrive at an end, cut anywhere; whether anything happened."""
        self.flush(self.other(end))
        data = bytes(end.inbox[:count])
        del end.inbox[:count]
        ends = end.ended and not end.inbox and not end.gone
        if end.gone or not (data or ends):
            return False
        if data:
            self.tell(end, end.connection.receive(data, now))
        if ends:
            self.lose(end)
        return True

    def lose(self, end: End) -> None:
        """An end finds out that its transport is gone."""
        if not end.gone:
            self.tell(end, end.connection.lost("the transport was lost"))
            self._leave(end)

    def tell(self, end: End, events: Iterable[Event]) -> None:
        """Events go to whoever this end belongs to.

        As from `Link`, none follows the end, which may have come from the handler of an earlier event.
        """
        for event in events:
            if end.closed:
                break
            if isinstance(event, Closed):
                end.closed = True
                assert self.tampered or event.code is not Code.PROTOCOL, event.message
            end.on_event(self, event)

    def cut(self) -> None:
        """What is under way is lost; the ends find out later."""
        for end in (self.edge, self.cloud):
            self.flush(end)
            end.inbox.clear()
            end.ended = True

    def _leave(self, end: End) -> None:
        end.gone = True
        if not self.swallows:
            self.other(end).ended = True

    @property
    def over(self) -> bool:
        return self.edge.gone and self.cloud.gone
