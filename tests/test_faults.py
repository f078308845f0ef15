"""Generation under a bad network and a dying cloud: no token lost, none repeated, the text unchanged."""

import asyncio
import random
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ecd.addresses import split_address
from ecd.client import Client
from ecd.engine.llama import LlamaModel
from ecd.lab.lane import Conditions, random_schedule
from ecd.lab.link import EmulatedLink
from ecd.lab.system import DaemonProcess, address_of, running_cloud
from ecd.models.fetch import resolve
from ecd.oracle import TOLERANCE, OracleAnswer, check, generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Sampling

# In natural logarithms; the weights are quantised, where batches of another shape give the same logits.
LOGPROB_TOLERANCE = 1e-5
IMPATIENT = "keepalive: {ping_interval_s: 0.2, silence_s: 1.0}\nreconnect: {first_s: 0.05, longest_s: 0.5}\n"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models and what is asked of them: every prompt greedily and at temperature 0.8, at once."""

    target: str
    draft: str
    prompts: tuple[str, ...]
    max_tokens: int

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [
            {
                "prompt": prompt,
                "temperature": temperature,
                "seed": 5,
                "max_tokens": self.max_tokens,
                "logprobs": 2,
            }
            for prompt in self.prompts
            for temperature in (0.0, 0.8)
        ]


SMALL = Pair(
    "smollm2-135m",
    "smollm2-135m-draft",
    ("Write a Python function that reverses a list.", "Tell me about the sea.", "Was ist ein Vulkan?"),
    72,
)
LARGE = Pair("qwen2.5-coder-1.5b-bf16", "qwen2.5-coder-0.5b-q4_0", ("Write a bubble sort in Python.",), 48)


@pytest.fixture(
    scope="module",
    params=[pytest.param(SMALL, marks=pytest.mark.slow), pytest.param(LARGE, marks=pytest.mark.large)],
    ids=["small", "large"],
)
def pair(request: pytest.FixtureRequest) -> Pair:
    chosen: Pair = request.param
    return chosen


@pytest.fixture(scope="module")
def own_cloud(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> Iterator[DaemonProcess]:
    with running_cloud(tmp_path_factory.mktemp("cloud"), pair.target, "--context-tokens", "1024") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def model(pair: Pair) -> LlamaModel:
    return LlamaModel(resolve(pair.target))


@pytest.fixture(scope="module")
def expected(pair: Pair, model: LlamaModel) -> list[OracleAnswer]:
    """What the target alone says; not asked of the large one, whose answers are checked instead."""
    return [
        generate(
            model,
            prompt_tokens(model, request["prompt"], chat=True),
            Sampling.of("exact", request["temperature"], seed=request["seed"]),
            max_tokens=request["max_tokens"],
            stop=(),
            threads=1,
            logprobs=request["logprobs"],
        )
        for request in (pair.requests if pair is SMALL else ())
    ]


@asynccontextmanager
async def edge_to(
    address: str, draft: str, folder: Path, settings: str = IMPATIENT
) -> AsyncIterator[DaemonProcess]:
    """An edge that is up and looks for its cloud at `address`, where nothing may listen yet."""
    config = folder / "edge.yaml"
    config.write_text(settings)
    flags = ["--model", draft, "--cloud", address, "--config", str(config)]
    daemon = DaemonProcess("edge", flags, folder)
    daemon.start()
    try:
        await asyncio.to_thread(daemon.wait, lambda status: True)
        yield daemon
    finally:
        await asyncio.to_thread(daemon.stop)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def run_all(edge: DaemonProcess, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    async with Client(edge.socket) as client:
        return await asyncio.gather(*(client.call("run", **request) for request in requests))


async def kill_in_mid_answer(cloud: DaemonProcess, edge: DaemonProcess, sessions: int, tokens: int) -> None:
    """kill -9 once all sessions run and have so many tokens in all; a new cloud on the same port."""
    listen = address_of(cloud)
    async with Client(edge.socket) as client:
        running: list[dict[str, Any]] = []
        while len(running) < sessions or sum(s["completion_tokens"] for s in running) < tokens:
            running = (await client.call("sessions"))["sessions"]
    await asyncio.to_thread(cloud.signal, signal.SIGKILL)
    cloud.flags[cloud.flags.index("--listen") + 1] = listen
    cloud.start()
    await asyncio.to_thread(cloud.wait, lambda status: True)


@pytest.mark.parametrize("seed", range(10))
async def test_the_text_survives_cuts_stalls_and_a_killed_cloud(
    tmp_path: Path,
    pair: Pair,
    own_cloud: DaemonProcess,
    model: LlamaModel,
    expected: list[OracleAnswer],
    seed: int,
) -> None:
    """A seeded schedule of cuts inside frames, stalls and half-open deaths; every third kills the cloud."""
    schedule = random_schedule(seed, 2.0, cuts=3, stalls=2, half_opens=1, furthest_byte=2000)
    host, port = split_address(address_of(own_cloud))
    conditions = Conditions(delay_s=0.005, jitter_s=0.003)
    here = ("127.0.0.1", free_port())
    # The edge is up before the link is, so that the schedule begins together with the answers.
    async with (
        edge_to(f"{here[0]}:{here[1]}", pair.draft, tmp_path) as edge,
        EmulatedLink(host, port, conditions, schedule=schedule, seed=seed, listen=here) as link,
    ):
        answers = asyncio.create_task(run_all(edge, pair.requests))
        if seed % 3 == 0:
            tokens = random.Random(seed).randrange(4, 40)
            await kill_in_mid_answer(own_cloud, edge, len(pair.requests), tokens)
        results = await answers
        assert link.stats.cuts > 0 or seed % 3 == 0
    assert sum(result["stats"]["resumed"] for result in results) > 0
    for result in results:
        assert len(result["origins"]) == len(result["token_ids"]) == result["usage"]["completion_tokens"]
        assert len(result["logprobs"]) == len(result["token_ids"])
    if pair is SMALL:
        for result, alone in zip(results, expected, strict=True):
            assert result["token_ids"] == list(alone.token_ids)
            assert alone.logprobs is not None
            told = [each["logprob"] for each in result["logprobs"]]
            assert told == pytest.approx([each.logprob for each in alone.logprobs], abs=LOGPROB_TOLERANCE)
    else:
        reports = [check(model, result, tolerance=TOLERANCE, threads=1) for result in results]
        print(
            f"seed {seed}: near ties {[r.near_ties for r in reports]}, of {[len(r.checks) for r in reports]}"
        )
        assert not sum(report.wrong for report in reports)


async def test_an_edge_without_a_cloud_waits_and_then_says_why(tmp_path: Path) -> None:
    async with (
        edge_to("127.0.0.1:1", SMALL.draft, tmp_path, "link_wait_s: 1") as edge,
        Client(edge.socket) as client,
    ):
        assert (await client.call("status"))["link"]["state"] in ("down", "connecting")
        with pytest.raises(Exception, match=r"no link to the cloud for 1 s: cannot reach .*127.0.0.1:1"):
            await client.call("run", prompt="Hello?")
