"""Server-sent events from a real socket; what comes of broken ones is in test_servers.py."""

import asyncio
from contextlib import aclosing

import pytest

from ecd.errors import DaemonError
from ecd.lab.events import events_of

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def test_who_reads_no_further_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + chunk(b': a comment\n\ndata: {"n": 1}\n\n') + chunk(b'data: {"n": 2}\n\n'))
        while await reader.read(100):
            pass
        gone.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with aclosing(events_of("it", port, "/", {})) as events:
            assert await anext(events) == {"n": 1}
            assert not gone.is_set()
        async with asyncio.timeout(10):
            await gone.wait()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            b'HTTP/1.1 429 Too Many\r\n\r\n{"error": 1}',
            r'it refuses the request: HTTP/1.1 429 Too Many: \{"error": 1\}',
        ),
        (HEAD + chunk(b'data: {"error": "no"}\n\n'), "it could not answer: no"),
    ],
)
async def test_refusals_and_errors_are_told(answer: bytes, said: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        with pytest.raises(DaemonError, match=said):
            async for _ in events_of("it", server.sockets[0].getsockname()[1], "/", {}):
                pass
