"""One answer from its start to its end, for whoever asked: the control socket and the HTTP gateway alike.

Owns that an answer nobody waits for any more is cancelled, here and in the cloud. Knows no clients.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator

from ecd.edge.answer import Answer, Chunk
from ecd.edge.request import Request
from ecd.edge.service import EdgeService
from ecd.errors import EcdError
from ecd.wire.messages import Finish


@contextlib.contextmanager
def answering(service: EdgeService, request: Request) -> Iterator[Answer]:
    """A running answer; one that is not complete when the context ends is cancelled.

    Raises what `EdgeService.start` does.
    """
    answer = service.start(request)
    try:
        yield answer
    finally:
        if answer.id in service.answers:
            service.cancel(answer.id)


async def arrivals(answer: Answer) -> AsyncIterator[Chunk | Finish]:
    """What comes of an answer: chunks, and at last why it ended. Raises the EcdError that it failed with."""
    while True:
        arrival = await answer.chunks.get()
        if isinstance(arrival, EcdError):
            raise arrival
        yield arrival
        if isinstance(arrival, Finish):
            return
