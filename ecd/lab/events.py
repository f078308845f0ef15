"""The server-sent events with which an HTTP server on loopback answers a POST: a connection for each.

Owns as much of HTTP as that takes. Next to no work of its own, so that what is measured is the server.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from ecd.errors import DaemonError

EVENT = b"data: {"


async def events_of(
    server: str, port: int, path: str, body: Mapping[str, Any]
) -> AsyncGenerator[dict[str, Any]]:
    """The JSON events in answer to `body`; ending the iteration early closes the connection.

    Raises DaemonError with what the server says, which is named `server`, when that is a refusal or an error
    among the events; OSError or EOFError when it breaks off.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        status = await reader.readline()
        while (await reader.readline()).strip():
            pass
        if b" 200 " not in status:
            said = (await reader.read()).decode(errors="replace")
            raise DaemonError(f"{server} refuses the request: {status.decode().strip()}: {said}")
        async with aclosing(_lines(reader)) as lines:
            async for line in lines:
                if line.startswith(EVENT):
                    event = json.loads(line.removeprefix(b"data: "))
                    if "error" in event:
                        raise DaemonError(f"{server} could not answer: {event['error']}")
                    yield event
    finally:
        writer.close()


async def _lines(reader: asyncio.StreamReader) -> AsyncGenerator[bytes]:
    """Lines of a body that comes in chunks (RFC 9112, section 7.1), wherever the chunks are cut."""
    rest = b""
    while size := int(await reader.readuntil(), 16):
        *lines, rest = (rest + await reader.readexactly(size)).split(b"\n")
        await reader.readuntil()
        for line in lines:
            yield line
