"""The `openai` package, and a fuzzer, against a live edge and cloud."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from ecd.lab.system import DaemonProcess, address_of, running_cloud, running_edge, url_of

PROMPT = "Write a Python function that merges two sorted lists."
MESSAGES: Any = [{"role": "user", "content": PROMPT}]
MODEL, DRAFT = "smollm2-135m", "smollm2-135m-draft"
# A client that goes away has its session cancelled within this time.
GONE_S = 1.0


@pytest.fixture(scope="module")
def edge(folder: Path, cloud: DaemonProcess) -> Iterator[DaemonProcess]:
    with running_edge(folder, DRAFT, address_of(cloud), "--http", "127.0.0.1:0") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(edge: DaemonProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url_of(edge)}/v1", api_key="none", max_retries=0) as client:
        yield client


def asynchronous(edge: DaemonProcess) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url_of(edge)}/v1", api_key="none", max_retries=0)


def same_on_the_control_socket(edge: DaemonProcess, **args: Any) -> dict[str, Any]:
    return edge.call("run", **({"prompt": PROMPT} | args))


def test_a_chat_is_the_control_socket_s_answer(client: openai.OpenAI, edge: DaemonProcess) -> None:
    expected = same_on_the_control_socket(edge, temperature=0.8, seed=11, max_tokens=40)
    reply = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0.8, seed=11, max_completion_tokens=40
    )
    (choice,) = reply.choices
    assert choice.message.content == expected["text"]
    assert choice.message.role == "assistant"
    assert choice.finish_reason == expected["finish_reason"]
    assert reply.usage is not None
    assert reply.usage.model_dump(exclude_unset=True) == expected["usage"]
    assert reply.id.startswith("chatcmpl-")
    assert reply.model == MODEL
    told: Any = reply.model_extra
    assert told["ecd"]["ids"] == expected["token_ids"]
    assert len(told["ecd"]["origins"]) == len(expected["token_ids"])
    assert told["ecd"]["rtt_ms"] > 0
    assert 0 < told["ecd"]["forwards_per_token"] <= 1


def test_a_streamed_chat_is_the_whole_one(client: openai.OpenAI, edge: DaemonProcess) -> None:
    expected = same_on_the_control_socket(edge, max_tokens=40)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        temperature=0,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected["text"]
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:] if chunk.choices] == ["length"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 40
    assert len(chunks) > 3
    told: list[Any] = [chunk.model_extra for chunk in chunks[:-1]]
    assert [token for each in told for token in each["ecd"]["ids"]] == expected["token_ids"]
    assert sum(told[-1]["ecd"]["origin_counts"].values()) == 40


def test_completions_of_text_and_of_ids_are_one(client: openai.OpenAI, edge: DaemonProcess) -> None:
    text = "def merge(a, b):"
    expected = same_on_the_control_socket(edge, prompt=text, chat=False, max_tokens=12)
    ids = httpx.post(f"{url_of(edge)}/tokenize", json={"prompt": text}).json()["tokens"]
    assert ids == expected["prompt_token_ids"]
    reply = client.completions.create(
        model=MODEL, prompt=[ids, ids], temperature=0, max_tokens=12, echo=True, n=2
    )
    assert [choice.text for choice in reply.choices] == [text + expected["text"]] * 4
    assert reply.id.startswith("cmpl-")
    stream = client.completions.create(model=MODEL, prompt=text, temperature=0, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected["text"]


def test_choices_differ_by_their_seeds(client: openai.OpenAI, edge: DaemonProcess) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=2, seed=5, max_tokens=12, n=3
    )
    for index, choice in enumerate(reply.choices):
        alone = same_on_the_control_socket(edge, temperature=2.0, seed=5 + index, max_tokens=12)
        assert choice.message.content == alone["text"]
    assert len({choice.message.content for choice in reply.choices}) > 1


def test_log_probabilities_are_the_control_socket_s(client: openai.OpenAI, edge: DaemonProcess) -> None:
    expected = same_on_the_control_socket(edge, max_tokens=8, logprobs=2)
    values = [each["logprob"] for each in expected["logprobs"]]
    chat = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=8, logprobs=True, top_logprobs=2
    )
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    assert [entry.logprob for entry in content] == values
    assert [len(entry.top_logprobs) for entry in content] == [2] * 8
    assert b"".join(bytes(entry.bytes or ()) for entry in content).decode() == expected["text"]
    # Greedily chosen, so each is the likeliest of all.
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in content)

    ids = expected["prompt_token_ids"]
    plain = client.completions.create(model=MODEL, prompt=ids, temperature=0, max_tokens=8, logprobs=2)
    told = plain.choices[0].logprobs
    assert told is not None
    assert told.tokens == [entry.token for entry in content]
    assert told.token_logprobs == pytest.approx(values, abs=1e-4)
    text = plain.choices[0].text
    assert [text[at:].startswith(token) for at, token in zip(told.text_offset, told.tokens, strict=True)] == (
        [True] * 8
    )


def test_stop_bias_and_penalties_are_the_target_s(client: openai.OpenAI, edge: DaemonProcess) -> None:
    whole = same_on_the_control_socket(edge, max_tokens=40)["text"]
    stop = whole[12:17]
    stopped = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=40, stop=stop
    )
    assert stopped.choices[0].message.content == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    shaping = {"presence_penalty": 0.5, "frequency_penalty": 0.5, "top_p": 0.9}
    extended = {"top_k": 20, "min_p": 0.02, "repetition_penalty": 1.1}
    common: Any = {"temperature": 0.9, "seed": 3, "max_tokens": 24}
    expected = same_on_the_control_socket(edge, **common, **shaping, **extended)
    reply = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, **common, **shaping, extra_body=extended
    )
    assert reply.choices[0].message.content == expected["text"]
    (favourite,) = httpx.post(f"{url_of(edge)}/tokenize", json={"prompt": "!"}).json()["tokens"]
    biased = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=4, logit_bias={str(favourite): 100}
    )
    assert biased.choices[0].message.content == "!!!!"


def test_without_an_end_of_text_an_answer_is_as_long_as_it_may_be(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Say: ok"}], "temperature": 0}
    short = client.chat.completions.create(**asked)
    assert short.choices[0].finish_reason == "stop"
    assert short.usage is not None
    longer = short.usage.completion_tokens + 5
    forced = client.chat.completions.create(**asked, max_tokens=longer, extra_body={"ignore_eos": True})
    assert forced.usage is not None
    assert forced.usage.completion_tokens == longer
    assert forced.choices[0].finish_reason == "length"


def test_what_only_ecd_has_can_be_asked_for(client: openai.OpenAI, edge: DaemonProcess) -> None:
    before = edge.call("stats")["drafted"]
    options = {"draft": False, "objective": "cost", "patience_ms": 0, "mode": "exact"}
    reply = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=8, extra_body={"ecd": options}
    )
    told: Any = reply.model_extra
    assert told["ecd"]["origins"] == ["target"] * 8
    assert edge.call("stats")["drafted"] == before


def test_errors_are_the_package_s_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tools is not supported here") as refused:
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        )
    assert (refused.value.param, refused.value.code) == ("tools", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError, match=f"{MODEL!r} is"):
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="do not fit the cloud's context"):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1 << 19)
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


async def test_many_at_once(edge: DaemonProcess) -> None:
    expected = same_on_the_control_socket(edge, max_tokens=16)
    async with asynchronous(edge) as client:
        streams = [
            await client.chat.completions.create(
                model=MODEL, messages=MESSAGES, temperature=0, max_tokens=16, stream=True
            )
            for _ in range(6)
        ]

        async def text(stream: Any) -> str:
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert await asyncio.gather(*map(text, streams)) == [expected["text"]] * 6


async def gone_within(limit_s: float, sessions: Callable[[], int]) -> None:
    deadline = time.monotonic() + limit_s
    while sessions():
        assert time.monotonic() < deadline, f"{sessions()} sessions are left after {limit_s} s"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_edge_and_cloud(
    edge: DaemonProcess, cloud: DaemonProcess, stream: bool
) -> None:
    def running() -> int:
        stats = cloud.call("stats")
        return len(edge.call("sessions")["sessions"]) + int(stats["running"]) + int(stats["queued"])

    before = edge.call("stats")["cancelled"]
    async with asynchronous(edge) as client:
        asked: Any = {
            "model": MODEL,
            "messages": MESSAGES,
            "max_tokens": 3000,
            "extra_body": {"ignore_eos": True},
        }
        if stream:
            chunks = await client.chat.completions.create(**asked, stream=True)
            async for chunk in chunks:
                if chunk.choices[0].delta.content:
                    break
            assert running() == 2
            await chunks.close()
        else:
            asking = asyncio.create_task(client.chat.completions.create(**asked))
            async with asyncio.timeout(30):
                while running() < 2:
                    await asyncio.sleep(0.02)
            asking.cancel()
        await gone_within(GONE_S, running)
    assert edge.call("stats")["cancelled"] == before + 1


def test_a_drain_lets_a_stream_finish(tmp_path: Path, cloud: DaemonProcess) -> None:
    with (
        running_edge(tmp_path, DRAFT, address_of(cloud), "--http", "127.0.0.1:0") as edge,
        openai.OpenAI(base_url=f"{url_of(edge)}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.completions.create(
            model=MODEL, prompt="Once", max_tokens=32, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        assert edge.process is not None
        edge.process.send_signal(signal.SIGTERM)
        tokens: Any = [token for chunk in stream for token in (chunk.model_extra or {})["ecd"]["ids"]]
        assert len(tokens) == 31
        assert edge.process.wait(10) == 0


def test_settings_and_the_default_address(tmp_path: Path, cloud: DaemonProcess) -> None:
    file = tmp_path / "edge.yaml"
    path = tmp_path / "http.sock"
    file.write_text(json.dumps({"http": {"listen": None, "socket": str(path), "api_keys": ["secret"]}}))
    flags = ["--model", DRAFT, "--cloud", address_of(cloud), "--config", str(file)]
    edge = DaemonProcess("edge", flags, tmp_path)
    try:
        edge.start()
        edge.wait(lambda status: status["link"]["state"] == "connected")
        transport = httpx.HTTPTransport(uds=str(path))
        with openai.OpenAI(
            base_url="http://edge/v1", api_key="secret", http_client=httpx.Client(transport=transport)
        ) as client:
            reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2)
            assert reply.usage is not None
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="other").models.list()
    finally:
        edge.stop()


@pytest.mark.slow
def test_a_fuzzer_gets_no_answer_that_is_not_documented(tmp_path: Path) -> None:
    """Answers are kept short: by a cloud with little context, and a document with less room for `n`."""
    with (
        running_cloud(tmp_path, MODEL, "--context-tokens", "80", "--sessions", "4") as cloud,
        running_edge(tmp_path, DRAFT, address_of(cloud), "--http", "127.0.0.1:0") as edge,
    ):
        document = httpx.get(f"{url_of(edge)}/openapi.json").json()
        schemas = document["components"]["schemas"]
        for asked, name in [
            ("ChatRequest", "n"),
            ("CompletionRequest", "n"),
            ("CompletionRequest", "best_of"),
        ]:
            number, null = schemas[asked]["properties"][name]["anyOf"]
            assert null == {"type": "null"}
            number["maximum"] = 2
        file = tmp_path / "openapi.json"
        file.write_text(json.dumps(document))
        fuzzer = [sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", url_of(edge)]
        # Not all that is refused can be said in a schema, such as what does not fit the context; and a larger
        # `n` than this document has is no error.
        options = ["--exclude-checks", "positive_data_acceptance,negative_data_rejection"]
        amount = ["--phases", "fuzzing", "--max-examples", "30", "--generation-deterministic"]
        run = subprocess.run(
            [*fuzzer, *options, *amount], cwd=tmp_path, capture_output=True, text=True, timeout=1200
        )
        assert run.returncode == 0, run.stdout[-4000:]
        assert edge.call("stats")["finished"] > 0
        assert edge.call("status")["sessions"] == 0
