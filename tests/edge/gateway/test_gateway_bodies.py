"""Bodies: large ones, during which others are answered, and those that are not read."""

import threading
from typing import Any

import httpx
import pytest

from ecd.edge.gateway.bodies import LARGE_BODY_BYTES, done_with
from tests.edge.gateway.instant_cloud import ByteModel, InstantCloud, raw, serving

LARGE = "x" * (LARGE_BODY_BYTES + 1)
PATIENCE_S = 10


@pytest.mark.parametrize(
    ("path", "asked", "method"),
    [
        ("/v1/completions", {"prompt": LARGE}, "tokenize"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LARGE}]}, "tokenize"),
        ("/tokenize", {"prompt": LARGE}, "tokenize"),
        ("/detokenize", {"tokens": [65] * LARGE_BODY_BYTES}, "piece"),
    ],
)
async def test_others_are_answered_while_a_large_one_is_worked_on(
    path: str, asked: dict[str, Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    usual = getattr(ByteModel, method)

    def slow(self: ByteModel, *args: Any, **kwargs: Any) -> Any:
        begun.set()
        assert may_end.wait(PATIENCE_S)
        return usual(self, *args, **kwargs)

    async with serving(InstantCloud()) as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        monkeypatch.setattr(ByteModel, method, slow)
        answered: list[int] = []

        def other() -> None:
            begun.wait(PATIENCE_S)
            answered.append(httpx.get(f"{url}/health", timeout=PATIENCE_S).status_code)
            may_end.set()

        thread = threading.Thread(target=other)
        thread.start()
        reply = await client.post(path, json=asked)
        thread.join()
    assert answered == [200]
    # The texts are too long for the context, and then that is what is said.
    assert reply.status_code == (200 if "tokenize" in path else 400)


async def test_small_ones_are_not_sent_to_a_thread() -> None:
    assert await done_with(LARGE_BODY_BYTES, threading.get_ident) == threading.get_ident()
    assert await done_with(LARGE_BODY_BYTES + 1, threading.get_ident) != threading.get_ident()


def posted(head: str, body: bytes = b"") -> bytes:
    """A request for a completion; `head` are more headers."""
    usual = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{usual}{head}\r\n".encode() + body


BODY = b'{"prompt":"p"}'


async def test_a_body_in_chunks_is_a_body() -> None:
    chunks = b"5\r\n" + BODY[:5] + b"\r\n9;x=y\r\n" + BODY[5:] + b"\r\n0\r\nx-more: y\r\n\r\n"
    async with serving(InstantCloud()) as url:
        answer = await raw(url, posted("transfer-encoding: chunked\r\nconnection: close\r\n", chunks))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"text":"hi"' in answer


CHUNK = b"e\r\n" + BODY + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "body", "status", "words"),
    [
        ("content-length: 99999999999\r\nexpect: 100-continue\r\n", b"", 413, b"longer than"),
        (f"content-length: {len(BODY)}\r\ntransfer-encoding: chunked\r\n", CHUNK, 400, b"either content"),
        (f"content-length: {len(BODY)}\r\ncontent-length: 5\r\n", BODY, 400, b"Invalid HTTP"),
        ("transfer-encoding: gzip, chunked\r\n", CHUNK, 400, b"Invalid HTTP"),
    ],
)
async def test_where_a_body_ends_in_doubt_nothing_behind_it_is_a_request(
    head: str, body: bytes, status: int, words: bytes
) -> None:
    cloud = InstantCloud()
    async with serving(cloud) as url:
        answer = await raw(url, posted(head, body + posted(f"content-length: {len(BODY)}\r\n", BODY)))
    assert answer.startswith(f"HTTP/1.1 {status}".encode())
    assert words in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not cloud.opened


async def test_a_compressed_body_is_not_taken_for_what_it_is_not() -> None:
    async with serving(InstantCloud()) as url, httpx.AsyncClient(base_url=url) as client:
        for encoding, status in [("gzip", 415), ("identity", 200), ("identity, br", 415)]:
            headers = {"content-encoding": encoding, "content-type": "application/json"}
            reply = await client.post("/v1/completions", content=BODY, headers=headers)
            assert reply.status_code == status, encoding


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecd.edge.gateway.bodies.BODY_S", 0.05)
    async with serving(InstantCloud()) as url:
        answer = await raw(url, posted("content-length: 14\r\n", BODY[:5]))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not come within 0.05 s" in answer
