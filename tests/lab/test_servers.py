"""Servers asked by many: vLLM's command line and its stream. A small HTTP server stands in for it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ecd.errors import DaemonError
from ecd.lab.contenders import Question
from ecd.lab.servers import EcdServer, VllmServer, engine_flags, running_vllm, tokens_of

QUESTION = Question("code", "a prompt", (10, 20, 30))
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def said(*tokens: int) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "token_ids": tokens}]}).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@asynccontextmanager
async def answering(*pieces: bytes) -> AsyncIterator[tuple[VllmServer, list[dict[str, Any]]]]:
    """A server that answers everything with the same bytes, and what it was asked."""
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
        asked.append(json.loads(await reader.readexactly(length)))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield VllmServer(server.sockets[0].getsockname()[1]), asked


async def test_a_stream_is_read_wherever_its_chunks_are_cut() -> None:
    events = said(11) + said(12, 13) + said() + b"data: [DONE]\n\n"
    pieces = (CHUNKED, chunk(events[:20]), chunk(events[20:]), b"0\r\n\r\n")
    async with answering(*pieces) as (server, asked):
        reply = await server.answer(QUESTION, 4)
    assert reply.ids == (11, 12, 13)
    assert reply.reception.tokens == [1, 2]
    assert 0 < reply.reception.at_s[0] <= reply.reception.at_s[1]
    assert asked[0]["prompt"] == [10, 20, 30]
    assert (asked[0]["max_tokens"], asked[0]["temperature"], asked[0]["stream"]) == (4, 0, True)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ((b"HTTP/1.1 400 Bad Request\r\n\r\nno such model",), "400 Bad Request: no such model"),
        ((CHUNKED, chunk(said(11))), "broke off an answer"),
        ((CHUNKED, b"ff\r\ndata: "), "broke off an answer"),
        ((CHUNKED, chunk(b'data: {"error": {"message": "lost"}}\n\n')), "could not answer.*lost"),
    ],
)
async def test_what_goes_wrong_is_told(pieces: tuple[bytes, ...], message: str) -> None:
    async with answering(*pieces) as (server, _):
        with pytest.raises(DaemonError, match=message):
            await server.answer(QUESTION, 4)


async def test_a_server_that_is_gone_is_told_too() -> None:
    async with answering() as (server, _):
        pass
    with pytest.raises(DaemonError, match="broke off an answer"):
        await server.answer(QUESTION, 4)


def test_tokens_of_an_event() -> None:
    assert tokens_of({"choices": [{"token_ids": [1, 2]}]}) == [1, 2]
    assert tokens_of({"choices": [{"token_ids": None}]}) == []
    assert tokens_of({"choices": []}) == []


def test_engine_arguments_become_flags() -> None:
    given = {
        "dtype": "float32",
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "max_model_len": 512,
        "hf_overrides": {"a": 1},
    }
    assert engine_flags(given) == [
        *("--dtype", "float32"),
        "--enforce-eager",
        "--no-enable-prefix-caching",
        *("--max-model-len", "512"),
        *("--hf-overrides", '{"a": 1}'),
    ]


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/echo")
    with (
        pytest.raises(DaemonError, match=r"vllm-server did not start: .*--model here .* --dtype half"),
        running_vllm(tmp_path, "here", {"dtype": "half"}),
    ):
        pass


class FakeClient:
    """What an edge answers, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def call(self, verb: str, **args: Any) -> dict[str, Any]:
        self.asked.append(args)
        return {"prompt_token_ids": [10, 20], "token_ids": [1]}

    async def stream(self, prompt: str, **args: Any) -> AsyncIterator[dict[str, Any]]:
        self.asked.append({"prompt": prompt, **args})
        yield {"event": "started", "id": 1}
        yield {"event": "text", "text": "ab", "ids": [1, 2]}
        yield {"event": "done", "token_ids": [1, 2, 0]}


async def test_an_edge_is_asked_in_words_with_and_without_drafts() -> None:
    client: Any = FakeClient()
    off, on = EcdServer(client, drafts=False), EcdServer(client, drafts=True)
    assert (off.name, on.name) == ("ecd, drafts off", "ecd, drafts on")
    question = await off.question("chat", "hello")
    assert question == Question("chat", "hello", (10, 20))
    reply = await on.answer(question, 5)
    assert (reply.ids, reply.reception.tokens) == ((1, 2, 0), [2])
    assert client.asked == [
        {"prompt": "hello", "max_tokens": 1, "draft": False},
        {"prompt": "hello", "max_tokens": 5, "draft": True},
    ]
