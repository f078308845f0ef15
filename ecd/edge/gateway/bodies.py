"""Bodies of requests: how long they may be, how they are read, and where large ones are worked on.

Owns that no body makes the edge hold much memory, or all answers stand still.
"""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from ecd.edge.gateway.errors import Refused
from ecd.edge.gateway.schema import parsed

MAX_BODY_BYTES = 8 << 20
# For all of it, which is time for the longest on a link of 3 Mbit/s.
BODY_S = 30.0
# A tokenizer takes about 5 ms for so much text, and 3 to 13 s for the most that there may be.
LARGE_BODY_BYTES = 8 << 10

B = TypeVar("B", bound=BaseModel)
P = ParamSpec("P")
T = TypeVar("T")


async def read_body(http: Request, kind: type[B]) -> tuple[B, int]:
    """The JSON body, and its length in bytes.

    Raises Refused, also for the content types that any page on the web may have a browser send here.
    """
    given = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != "application/json":
        raise Refused(f"content-type must be application/json, not {given!r:.80}", status=415)
    encoding = http.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Refused(
            f"content-encoding {encoding!r:.80} is not supported; send the body as it is", status=415
        )
    try:
        async with asyncio.timeout(BODY_S):
            body = await _whole(http)
    except TimeoutError:
        raise Refused(f"the body did not come within {BODY_S:g} s", status=408) from None
    return parsed(kind, body), len(body)


async def _whole(http: Request) -> bytes:
    too_long = Refused(f"the body is longer than {MAX_BODY_BYTES} bytes", status=413)
    # One that says its length is refused before any of it is read.
    if int(http.headers.get("content-length", "0")) > MAX_BODY_BYTES:
        raise too_long
    body = bytearray()
    async for piece in http.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise too_long
    return bytes(body)


async def done_with(size: int, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the job makes of a body of so many bytes; of a large one in a thread."""
    if size <= LARGE_BODY_BYTES:
        return job(*args, **kwargs)
    return await asyncio.to_thread(job, *args, **kwargs)
