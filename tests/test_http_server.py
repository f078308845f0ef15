"""The HTTP server's own bounds, whatever it serves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from starlette.responses import PlainTextResponse

from ecd.http_server import http_server

REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with http_server(PlainTextResponse("ok"), "127.0.0.1:0") as (url,):
        yield int(url.rpartition(":")[2])


async def connected(port: int, sent: bytes = b"") -> Connection:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    return reader, writer


async def is_answered(connection: Connection) -> bool:
    """Whether a request is answered there, or the connection is closed."""
    reader, writer = connection
    try:
        writer.write(REQUEST)
        async with asyncio.timeout(10):
            return (await reader.readline()).startswith(b"HTTP/1.1 200")
    except ConnectionError:
        return False
    finally:
        writer.close()


async def test_more_connections_than_there_may_be_are_closed(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecd.http_server.MAX_CONNECTIONS", 2)
    first, second, third = [await connected(port) for _ in range(3)]
    assert not await is_answered(third)
    assert await is_answered(first)
    assert await is_answered(second)
    async with asyncio.timeout(10):
        while not await is_answered(await connected(port)):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("sent", [b"", REQUEST[:-2]])
async def test_who_asks_for_nothing_is_not_waited_for(
    port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("ecd.http_server.HEAD_S", 0.05)
    reader, writer = await connected(port, sent)
    async with asyncio.timeout(10):
        # An aborted connection looks like one that ended, or like one that was reset.
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()


async def test_who_has_asked_may_take_longer(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecd.http_server.HEAD_S", 0.05)
    reader, writer = await connected(port, REQUEST)
    assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    await asyncio.sleep(0.1)
    assert await is_answered((reader, writer))
