"""The HTTP server's own bounds, whatever it serves."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

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


async def is_closed(connection: Connection) -> bool:
    reader, writer = connection
    async with asyncio.timeout(10):
        # One that was reset looks otherwise than one that ended.
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    return True


@pytest.mark.parametrize("sent", [b"", REQUEST[:-2]])
async def test_who_asks_for_nothing_is_not_waited_for(
    port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("ecd.http_server.HEAD_S", 0.05)
    assert await is_closed(await connected(port, sent))


@pytest.mark.parametrize("asked", [1, 2])
@pytest.mark.parametrize("together", [False, True])
async def test_nor_is_the_rest_of_a_head_behind_an_answer(
    port: int, monkeypatch: pytest.MonkeyPatch, asked: int, together: bool
) -> None:
    """Whether its part comes with the requests before or behind their answers."""
    monkeypatch.setattr("ecd.http_server.HEAD_S", 0.5)
    part = REQUEST[:-2]
    reader, writer = await connected(port, REQUEST * asked + (part if together else b""))
    for _ in range(asked):
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    if not together:
        writer.write(part)
    assert await is_closed((reader, writer))


async def test_who_has_asked_may_be_answered_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecd.http_server.HEAD_S", 0.5)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.6)
        await PlainTextResponse("ok")(scope, receive, send)

    async with http_server(slow, "127.0.0.1:0") as (url,):
        reader, writer = await connected(int(url.rpartition(":")[2]), REQUEST * 2)
        for _ in range(2):
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()


CHUNKED = b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(("wait", "status"), [(False, b"400"), (True, b"200")])
async def test_a_body_that_is_not_http_ends_its_connection_and_no_log_has_a_traceback(
    port: int, caplog: pytest.LogCaptureFixture, wait: bool, status: bytes
) -> None:
    """Before the answer, and behind it."""
    reader, writer = await connected(port, CHUNKED)
    answer = await reader.readuntil(b"ok") if wait else b""
    writer.write(b"no chunk\r\n")
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            answer += await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.count(b"HTTP/1.1") == 1
    assert await is_answered(await connected(port))
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


async def test_what_is_not_http_behind_an_answer_is_told_so(port: int) -> None:
    reader, writer = await connected(port, REQUEST)
    await reader.readuntil(b"ok")
    writer.write(b"no request\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 400")
    writer.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as somebody else")
async def test_at_a_unix_socket_another_user_is_refused_though_the_mode_lets_it_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Not in a folder of the test's, which other users cannot enter.
    path = Path(f"/tmp/ecd-http-{os.getpid()}.sock")

    async def asked(user: int) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            # The kernel notes who it is when it connects.
            os.seteuid(user)
            try:
                sock.connect(str(path))
            finally:
                os.seteuid(0)
            sock.setblocking(False)
            loop, answer = asyncio.get_running_loop(), b""
            await loop.sock_sendall(sock, REQUEST[:-2] + b"connection: close\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                while data := await loop.sock_recv(sock, 1 << 16):
                    answer += data
            return answer

    async with asyncio.timeout(20), http_server(PlainTextResponse("ok"), None, path):
        path.chmod(0o666)
        refused = await asked(54321)
        assert refused.startswith(b"HTTP/1.1 403")
        assert b"uid 54321 may not use this daemon" in refused
        assert refused.count(b"HTTP/1.1") == 1
        assert (await asked(0)).endswith(b"ok")
    assert "closed an HTTP connection: uid 54321" in caplog.text
    assert "Traceback" not in caplog.text
