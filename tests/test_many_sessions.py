"""Many sessions on one connection: batched, exact, not stalled by a long prompt, and nothing left behind."""

import asyncio
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ecd.addresses import split_address
from ecd.client import BlockingClient, Client
from ecd.engine.llama import LlamaModel
from ecd.lab.lane import Conditions
from ecd.lab.link import EmulatedLink
from ecd.lab.system import DaemonProcess, address_of, running_cloud, running_edge
from ecd.oracle import generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Sampling

TARGET, DRAFT = "smollm2-135m", "smollm2-135m-draft"
TOPICS = ("rain", "cheese", "trains", "stars", "bees", "glass", "salt", "music")
PROMPTS = [f"Tell me {n} facts about {topic}." for n in ("two", "three") for topic in TOPICS]
MAX_TOKENS = 48


@pytest.fixture(scope="module")
def wide_cloud(folder: Path) -> Iterator[DaemonProcess]:
    with running_cloud(folder, TARGET, "--sessions", "17", "--context-tokens", "4608") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def wide_edge(folder: Path, wide_cloud: DaemonProcess) -> Iterator[DaemonProcess]:
    with running_edge(folder, DRAFT, address_of(wide_cloud), "--sessions", "16") as daemon:
        yield daemon


@pytest.mark.slow
async def test_sixteen_sessions_and_a_long_prompt(
    wide_edge: DaemonProcess, wide_cloud: DaemonProcess, target: LlamaModel
) -> None:
    """Each text unchanged; while a prompt of 4,000 tokens is read, the others go on after every chunk."""
    long_prompt = "The quick brown fox jumps over the lazy dog. " * 400
    gaps: dict[str, list[float]] = {}

    async with Client(wide_edge.socket) as client, Client(wide_cloud.socket) as control:

        async def one(prompt: str) -> dict[str, Any]:
            event: dict[str, Any] = {}
            times = gaps.setdefault(prompt, [])
            async for event in client.stream(prompt, temperature=0.8, seed=3, max_tokens=MAX_TOKENS):
                if event["event"] == "text":
                    times.append(time.monotonic())
            return event

        before = await control.call("stats")
        short = [asyncio.create_task(one(prompt)) for prompt in PROMPTS]
        while (await control.call("status"))["running"] < len(PROMPTS):
            pass
        long = asyncio.create_task(client.call("run", prompt=long_prompt, chat=False, max_tokens=4))
        results = [await task for task in short]
        after = await control.call("stats")
        long_result = await long

    for prompt, result in zip(PROMPTS, results, strict=True):
        ids = prompt_tokens(target, prompt, chat=True)
        sampling = Sampling.of("exact", 0.8, seed=3)
        alone = generate(target, ids, sampling, max_tokens=MAX_TOKENS, stop=(), threads=1)
        assert result["token_ids"] == list(alone.token_ids)
    assert 3900 < long_result["usage"]["prompt_tokens"] < 4608
    ids = long_result["prompt_token_ids"]
    assert long_result["token_ids"] == list(
        generate(target, ids, Sampling(), max_tokens=4, stop=(), threads=1).token_ids
    )
    steps = after["steps"] - before["steps"]
    mean_batch = (after["batch_sessions"] - before["batch_sessions"]) / steps
    print(f"mean batch {mean_batch:.1f} sessions over {steps} steps")
    assert mean_batch > 8
    # No step reads more than a chunk of the long prompt beside everyone's own token and hints.
    assert after["batch_tokens"] - before["batch_tokens"] <= steps * (64 + 16 * (1 + after["max_verify"]))
    chunk_steps = [b - a for times in gaps.values() for a, b in pairwise(times)]
    print(f"longest pause between two tokens of a session {max(chunk_steps):.2f} s")


async def test_decoding_goes_on_while_hints_are_in_flight(
    tmp_path: Path, wide_cloud: DaemonProcess, target: LlamaModel
) -> None:
    """At 80 ms RTT hints come late, and the cloud decodes without them."""
    host, port = split_address(address_of(wide_cloud))
    async with EmulatedLink(host, port, Conditions(delay_s=0.04)) as link:
        flags = ["--model", DRAFT, "--cloud", f"{link.host}:{link.port}"]
        edge = DaemonProcess("edge", flags, tmp_path)
        edge.start()
        try:
            await asyncio.to_thread(edge.wait, lambda s: s["link"]["state"] == "connected")
            async with Client(edge.socket) as client:
                result = await client.call("run", prompt=PROMPTS[0], max_tokens=MAX_TOKENS)
                while (await client.call("status"))["link"]["rtt_ms"] is None:
                    pass
                rtt_ms = (await client.call("status"))["link"]["rtt_ms"]
        finally:
            await asyncio.to_thread(edge.stop)
    ids = prompt_tokens(target, PROMPTS[0], chat=True)
    alone = generate(target, ids, Sampling(), max_tokens=MAX_TOKENS, stop=(), threads=1)
    assert result["token_ids"] == list(alone.token_ids)
    assert result["stats"]["target_forwards_without_hints"] > 0
    assert 80 <= rtt_ms < 200


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_idle_daemons_use_next_to_nothing(wide_edge: DaemonProcess, wide_cloud: DaemonProcess) -> None:
    pids = [daemon.process.pid for daemon in (wide_edge, wide_cloud) if daemon.process is not None]
    before = [cpu_s(pid) for pid in pids]
    idle_s = 10.0
    time.sleep(idle_s)
    shares = [(cpu_s(pid) - start) / idle_s for pid, start in zip(pids, before, strict=True)]
    print("share of a core while idle, edge and cloud:", shares)
    assert max(shares) < 0.01


@pytest.mark.slow
def test_memory_is_flat_over_200_sessions(wide_edge: DaemonProcess, wide_cloud: DaemonProcess) -> None:
    pids = [daemon.process.pid for daemon in (wide_edge, wide_cloud) if daemon.process is not None]
    resident: list[list[int]] = []
    with BlockingClient(wide_edge.socket) as client:
        for number in range(200):
            client.call("run", prompt=f"Say {number}.", max_tokens=4, temperature=0.8, seed=number)
            if number in (40, 199):
                resident.append([resident_bytes(pid) for pid in pids])
        assert client.call("sessions") == {"sessions": []}
    assert wide_cloud.call("sessions") == {"sessions": []}
    growth = [late - early for early, late in zip(*resident, strict=True)]
    print("bytes grown over 160 sessions, edge and cloud:", growth)
    assert max(growth) < 8 << 20
