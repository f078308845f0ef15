"""Clients that go away at any point: whatever they began is over, and nobody's log tells of it."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from tests.edge.gateway.instant_cloud import InstantCloud, serving

BODY = b'{"prompt":"p","n":2,"stream":true}'
HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n" % len(BODY)
)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def asked(url: str, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("leave", [asyncio.StreamWriter.close, lambda writer: writer.transport.abort()])
async def test_a_client_may_leave_at_any_byte_of_its_request(
    leave: Callable[[asyncio.StreamWriter], None], caplog: pytest.LogCaptureFixture
) -> None:
    cloud = InstantCloud(text=None)
    request = HEAD + BODY
    async with serving(cloud) as url:
        tasks = len(asyncio.all_tasks())
        for cut in (0, 1, len(HEAD) - 1, len(HEAD), len(HEAD) + 1, len(request) - 1):
            _, writer = await asked(url, request[:cut])
            if cut >= len(HEAD):
                await until(lambda: len(asyncio.all_tasks()) > tasks)
            leave(writer)
            await until(lambda: len(asyncio.all_tasks()) == tasks)
    assert not cloud.opened
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("leave", [asyncio.StreamWriter.close, lambda writer: writer.transport.abort()])
@pytest.mark.parametrize("tokens", [0, 1, 3])
async def test_a_client_may_leave_behind_any_event(
    leave: Callable[[asyncio.StreamWriter], None], tokens: int, caplog: pytest.LogCaptureFixture
) -> None:
    cloud = InstantCloud(text=None)
    async with serving(cloud) as url:
        tasks = len(asyncio.all_tasks())
        reader, writer = await asked(url, HEAD + BODY)
        await until(lambda: len(cloud.opened) == 2)
        for _ in range(tokens):
            cloud.say(b"h")
            await reader.readuntil(b"\n\n")
        leave(writer)
        await until(lambda: not cloud.service.answers and len(asyncio.all_tasks()) == tasks)
    assert sorted(cloud.cancelled) == [1, 2]
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_a_client_that_leaves_another_request_behind_in_the_pipe_gets_none_of_it() -> None:
    cloud = InstantCloud(text=None)
    async with serving(cloud) as url:
        _, writer = await asked(url, (HEAD + BODY) * 2)
        await until(lambda: len(cloud.opened) == 2)
        writer.transport.abort()
        await until(lambda: not cloud.service.answers)
    assert sorted(cloud.cancelled) == [1, 2]
    assert len(cloud.opened) == 2
