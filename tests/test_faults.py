"""Generation under a bad network and a dying cloud: no token lost, none repeated, the text unchanged."""

import asyncio
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ecd.client import Client
from ecd.config import split_address
from ecd.engine.llama import LlamaModel
from ecd.lab.lane import Conditions, random_schedule
from ecd.lab.link import EmulatedLink
from ecd.lab.system import DaemonProcess, address_of, running_cloud
from ecd.models.fetch import resolve
from ecd.oracle import TOLERANCE, check, generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Sampling

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
            {"prompt": prompt, "temperature": temperature, "seed": 5, "max_tokens": self.max_tokens}
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
def expected(pair: Pair, model: LlamaModel) -> list[list[int]]:
    """What the target alone says; not asked of the large one, whose answers are checked instead."""
    return [
        list(
            generate(
                model,
                prompt_tokens(model, request["prompt"], chat=True),
                Sampling.of("exact", request["temperature"], seed=request["seed"]),
                max_tokens=request["max_tokens"],
                stop=(),
                threads=1,
            ).token_ids
        )
        for request in (pair.requests if pair is SMALL else ())
    ]


class EdgeThroughLink:
    """An edge whose way to the cloud is the emulated link; started once the link listens."""

    def __init__(self, folder: Path, draft: str, link: EmulatedLink):
        config = folder / "edge.yaml"
        config.write_text(IMPATIENT)
        flags = ["--model", draft, "--cloud", f"{link.host}:{link.port}", "--config", str(config)]
        self.daemon = DaemonProcess("edge", flags, folder)

    async def __aenter__(self) -> DaemonProcess:
        self.daemon.start()
        connected = lambda status: bool(status["link"]["state"] == "connected")  # noqa: E731
        await asyncio.to_thread(self.daemon.wait, connected)
        return self.daemon

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.daemon.stop)


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
    expected: list[list[int]],
    seed: int,
) -> None:
    """A seeded schedule of cuts inside frames, stalls and half-open deaths; every third kills the cloud."""
    schedule = random_schedule(seed, 4.0, cuts=3, stalls=2, half_opens=1, furthest_byte=4000)
    host, port = split_address(address_of(own_cloud))
    conditions = Conditions(delay_s=0.005, jitter_s=0.003)
    async with (
        EmulatedLink(host, port, conditions, schedule=schedule, seed=seed) as link,
        EdgeThroughLink(tmp_path, pair.draft, link) as edge,
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
    if pair is SMALL:
        assert [result["token_ids"] for result in results] == expected
    else:
        reports = [check(model, result, tolerance=TOLERANCE, threads=1) for result in results]
        print(
            f"seed {seed}: near ties {[r.near_ties for r in reports]}, of {[len(r.checks) for r in reports]}"
        )
        assert not sum(report.wrong for report in reports)


async def test_an_edge_without_a_cloud_waits_and_then_says_why(tmp_path: Path) -> None:
    config = tmp_path / "edge.yaml"
    config.write_text("link_wait_s: 0.5\n")
    edge = DaemonProcess(
        "edge", ["--model", SMALL.draft, "--cloud", "127.0.0.1:1", "--config", str(config)], tmp_path
    )
    edge.start()
    try:
        status = await asyncio.to_thread(edge.wait, lambda status: True)
        assert status["link"]["state"] in ("down", "connecting")
        async with Client(edge.socket) as client:
            with pytest.raises(
                Exception, match=r"no link to the cloud for 0.5 s: cannot reach .*127.0.0.1:1"
            ):
                await client.call("run", prompt="Hello?")
    finally:
        edge.stop()
