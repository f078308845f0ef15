"""The HTTP API over real sockets, on an edge whose cloud is the test."""

import asyncio
import json
import re
import statistics
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ecd.config import Http
from ecd.errors import Code, DaemonError
from ecd.http_server import http_server
from ecd.wire.messages import Finish
from tests.edge.gateway.instant_cloud import END, ByteModel, InstantCloud, serving
from tests.edge.one_cloud import connect

CHAT = {"messages": [{"role": "user", "content": "x"}]}
CHAT_PATH, COMPLETIONS_PATH = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
async def cloud() -> InstantCloud:
    return InstantCloud()


@pytest.fixture
async def client(cloud: InstantCloud) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(cloud) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def events(body: str) -> list[dict[str, Any]]:
    """The payloads of a stream that ended as it should."""
    *datas, last, rest = body.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(data.removeprefix("data: ")) for data in datas]


async def test_a_chat_is_rendered_answered_and_counted(
    client: httpx.AsyncClient, cloud: InstantCloud
) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    reply = await client.post(CHAT_PATH, json={"messages": messages, "model": "bytes", "seed": 7})
    assert reply.status_code == 200
    (opened,) = cloud.opened
    assert bytes(opened.prompt) == b"system:be brief;user:ab;"
    assert opened.sampling == {"rule": "coupled", "seed": 7, "temperature": 1.0}
    assert opened.max_tokens == 4096 - len(opened.prompt)
    body = reply.json()
    assert body["id"].startswith("chatcmpl-")
    assert (body["object"], body["model"]) == ("chat.completion", "bytes")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {"prompt_tokens": 24, "completion_tokens": 3, "total_tokens": 27}
    assert body["ecd"]["ids"] == [*b"hi", END]
    assert body["ecd"]["origins"] == ["target"] * 3
    assert (body["ecd"]["acceptance_rate"], body["ecd"]["forwards_per_token"]) == (0.0, 1.0)


async def test_a_stream_has_every_token_and_its_origin(client: httpx.AsyncClient) -> None:
    asked = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    reply = await client.post(CHAT_PATH, json=asked)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *pieces, last, usage = events(reply.text)
    assert [piece["choices"][0]["delta"] for piece in pieces] == [
        {"role": "assistant", "content": "h"},
        {"content": "i"},
        {"content": ""},
    ]
    assert [piece["ecd"]["ids"] for piece in pieces] == [[ord("h")], [ord("i")], [END]]
    assert all(piece["ecd"]["origins"] == ["target"] and piece["usage"] is None for piece in pieces)
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert last["ecd"]["origin_counts"] == {"target": 3}
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 3)
    # Whichever chunk is the last one tells what the answer took.
    assert usage["ecd"]["origin_counts"] == {"target": 3}
    assert len({event["id"] for event in (*pieces, last, usage)}) == 1


async def test_a_timeline_comes_with_the_chunks_when_it_is_asked_for(client: httpx.AsyncClient) -> None:
    reply = await client.post(CHAT_PATH, json=CHAT | {"stream": True, "ecd": {"timeline": True}})
    first, *_ = events(reply.text)
    assert {"committed", "tokens-arrived"} <= {each["kind"] for each in first["ecd"]["timeline"]}
    assert first["ecd"]["live"]["target_forwards"] >= 1


async def test_choices_of_several_prompts_are_numbered_and_echoed(
    client: httpx.AsyncClient, cloud: InstantCloud
) -> None:
    asked = {"prompt": [[65, 66], [67]], "n": 2, "seed": -1, "echo": True, "best_of": 2}
    body = (await client.post(COMPLETIONS_PATH, json=asked)).json()
    assert [(c["index"], c["text"]) for c in body["choices"]] == [
        (0, "ABhi"),
        (1, "ABhi"),
        (2, "Chi"),
        (3, "Chi"),
    ]
    assert [opened.sampling.get("seed", 0) for opened in cloud.opened] == [(1 << 64) - 1, 0] * 2
    # A prompt counts once, however many answers it has.
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}


async def test_streamed_choices_of_one_request_run_at_once(
    client: httpx.AsyncClient, cloud: InstantCloud
) -> None:
    reply = await client.post(COMPLETIONS_PATH, json={"prompt": "p", "n": 3, "stream": True})
    told: dict[int, str] = {}
    for event in events(reply.text):
        (choice,) = event["choices"]
        told[choice["index"]] = told.get(choice["index"], "") + choice["text"]
    assert told == {0: "hi", 1: "hi", 2: "hi"}
    assert len(cloud.opened) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_in_both_shapes(client: httpx.AsyncClient, stream: bool) -> None:
    chat = await client.post(CHAT_PATH, json=CHAT | {"logprobs": True, "top_logprobs": 2, "stream": stream})
    plain = await client.post(COMPLETIONS_PATH, json={"prompt": "p", "logprobs": 2, "stream": stream})
    if stream:
        entries = [
            entry for event in events(chat.text)[:-1] for entry in event["choices"][0]["logprobs"]["content"]
        ]
        parts = [event["choices"][0]["logprobs"] for event in events(plain.text)[:-1]]
        told = {name: [each for part in parts for each in part[name]] for name in parts[0]}
    else:
        entries = chat.json()["choices"][0]["logprobs"]["content"]
        told = plain.json()["choices"][0]["logprobs"]
    assert [entry["token"] for entry in entries] == ["h", "i", "<end>"] == told["tokens"]
    assert entries[0]["bytes"] == [ord("h")]
    assert [each["token"] for each in entries[0]["top_logprobs"]] == ["h", "A"]
    assert told["token_logprobs"] == [-0.5] * 3
    assert told["top_logprobs"][1] == {"i": -0.5, "A": -1.5}
    assert told["text_offset"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("prompt", "room"), [(1000, 3096), (2048, 2048), (2049, 32768 - 2049), (5000, 27768)]
)
async def test_an_answer_may_fill_what_can_be_drafted_unless_that_is_little(
    client: httpx.AsyncClient, cloud: InstantCloud, prompt: int, room: int
) -> None:
    connect(cloud.service.uplinks, cloud.uplink, cloud, max_context=32768)
    messages = [{"role": "user", "content": "x" * (prompt - len("user:;"))}]
    assert (await client.post(CHAT_PATH, json={"messages": messages})).status_code == 200
    assert (len(cloud.opened[0].prompt), cloud.opened[0].max_tokens) == (prompt, room)


async def test_ignore_eos_makes_the_ends_of_text_impossible(
    client: httpx.AsyncClient, cloud: InstantCloud
) -> None:
    cloud.service.cloud_ends = frozenset({200})
    asked = {"prompt": "p", "ignore_eos": True, "logit_bias": {"65": 3}, "top_k": -1}
    assert (await client.post(COMPLETIONS_PATH, json=asked)).status_code == 200
    assert cloud.opened[0].sampling["logit_bias"] == ((65, 3.0), (200, -1000.0), (END, -1000.0))


@pytest.mark.parametrize(
    ("path", "asked", "status", "param", "code"),
    [
        (CHAT_PATH, CHAT | {"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
        (CHAT_PATH, CHAT | {"frobnicate": 1}, 400, "frobnicate", "unknown_parameter"),
        (CHAT_PATH, CHAT | {"model": "gpt-4o"}, 404, "model", "model_not_found"),
        (CHAT_PATH, CHAT | {"max_tokens": 5000}, 400, "messages", "context_length_exceeded"),
        (CHAT_PATH, CHAT | {"ecd": {"mode": "greedy"}, "temperature": 1}, 400, "temperature", "bad_request"),
        (CHAT_PATH, CHAT | {"ecd": {"mode": "confident"}, "logprobs": True}, 400, "logprobs", "bad_request"),
        (CHAT_PATH, CHAT | {"ecd": {"mode": "confident", "draft": False}}, 400, "ecd.draft", "bad_request"),
        (
            CHAT_PATH,
            CHAT | {"ecd": {"link_loss": "degrade"}, "logprobs": True},
            400,
            "ecd.link_loss",
            "bad_request",
        ),
        (CHAT_PATH, CHAT | {"logit_bias": {"257": 1}}, 400, "logit_bias", "bad_request"),
        (CHAT_PATH, CHAT | {"logit_bias": {"99999999": 1}}, 400, "logit_bias", "bad_request"),
        (
            CHAT_PATH,
            CHAT | {"stream": True, "stream_options": {"include_obfuscation": True}},
            400,
            "stream_options.include_obfuscation",
            "invalid_value",
        ),
        (COMPLETIONS_PATH, {"prompt": "p", "max_tokens": 5000}, 400, "prompt", "context_length_exceeded"),
        (COMPLETIONS_PATH, {"prompt": "p", "suffix": "s"}, 400, "suffix", "unsupported_parameter"),
        (COMPLETIONS_PATH, {"prompt": [257]}, 400, "prompt", "bad_request"),
        (COMPLETIONS_PATH, {"prompt": [257], "echo": True}, 400, "prompt", "bad_request"),
        (COMPLETIONS_PATH, {"prompt": ""}, 400, "prompt", "bad_request"),
        (COMPLETIONS_PATH, {}, 400, "prompt", "missing_required_parameter"),
        (COMPLETIONS_PATH, {"prompt": "p", "best_of": 2}, 400, "best_of", "invalid_value"),
        ("/detokenize", {"tokens": [257]}, 400, "tokens", "invalid_value"),
    ],
)
async def test_what_cannot_be_done_is_refused_in_openai_s_shape(
    client: httpx.AsyncClient, path: str, asked: dict[str, Any], status: int, param: str, code: str
) -> None:
    reply = await client.post(path, json=asked)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", [CHAT_PATH, "/tokenize"])
async def test_a_conversation_that_the_template_refuses_is_blamed_by_its_name(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    for template in ("{{ raise_exception('roles must take turns') }}", "{{ nothing.here }}", "", None):
        monkeypatch.setattr(ByteModel, "chat_template", template)
        reply = await client.post(path, json=CHAT)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "messages"), template


async def test_no_parameter_is_blamed_for_what_the_cloud_does(
    client: httpx.AsyncClient, cloud: InstantCloud
) -> None:
    """But for a context that it alone knew of."""
    cloud.text = None
    for code, param in [(Code.BAD_REQUEST, None), (Code.ENGINE, None), (Code.CONTEXT_OVERFLOW, "messages")]:
        before = len(cloud.opened)
        asking = asyncio.create_task(client.post(CHAT_PATH, json=CHAT))
        await until(lambda before=before: len(cloud.opened) > before)
        cloud.reset(code)
        assert (await asking).json()["error"]["param"] == param


async def test_streams_are_not_padded_and_may_say_so(client: httpx.AsyncClient) -> None:
    asked = CHAT | {"stream": True, "stream_options": {"include_obfuscation": False}}
    reply = await client.post(CHAT_PATH, json=asked)
    assert all("obfuscation" not in event and event.get("usage") is None for event in events(reply.text))


async def test_who_chooses_the_tokens_can_be_said_in_the_request(
    client: httpx.AsyncClient, cloud: InstantCloud
) -> None:
    reply = await client.post(CHAT_PATH, json=CHAT | {"ecd": {"mode": "edge-only"}})
    assert reply.status_code == 429, "this edge drafts nothing"
    assert cloud.opened == []
    options = {"mode": "confident", "threshold": "adaptive", "target_agreement": 0.9}
    assert (await client.post(CHAT_PATH, json=CHAT | {"ecd": options})).status_code == 200
    options = {"mode": "cloud-only", "draft": False}
    assert (await client.post(CHAT_PATH, json=CHAT | {"ecd": options})).status_code == 200


async def test_paths_methods_and_bodies_that_are_none(client: httpx.AsyncClient) -> None:
    lost = await client.get("/nowhere")
    assert (lost.status_code, lost.json()["error"]["type"]) == (404, "invalid_request_error")
    assert (await client.get(CHAT_PATH)).status_code == 405
    assert (await client.post(CHAT_PATH, json=[])).status_code == 400
    assert (await client.post(CHAT_PATH, content=b"{", headers=JSON)).status_code == 400
    # What any page on the web could make a browser send here.
    assert (await client.post(CHAT_PATH, content=json.dumps(CHAT).encode())).status_code == 415
    too_long = await client.post(CHAT_PATH, content=b" " * (9 << 20), headers=JSON)
    assert too_long.status_code == 413


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(("code", "status"), [(Code.LIMIT, 429), (Code.ENGINE, 500), (Code.BAD_REQUEST, 400)])
async def test_what_fails_before_the_first_token_has_a_status_even_in_a_stream(
    client: httpx.AsyncClient, cloud: InstantCloud, code: Code, status: int
) -> None:
    cloud.text = None
    asking = asyncio.create_task(client.post(CHAT_PATH, json=CHAT | {"stream": True}))
    await until(lambda: cloud.opened)
    cloud.reset(code, "because")
    reply = await asking
    assert reply.status_code == status
    assert reply.json()["error"]["message"] == "because"


async def test_what_fails_later_is_told_in_the_stream(client: httpx.AsyncClient, cloud: InstantCloud) -> None:
    cloud.text = None
    asking = asyncio.create_task(client.post(CHAT_PATH, json=CHAT | {"stream": True}))
    await until(lambda: cloud.opened)
    cloud.say(b"h")
    cloud.reset(Code.ENGINE, "it broke")
    first, error = events((await asking).text)
    assert first["choices"][0]["delta"]["content"] == "h"
    assert error["error"]["message"] == "it broke"
    assert not cloud.service.answers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_goes_away_cancels_its_answers(
    client: httpx.AsyncClient, cloud: InstantCloud, stream: bool, begun: bool
) -> None:
    cloud.text = None
    asking = asyncio.create_task(
        client.post(COMPLETIONS_PATH, json={"prompt": "p", "n": 2, "stream": stream})
    )
    await until(lambda: len(cloud.opened) == 2)
    if begun:
        cloud.say(b"h")
        await asyncio.sleep(0)
    asking.cancel()
    await until(lambda: not cloud.service.answers)
    assert sorted(cloud.cancelled) == [1, 2]
    assert cloud.service.totals.cancelled == 2


async def test_keys_guard_all_but_what_shows_nothing(cloud: InstantCloud) -> None:
    async with serving(cloud, api_keys=["one", "two"]) as url, httpx.AsyncClient(base_url=url) as client:
        for path in ("/", "/health", "/ready", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        for path in ("/v1/models", "/metrics", "/ecd/stats", "/nowhere"):
            reply = await client.get(path)
            error = reply.json()["error"]
            assert (reply.status_code, error["code"]) == (401, "invalid_api_key")
            assert (error["type"], error["param"]) == ("invalid_request_error", None)
        for shown, status in [("Bearer two", 200), ("bearer one", 200), ("Bearer three", 401), ("two", 401)]:
            reply = await client.get("/v1/models", headers={"authorization": shown})
            assert reply.status_code == status, shown
        assert (await client.get("/v1/models", headers={"authorization": b"Bearer \xff"})).status_code == 401


async def test_other_origins_may_only_if_they_are_named(cloud: InstantCloud) -> None:
    asks = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    async with serving(cloud) as url, httpx.AsyncClient(base_url=url) as client:
        reply = await client.options(CHAT_PATH, headers=asks)
        assert "access-control-allow-origin" not in reply.headers
    async with (
        serving(cloud, cors_origins=["https://app.example"], api_keys=["k"]) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        reply = await client.options(CHAT_PATH, headers=asks)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
        reply = await client.options(CHAT_PATH, headers=asks | {"origin": "https://other.example"})
        assert "access-control-allow-origin" not in reply.headers


async def test_ready_says_why_it_is_not(client: httpx.AsyncClient, cloud: InstantCloud) -> None:
    assert (await client.get("/ready")).json() == {"status": "ready", "model": "bytes"}
    cloud.connection.peer_draining = True
    assert (await client.get("/ready")).status_code == 503
    cloud.connection.peer_draining = False
    cloud.service.draining = True
    reply = await client.get("/ready")
    assert (reply.status_code, reply.json()["error"]["type"]) == (503, "server_error")
    assert (await client.post(CHAT_PATH, json=CHAT)).status_code == 503
    assert (await client.get("/health")).status_code == 200


async def test_metrics_are_the_service_s_own_counters(client: httpx.AsyncClient, cloud: InstantCloud) -> None:
    await client.post(CHAT_PATH, json=CHAT)
    await client.get("/nowhere")
    for _ in range(2):
        text = (await client.get("/metrics")).text
        assert "ecd_edge_committed_total 3.0" in text
    assert "ecd_edge_link_up 1.0" in text
    assert f'ecd_http_requests_total{{path="{CHAT_PATH}",status="200"}} 1.0' in text
    assert 'ecd_http_requests_total{path="other",status="404"} 1.0' in text
    assert (await client.get("/ecd/stats")).json()["stats"]["committed"] == 3


async def test_requests_are_counted_by_route_whatever_names_they_have(cloud: InstantCloud) -> None:
    async with serving(cloud, api_keys=["k"]) as url, httpx.AsyncClient(base_url=url) as client:
        await client.get("/v1/models/bytes")
        client.headers["authorization"] = "Bearer k"
        for name in ("bytes", "a", "b/c", "d%2Fe"):
            await client.get(f"/v1/models/{name}")
        await client.delete("/v1/models/f")
        await client.get("/v1/models")
        text = (await client.get("/metrics")).text
    counted = re.findall(r'^ecd_http_requests_total\{path="(.*)",status="(.*)"\} (.*)$', text, re.MULTILINE)
    named = "/v1/models/{model}"
    assert sorted(counted) == [
        ("/v1/models", "200", "1.0"),
        (named, "200", "1.0"),
        (named, "401", "1.0"),
        (named, "404", "3.0"),
        (named, "405", "1.0"),
    ]


async def test_what_fails_unexpectedly_is_told_counted_and_readable_from_other_origins(
    cloud: InstantCloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*given: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("ecd.edge.gateway.app.status_told", fails)
    origin = {"origin": "https://app.example"}
    async with (
        serving(cloud, cors_origins=[origin["origin"]]) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        reply = await client.get("/ecd/stats", headers=origin)
        text = (await client.get("/metrics")).text
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
    assert reply.headers["access-control-allow-origin"] == origin["origin"]
    assert 'ecd_http_requests_total{path="/ecd/stats",status="500"} 1.0' in text
    assert caplog.text.count("ZeroDivisionError: a fault of ours") == 1


async def test_models_and_tokens(client: httpx.AsyncClient, cloud: InstantCloud) -> None:
    (model,) = (await client.get("/v1/models")).json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("bytes", "model", 4096)
    assert (await client.get("/v1/models/bytes")).json() == model
    missing = await client.get("/v1/models/other")
    assert missing.status_code == 404
    del (error := missing.json()["error"])["message"]
    assert error == {"type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    cloud.service.cloud_model = {"name": "who/bytes"}
    assert (await client.get("/v1/models/who%2Fbytes")).json()["id"] == "who/bytes"
    reply = await client.post("/tokenize", json={"prompt": "é"})
    assert reply.json() == {"tokens": [0xC3, 0xA9], "count": 2, "max_model_len": 4096}
    assert (await client.post("/detokenize", json={"tokens": [0xC3, 0xA9, END]})).json() == {
        "prompt": "é<end>"
    }
    reply = await client.post("/tokenize", json=CHAT)
    assert bytes(reply.json()["tokens"]) == b"user:x;"


async def test_the_playground_may_reach_nothing_but_this_server(client: httpx.AsyncClient) -> None:
    reply = await client.get("/")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]


async def test_a_unix_socket_is_the_user_s_own_and_a_stale_one_is_replaced(
    cloud: InstantCloud, tmp_path: Path
) -> None:
    path = tmp_path / "http.sock"
    for _ in range(2):
        async with serving(cloud, listen=None, socket=path) as url:
            assert url == f"unix:{path}"
            assert path.stat().st_mode & 0o777 == 0o600
            async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client:
                assert (await client.get("http://edge/health")).status_code == 200
            with pytest.raises(DaemonError, match=r"cannot listen on .*http\.sock"):
                async with serving(cloud, listen=None, socket=path):
                    pass
        assert not path.exists()


async def test_a_port_in_use_is_told(cloud: InstantCloud) -> None:
    async with serving(cloud) as url:
        http = Http(listen=url.removeprefix("http://"))
        with pytest.raises(DaemonError, match=r"cannot listen on 127\.0\.0\.1:\d+ for HTTP"):
            async with http_server(lambda *_: None, http.listen, http.socket):  # type: ignore[arg-type, return-value]
                pass


async def test_the_first_token_is_at_the_client_within_5_ms_of_its_commit(cloud: InstantCloud) -> None:
    """Median of a client in another thread, which notes when the bytes arrive."""
    cloud.text = None
    async with serving(cloud) as url:
        taken = []
        for _ in range(15):
            arrived: list[float] = []
            there = threading.Event()
            client = threading.Thread(target=_note_first, args=(url, arrived, there))
            before = len(cloud.opened)
            client.start()
            await until(lambda before=before: len(cloud.opened) > before)
            committed = time.monotonic()
            cloud.say(b"h")
            await until(there.is_set)
            cloud.say([END], Finish.STOP)
            await asyncio.to_thread(client.join)
            taken.append(arrived[0] - committed)
    assert statistics.median(taken) < 0.005, taken


def _note_first(url: str, arrived: list[float], there: threading.Event) -> None:
    with (
        httpx.Client(base_url=url) as client,
        client.stream("POST", CHAT_PATH, json=CHAT | {"stream": True}) as reply,
    ):
        for _ in reply.iter_raw():
            arrived.append(time.monotonic())
            there.set()


async def test_it_can_be_asked_for_without_what_was_computed_before(
    client: httpx.AsyncClient, cloud: InstantCloud
) -> None:
    for options, fresh in (({}, None), ({"kv_cache": True}, None), ({"kv_cache": False}, 1)):
        assert (await client.post(CHAT_PATH, json=CHAT | {"ecd": options})).status_code == 200
        assert cloud.opened[-1].fresh == fresh


async def test_metrics_tell_how_long_tokens_took(client: httpx.AsyncClient) -> None:
    await client.post(CHAT_PATH, json=CHAT)
    text = (await client.get("/metrics")).text
    assert "ecd_edge_first_token_seconds_count 1.0" in text
    assert "ecd_edge_token_seconds_count 1.0" in text
