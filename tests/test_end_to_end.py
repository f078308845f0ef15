"""One prompt through two real daemons over TCP: the text is the target's text, whatever the edge does."""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ecd.addresses import split_address
from ecd.client import BlockingClient, Client
from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Chunk
from ecd.edge.drafter import DraftTask, Prefill
from ecd.edge.meter import Meter
from ecd.edge.request import Request
from ecd.edge.service import EdgeService
from ecd.edge.uplink import Backoff
from ecd.edge.uplinks import Place, Uplinks
from ecd.engine.llama import LlamaModel
from ecd.errors import RemoteError
from ecd.lab.system import DaemonProcess, address_of
from ecd.oracle import TOLERANCE, OracleAnswer, check, generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Guess, Sampling
from ecd.wire.connection import Closed, Connection, Role, Settings
from ecd.wire.frames import FrameReader
from ecd.wire.link import Link
from ecd.wire.messages import ENDLESS_US, Alternate, Draft, Finish, HintWeights, Open, Pace, Tokens

# In natural logarithms; the weights are quantised, where batches of another shape give the same logits.
LOGPROB_TOLERANCE = 1e-5
PROMPTS = (
    "Write a Python function that merges two sorted lists.",
    "List five facts about the Moon.",
    "Warum ist der Himmel blau?",
    "请用一句话介绍北京。",
)


def ask(daemon: DaemonProcess, prompt: str, **args: Any) -> dict[str, Any]:
    with BlockingClient(daemon.socket) as client:
        *_, result = client.stream(prompt, **args)
    return result


def alone(
    target: LlamaModel, prompt: str, max_tokens: int, stop: tuple[str, ...] = (), **settings: Any
) -> OracleAnswer:
    ids = prompt_tokens(target, prompt, chat=True)
    return generate(target, ids, Sampling.of(**settings), max_tokens=max_tokens, stop=stop, threads=1)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 7},
        {"temperature": 1.0, "seed": 3, "top_p": 0.9, "top_k": 50, "min_p": 0.02, "repetition_penalty": 1.1},
    ],
    ids=["greedy", "coupled", "coupled-shaped"],
)
def test_the_text_is_the_targets_own(
    edge: DaemonProcess, target: LlamaModel, prompt: str, settings: dict[str, Any]
) -> None:
    expected = alone(target, prompt, 64, **settings)
    result = ask(edge, prompt, max_tokens=64, **settings)
    assert result["token_ids"] == list(expected.token_ids)
    assert result["text"] == expected.text
    assert result["finish_reason"] == expected.finish_reason
    assert len(result["origins"]) == result["usage"]["completion_tokens"] == len(expected.token_ids)
    assert check(target, result, tolerance=TOLERANCE, threads=1).wrong == 0


def test_drafts_are_used_and_counted(edge: DaemonProcess) -> None:
    # Strict rounds make the cloud wait for hints, so that some are verified however slow the edge is.
    result = ask(edge, PROMPTS[0], max_tokens=48, patience_ms="rounds", hint_tokens=4, ahead_tokens=4)
    stats = result["stats"]
    assert 0 < stats["accepted"] <= stats["verified"] <= stats["drafted"]
    assert result["origins"].count("draft-accepted") == stats["accepted"]
    assert stats["verified"] <= stats["hints_sent"] <= 4 * stats["target_forwards"] + 4
    assert stats["right"] <= stats["settled"]
    assert stats["target_forwards"] < len(result["token_ids"])
    assert stats["acceptance_rate"] == stats["accepted"] / stats["verified"]


@pytest.mark.parametrize(
    "pacing",
    [
        {"objective": "latency"},
        {"objective": "balanced"},
        {"objective": "cost"},
        {"patience_ms": "rounds", "hint_tokens": 1, "ahead_tokens": 16},
        {"patience_ms": 20.0, "hint_tokens": 3},
        {"ahead_tokens": 2},
        {"ahead_tokens": 0},
    ],
    ids=str,
)
def test_pacing_never_changes_the_text(
    edge: DaemonProcess, target: LlamaModel, pacing: dict[str, Any]
) -> None:
    expected = alone(target, PROMPTS[2], 48, temperature=0.8, seed=21)
    result = ask(edge, PROMPTS[2], max_tokens=48, temperature=0.8, seed=21, **pacing)
    assert result["token_ids"] == list(expected.token_ids)


def test_text_that_is_repeated_is_copied(edge: DaemonProcess) -> None:
    before = edge.call("stats")["drafters"].get("lookup", {"drafted": 0, "right": 0})
    lines = "\n".join(f"{n}. the quick brown fox number {n} jumps over the lazy dog" for n in range(9))
    ask(edge, f"{lines}\n" * 2 + "0. the quick", chat=False, max_tokens=48)
    after = edge.call("stats")["drafters"]["lookup"]
    assert after["drafted"] > before["drafted"]
    assert after["right"] > before["right"]


def test_without_drafts_it_is_plain_streaming(edge: DaemonProcess) -> None:
    result = ask(edge, PROMPTS[0], max_tokens=16, draft=False)
    assert result["stats"]["target_forwards"] == 16
    assert result["stats"]["drafted"] == 0
    assert set(result["origins"]) == {"target"}


def test_stop_strings_cut_the_text(edge: DaemonProcess, target: LlamaModel) -> None:
    whole = alone(target, PROMPTS[1], 64)
    stop = whole.text[20:26]
    result = ask(edge, PROMPTS[1], max_tokens=64, stop=[stop])
    assert result["text"] == whole.text[: whole.text.index(stop)]
    assert result["finish_reason"] == "stop"
    assert result["token_ids"] == list(whole.token_ids)[: len(result["token_ids"])]
    assert alone(target, PROMPTS[1], 64, (stop,)).text == result["text"]


def test_rejection_mode_answers_and_counts(edge: DaemonProcess) -> None:
    result = ask(
        edge,
        PROMPTS[0],
        mode="rejection",
        temperature=0.8,
        seed=5,
        max_tokens=48,
        patience_ms="rounds",
        hint_tokens=4,
    )
    assert result["stats"]["accepted"] > 0
    assert result["usage"]["completion_tokens"] == len(result["token_ids"])


def test_streamed_pieces_make_up_the_text(edge: DaemonProcess) -> None:
    with BlockingClient(edge.socket) as client:
        events = list(client.stream(PROMPTS[3], temperature=0.9, seed=11, max_tokens=64))
    texts = [e for e in events if e["event"] == "text"]
    assert "".join(e["text"] for e in texts) == events[-1]["text"]
    assert [t for e in texts for t in e["ids"]] == events[-1]["token_ids"]
    assert len(texts) > 5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"draft": False},
        {"patience_ms": "rounds", "hint_tokens": 4, "ahead_tokens": 4},
        {"temperature": 0.8, "seed": 7},
        {"temperature": 0.8, "seed": 7, "draft": False},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "logit_bias": [[1, 5.0]]},
    ],
    ids=str,
)
def test_logprobs_are_the_targets_own_and_of_their_tokens(
    edge: DaemonProcess, target: LlamaModel, settings: dict[str, Any]
) -> None:
    pacing = ("draft", "patience_ms", "hint_tokens", "ahead_tokens")
    sampling = Sampling.of(**{name: value for name, value in settings.items() if name not in pacing})
    ids = prompt_tokens(target, PROMPTS[3], chat=True)
    # A stop text in Chinese: what holds text back are both unfinished characters and what may become it.
    whole = generate(target, ids, sampling, max_tokens=48, stop=(), threads=1)
    stop = (whole.text[20:22],)
    expected = generate(target, ids, sampling, max_tokens=48, stop=stop, threads=1, logprobs=3)
    with BlockingClient(edge.socket) as client:
        *events, result = client.stream(PROMPTS[3], max_tokens=48, stop=list(stop), logprobs=3, **settings)
    assert result["token_ids"] == list(expected.token_ids)
    assert expected.logprobs is not None
    assert len(result["logprobs"]) == len(expected.logprobs) == len(expected.token_ids)
    for told, own in zip(result["logprobs"], expected.logprobs, strict=True):
        assert told["logprob"] == pytest.approx(own.logprob, abs=LOGPROB_TOLERANCE)
        assert [token for token, _ in told["top"]] == [token for token, _ in own.top]
        values = [value for _, value in told["top"]]
        assert values == pytest.approx([value for _, value in own.top], abs=LOGPROB_TOLERANCE)
    texts = [event for event in events if event["event"] == "text"]
    assert all(len(e["ids"]) == len(e["logprobs"]) == len(e["origins"]) for e in texts)
    assert [each for e in texts for each in e["logprobs"]] == result["logprobs"]
    assert "".join(e["text"] for e in texts) == result["text"] == expected.text


def test_nobody_gets_logprobs_who_did_not_ask(edge: DaemonProcess) -> None:
    with BlockingClient(edge.socket) as client:
        assert not any("logprobs" in event for event in client.stream("Hi.", max_tokens=4))


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"prompt": "x", "temperatur": 1.0}, "temperatur"),
        ({"prompt": "x", "temperature": -1.0}, "temperature"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "mode": "fast"}, "mode"),
        ({"prompt": "x", "objective": "speed"}, "objective"),
        ({"prompt": "x", "patience_ms": -1.0}, "patience_ms"),
        ({"prompt": "x", "patience_ms": "soon"}, "patience_ms"),
        ({"prompt": "x", "hint_tokens": 0}, "hint_tokens"),
        ({"prompt": "x", "ahead_tokens": -1}, "ahead_tokens"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "logprobs": 20, "max_tokens": 100_000}, "logprobs"),
        ({"prompt": "x", "mode": "greedy", "temperature": 0.5}, "greedy"),
        ({"prompt": "", "chat": False}, "empty"),
        ({"prompt": [{"role": "user"}]}, "content"),
        ({"prompt": "x", "max_tokens": 1 << 19}, "context"),
        ({"prompt": "\U0010ffff" * 100_000, "chat": False}, "do not fit the cloud's context"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": "x", "stop": [""]}, "stop"),
        ({"prompt": "x", "stop": ["y"] * 17}, "stop"),
        ({"prompt": "x", "logit_bias": [[1, 2, 3]]}, "logit_bias"),
        ({"prompt": "x", "logit_bias": [[1.5, 2.0]]}, "logit_bias"),
        ({"prompt": "x", "repetition_penalty": 1e-39}, "repetition_penalty"),
        ({"prompt": "x", "logit_bias": [[1 << 23, 1.0]]}, "logit_bias"),
    ],
)
def test_bad_requests_say_what_is_wrong(edge: DaemonProcess, args: dict[str, Any], named: str) -> None:
    with BlockingClient(edge.socket) as client:
        with pytest.raises(RemoteError, match=named):
            client.call("run", **args)
        assert client.call("status")["link"]["state"] == "connected"
        assert client.call("sessions") == {"sessions": []}


async def test_many_calls_on_one_client_connection(edge: DaemonProcess, target: LlamaModel) -> None:
    async with Client(edge.socket) as client:
        calls = [client.call("run", prompt=p, max_tokens=24, temperature=0.7, seed=1) for p in PROMPTS]
        results = await asyncio.gather(*calls)
    for prompt, result in zip(PROMPTS, results, strict=True):
        expected = alone(target, prompt, 24, temperature=0.7, seed=1)
        assert result["token_ids"] == list(expected.token_ids)


async def test_leaving_a_stream_cancels_its_session(edge: DaemonProcess, cloud: DaemonProcess) -> None:
    async with Client(edge.socket) as client:
        stream = client.stream(PROMPTS[0], max_tokens=2000)
        async for event in stream:
            if event["event"] == "text":
                break
        await stream.aclose()  # type: ignore[attr-defined]
        while (await client.call("sessions"))["sessions"]:
            await asyncio.sleep(0.01)
    await asyncio.to_thread(wait_until_idle, cloud)


def wait_until_idle(cloud: DaemonProcess) -> None:
    while cloud.call("status")["running"]:
        pass


class RandomDrafter:
    """Guesses uniformly random tokens, and is sure of them: the worst draft model there is."""

    slots = 4
    branches = 3
    slot_tokens = 4096

    def __init__(self, n_vocab: int):
        self._rng = random.Random(1)
        self._n_vocab = n_vocab

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        return [(Guess(self._token(), 0.9, second=self._token()),) for _ in tasks]

    def _token(self) -> int:
        return self._rng.randrange(self._n_vocab)

    def release(self, slot: int) -> None: ...

    def prefill(self, slot: int) -> Prefill:
        return Prefill()

    def stats(self) -> dict[str, int]:
        return {}

    def close(self) -> None: ...


def edge_settings(target: LlamaModel) -> Settings:
    return Settings(Role.EDGE, "test", target.fingerprint())


async def test_a_random_draft_changes_nothing(cloud: DaemonProcess, target: LlamaModel) -> None:
    service = EdgeService(
        RandomDrafter(target.n_vocab),
        Acceptance(),
        Meter(),
        n_vocab=target.n_vocab,
        piece=target.piece,
        link_wait_s=10,
    )
    host, port = split_address(address_of(cloud))
    places, backoff = [Place(host, port)], Backoff(0.1, 1)
    service.attach(Uplinks(places, edge_settings(target), backoff, service.on_event, lambda: service.bound))
    tasks = [asyncio.create_task(c) for c in (service.drafting.forever(), service.uplinks.keep())]
    for sampling in (Sampling(), Sampling.of("coupled", 0.8, seed=3)):
        # With patience the cloud really looks at the hints; without, a wrong one is mostly overtaken.
        request = Request(prompt_tokens(target, PROMPTS[0], chat=True), sampling, 48, patience_us=ENDLESS_US)
        answer = service.start(request)
        ids: list[int] = []
        while isinstance(outcome := await answer.chunks.get(), Chunk):
            ids += outcome.ids
        assert outcome in (Finish.LENGTH, Finish.STOP)
        expected = generate(target, request.prompt, sampling, max_tokens=48, stop=(), threads=1)
        assert ids == list(expected.token_ids)
        assert answer.generation.tally.verified > answer.generation.tally.accepted
    for task in tasks:
        task.cancel()
    service.stop()


def hostile_draft(rng: random.Random, stream: int, prompt_len: int, n_vocab: int) -> Draft:
    """A DRAFT that no edge of good will sends: wrong, out of vocabulary, far off, or huge."""
    seen = prompt_len + rng.randrange(40)
    base = seen + rng.randrange(4)
    ids = tuple(rng.randrange(n_vocab) for _ in range(rng.randrange(1, 64)))
    match rng.randrange(8):
        case 0:
            ids = tuple(rng.randrange(n_vocab, 1 << 16) for _ in ids)
        case 1:
            base = rng.randrange(1 << 32)
        case 2:
            seen = rng.randrange(1 << 32)
        case 3:
            ids *= 20
        case 4:
            q = (HintWeights(ids[:1], b"\xff"),) * rng.randrange(3)
            return Draft(stream, seen, base, ids, q=q)
        case 5:
            return Draft(stream, seen, base, ids, confidence=rng.randbytes(rng.randrange(70)))
        case 6:
            places = [rng.choice((seen, base, prompt_len, rng.randrange(1 << 32))) for _ in range(20)]
            alternates = tuple(Alternate(place, ids[: rng.randrange(9)]) for place in places)
            return Draft(stream, seen, base, ids[:3], alternates=alternates[: rng.randrange(20)])
        case _:
            seen = base = prompt_len
    # Never a patience: what the attacker waits for itself would only make the test longer.
    pace = Pace(0, rng.randrange(1 << 32)) if rng.random() < 0.1 else None
    return Draft(stream, seen, base, ids, pace=pace)


async def test_a_hostile_edge_harms_nobody(
    edge: DaemonProcess, cloud: DaemonProcess, target: LlamaModel
) -> None:
    """Thousands of garbage hints: its own text and everybody else's stay the target's, memory bounded."""
    assert cloud.process is not None
    before = resident_bytes(cloud.process.pid)
    rng = random.Random(7)
    prompt = prompt_tokens(target, PROMPTS[1], chat=True)
    sampling = Sampling.of("coupled", 0.8, seed=9)
    got: list[int] = []
    ended: list[str] = []
    done = asyncio.Event()

    def on_event(link: Link, event: Any) -> None:
        message = getattr(event, "message", None)
        if isinstance(event, Closed):
            ended.append(event.message)
            done.set()
        if isinstance(message, Tokens):
            got.extend(message.ids)
            if message.finish is not Finish.NONE:
                done.set()

    host, port = split_address(address_of(cloud))
    link = Link(Connection(edge_settings(target), asyncio.get_running_loop().time()), on_event)
    await asyncio.get_running_loop().create_connection(lambda: link, host, port)
    while link.connection.peer is None:
        await asyncio.sleep(0)
    stream = link.connection.new_stream()
    link.send(Open(stream, None, 0, prompt, (), sampling.to_map(), 96, (), Pace(0, 1)))

    async def attack() -> None:
        sent = 0
        while not done.is_set():
            sent += link.send(hostile_draft(rng, stream, len(prompt), target.n_vocab))
            # As fast as the cloud reads: more would only fill this end's own queue.
            while sent - link.traffic.bytes_out > 1 << 20 and not done.is_set():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)

    attacker = asyncio.create_task(attack())
    honest = await asyncio.to_thread(ask, edge, PROMPTS[0], max_tokens=64, temperature=0.8, seed=4)
    await done.wait()
    await attacker
    link.abort()
    assert not ended
    assert got == list(generate(target, prompt, sampling, max_tokens=96, stop=(), threads=1).token_ids)
    assert honest["token_ids"] == list(alone(target, PROMPTS[0], 64, temperature=0.8, seed=4).token_ids)
    assert cloud.call("stats")["invalid_hints"] > 1000
    assert resident_bytes(cloud.process.pid) - before < 64 << 20


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_garbage_on_the_wire_ends_one_connection_only(cloud: DaemonProcess, edge: DaemonProcess) -> None:
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\x00\x00\x00\x02\x92\x05", os.urandom(4096)):
        with socket.create_connection(split_address(address_of(cloud))) as sock:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            reply = b""
            while data := sock.recv(4096):
                reply += data
            frames = [fields for fields, _ in FrameReader().feed(reply)]
            assert all(fields[0] == 13 for fields in frames)
    assert ask(edge, "Say hi.", max_tokens=4)["usage"]["completion_tokens"] > 0


def test_another_tokenizer_is_refused_with_the_difference(cloud: DaemonProcess, target: LlamaModel) -> None:
    special = target.fingerprint().special | {"bos": 77}
    fingerprint = target.fingerprint().to_map() | {"special": special, "probes": "0" * 64}
    from ecd.wire.fingerprint import Fingerprint

    connection = Connection(Settings(Role.EDGE, "test", Fingerprint.from_map(fingerprint)), 0.0)
    with socket.create_connection(split_address(address_of(cloud))) as sock:
        sock.sendall(b"".join(frame.data for frame in connection.output()))
        reply = b""
        while data := sock.recv(4096):
            reply += data
    (closed,) = connection.receive(reply, 0.0)
    assert "token that starts every prompt (id 77 against none)" in closed.message  # type: ignore[union-attr]
    assert "the same text gives different ids" in closed.message  # type: ignore[union-attr]
    assert not closed.retry  # type: ignore[union-attr]


def run_command(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, **options
    )


def test_oracle_and_check_commands(tmp_path: Path, edge: DaemonProcess) -> None:
    flags = [
        "--temperature",
        "0.8",
        "--seed",
        "5",
        "--max-tokens",
        "32",
        "--logprobs",
        "2",
        "--json",
        PROMPTS[1],
    ]
    oracle = json.loads(run_command("ecd", "oracle", "--model", "smollm2-135m", *flags).stdout)
    run = json.loads(run_command("ecd.ctl", "--socket", str(edge.socket), "run", *flags).stdout)
    for name in ("text", "token_ids", "prompt_token_ids", "finish_reason", "seed", "sampling", "usage"):
        assert run[name] == oracle[name]
    assert [len(each["top"]) for each in run["logprobs"]] == [2] * len(run["token_ids"])
    assert [set(each) for each in oracle["logprobs"]] == [{"logprob", "top"}] * len(run["token_ids"])
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(run))
    assert run_command("ecd", "check", "--model", "smollm2-135m", str(good)).returncode == 0
    run["token_ids"][5] = (run["token_ids"][5] + 1) % 1000
    bad.write_text(json.dumps(run))
    checked = run_command("ecd", "check", "--model", "smollm2-135m", "--json", str(bad))
    assert checked.returncode == 1
    report = json.loads(checked.stdout)
    assert report["verdict"] == "wrong"
    assert not report["checks"][5]["is_choice"]
