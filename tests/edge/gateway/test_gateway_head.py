"""Heads of requests: hosts that are not meant for this server, lengths, and what breaks off in a body."""

import asyncio
import json
import logging
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response
from starlette.types import Message

from ecd.config import Http
from ecd.edge.gateway.head import MAX_HEAD_BYTES, HeadCheck, host_of, hosts_to_name
from ecd.http_server import PARSED_HEAD_BYTES
from tests.edge.gateway.instant_cloud import InstantCloud, raw, serving


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost", "localhost"),
        ("LocalHost:8082", "localhost"),
        ("127.0.0.1:8082", "127.0.0.1"),
        ("[::1]:8082", "::1"),
        ("[::1]", "::1"),
        ("edge.example", "edge.example"),
        ("127.0.0.1:", "127.0.0.1"),
        ("[::1]:", "::1"),
        ("localhost.", "localhost"),
        ("localhost.:8082", "localhost"),
        ("localhost..", "localhost."),
        ("12345", "12345"),
        (":8082", ""),
        ("", ""),
    ],
)
def test_the_host_of_a_header(header: str, host: str) -> None:
    assert host_of(header) == host


def test_any_host_may_be_named_where_keys_are_required() -> None:
    assert hosts_to_name(Http(listen="0.0.0.0:0", api_keys=["k"])) is None
    assert hosts_to_name(Http(listen=None, socket=Path("s"))) is None
    assert hosts_to_name(Http()) == frozenset()
    assert hosts_to_name(Http(listen="[::1]:1", allowed_hosts=["Edge.Example.", "[::2]"])) == {
        "edge.example",
        "::2",
    }


async def test_on_loopback_a_page_whose_name_was_made_to_point_here_gets_nothing() -> None:
    cloud = InstantCloud()
    async with (
        serving(cloud, allowed_hosts=["edge.example"]) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        for host in (
            "localhost",
            "localhost:8082",
            "127.0.0.1",
            "[::1]:99",
            "edge.example",
            "EDGE.example:1",
        ):
            reply = await client.get("/v1/models", headers={"host": host})
            assert reply.status_code == 200, host
        for host in (
            "evil.example",
            "evil.example:8082",
            "localhost.evil.example",
            "edge.example.evil",
            "x@localhost",
        ):
            reply = await client.get("/v1/models", headers={"host": host})
            assert (reply.status_code, reply.json()["error"]["code"]) == (421, "wrong_host"), host
        reply = await client.post("/v1/completions", json={"prompt": "p"}, headers={"host": "evil.example"})
        assert reply.status_code == 421
        assert "http.allowed_hosts" in reply.json()["error"]["message"]
    assert not cloud.opened


async def test_a_unix_socket_has_no_name_that_could_be_wrong(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with (
        serving(InstantCloud(), socket=path),
        httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client,
    ):
        assert (await client.get("http://whatever/v1/models")).status_code == 200


@pytest.mark.parametrize(
    ("server", "status"), [(("127.0.0.1", 1), 421), (("/run/http.sock", None), 200), (None, 200)]
)
@pytest.mark.parametrize("headers", [[], [(b"host", b"whatever")]])
async def test_a_wrong_host_or_none_matters_where_browsers_can_reach(
    server: tuple[str, int | None] | None, status: int, headers: list[tuple[bytes, bytes]]
) -> None:
    """HTTP/1.0 allows none. uvicorn tells of a Unix socket its path without a port, or nothing at all."""
    statuses = []

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "server": server, "headers": headers, "raw_path": b"/", "query_string": b""}
    await HeadCheck(Response(), hosts=())(scope, None, send)  # type: ignore[arg-type]
    assert statuses[0] == status


async def test_heads_that_are_too_long_are_refused_before_anything_else() -> None:
    async with serving(InstantCloud(), api_keys=["k"]) as url, httpx.AsyncClient(base_url=url) as client:
        for request in (
            client.build_request("GET", "/health", headers={"x-long": "x" * MAX_HEAD_BYTES}),
            client.build_request("GET", "/health", params={"long": "x" * MAX_HEAD_BYTES}),
        ):
            reply = await client.send(request)
            assert reply.status_code == 431
            assert reply.json()["error"]["message"] == f"the headers are longer than {MAX_HEAD_BYTES} bytes"


async def test_a_head_without_an_end_is_not_read_on_and_on() -> None:
    async with serving(InstantCloud()) as url:
        answer = await raw(
            url, b"GET / HTTP/1.1\r\nhost: localhost\r\nx: ".ljust(PARSED_HEAD_BYTES + 1, b"x")
        )
    assert answer.startswith(b"HTTP/1.1 400")


async def test_a_body_that_breaks_off_is_no_failure_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps({"prompt": "p"}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    cloud = InstantCloud()
    with caplog.at_level(logging.WARNING):
        async with serving(cloud) as url, httpx.AsyncClient(base_url=url) as client:
            host, _, port = url.removeprefix("http://").rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(head + f"content-length: {len(body) + 1}\r\n\r\n".encode() + body)
            await writer.drain()
            writer.close()
            async with asyncio.timeout(10):
                while 'path="/v1/completions",status="400"' not in (await client.get("/metrics")).text:
                    await asyncio.sleep(0.01)
    assert not caplog.records
    assert not cloud.opened
