"""Generation under a bad network and a dying cloud: no token lost, none repeated, the text unchanged."""

import asyncio
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecd.client import Client
from ecd.config import split_address
from ecd.engine.llama import LlamaModel
from ecd.lab.lane import Conditions, random_schedule
from ecd.lab.link import EmulatedLink
from ecd.lab.system import DaemonProcess, address_of, running_cloud
from ecd.oracle import generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Sampling

TARGET, DRAFT = "smollm2-135m", "smollm2-135m-draft"
IMPATIENT = "keepalive: {ping_interval_s: 0.2, silence_s: 1.0}\nreconnect: {first_s: 0.05, longest_s: 0.5}\n"
PROMPTS = ("Write a Python function that reverses a list.", "Tell me about the sea.", "Was ist ein Vulkan?")
MAX_TOKENS = 72


@pytest.fixture(scope="module")
def own_cloud(folder: Path) -> Iterator[DaemonProcess]:
    with running_cloud(folder, TARGET) as daemon:
        yield daemon


class EdgeThroughLink:
    """An edge whose way to the cloud is the emulated link; started once the link listens."""

    def __init__(self, folder: Path, link: EmulatedLink):
        config = folder / "edge.yaml"
        config.write_text(IMPATIENT)
        flags = ["--model", DRAFT, "--cloud", f"{link.host}:{link.port}", "--config", str(config)]
        self.daemon = DaemonProcess("edge", flags, folder)

    async def __aenter__(self) -> DaemonProcess:
        self.daemon.start()
        connected = lambda status: bool(status["link"]["state"] == "connected")  # noqa: E731
        await asyncio.to_thread(self.daemon.wait, connected)
        return self.daemon

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.daemon.stop)


async def run_all(edge: DaemonProcess) -> list[dict[str, Any]]:
    async with Client(edge.socket) as client:
        return await asyncio.gather(
            *(
                client.call("run", prompt=prompt, temperature=temperature, seed=5, max_tokens=MAX_TOKENS)
                for prompt in PROMPTS
                for temperature in (0.0, 0.8)
            )
        )


@pytest.fixture(scope="module")
def expected(target: LlamaModel) -> list[list[int]]:
    return [
        list(
            generate(
                target,
                prompt_tokens(target, prompt, chat=True),
                Sampling.of("exact", temperature, seed=5),
                max_tokens=MAX_TOKENS,
                stop=(),
                threads=1,
            ).token_ids
        )
        for prompt in PROMPTS
        for temperature in (0.0, 0.8)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
async def test_the_text_survives_cuts_stalls_and_a_killed_cloud(
    tmp_path: Path, own_cloud: DaemonProcess, expected: list[list[int]], seed: int
) -> None:
    """A seeded schedule of cuts inside frames, stalls and half-open deaths; every third kills the cloud."""
    rng = random.Random(seed)
    schedule = random_schedule(seed, 4.0, cuts=3, stalls=2, half_opens=1, furthest_byte=6000)
    host, port = split_address(address_of(own_cloud))
    conditions = Conditions(delay_s=0.005, jitter_s=0.003)
    async with (
        EmulatedLink(host, port, conditions, schedule=schedule, seed=seed) as link,
        EdgeThroughLink(tmp_path, link) as edge,
    ):
        answers = asyncio.create_task(run_all(edge))
        if seed % 3 == 0:
            async with Client(edge.socket) as client:
                while (await client.call("stats"))["running"] < len(expected):
                    pass
                wanted = rng.randrange(10, 40)
                while (
                    sum(s["completion_tokens"] for s in (await client.call("sessions"))["sessions"]) < wanted
                ):
                    pass
            await asyncio.to_thread(own_cloud.signal, signal.SIGKILL)
            own_cloud.flags[own_cloud.flags.index("--listen") + 1] = f"{host}:{port}"
            own_cloud.start()
            await asyncio.to_thread(own_cloud.wait, lambda status: True)
        results = await answers
        assert [result["token_ids"] for result in results] == expected
        assert [len(result["origins"]) for result in results] == [len(ids) for ids in expected]
        assert link.stats.cuts > 0 or seed % 3 == 0
    assert sum(result["stats"]["resumed"] for result in results) > 0


async def test_an_edge_without_a_cloud_waits_and_then_says_why(tmp_path: Path) -> None:
    config = tmp_path / "edge.yaml"
    config.write_text("link_wait_s: 0.5\n")
    edge = DaemonProcess(
        "edge", ["--model", DRAFT, "--cloud", "127.0.0.1:1", "--config", str(config)], tmp_path
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
