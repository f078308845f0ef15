"""Two clouds as processes: answers go on at the other when theirs dies or drains, with the target's text."""

import asyncio
import contextlib
import itertools
import json
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import pytest

from ecd.addresses import split_address
from ecd.client import Client
from ecd.engine.llama import LlamaModel
from ecd.lab.lane import Conditions
from ecd.lab.link import EmulatedLink
from ecd.lab.shipped import find_file
from ecd.lab.system import DaemonProcess, address_of, running_cloud
from ecd.lab.trace import load_trace
from ecd.oracle import generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Sampling

TARGET, DRAFT = "smollm2-135m", "smollm2-135m-draft"
TRACE = "qwen-coder-greedy"
PROMPTS = ("Write a Python function that reverses a list.", "Tell me about the sea.", "Was ist ein Vulkan?")
# Of a request that a cloud's death has interrupted, seconds.
PAUSE_S = 2.0


def request_of(prompt: str, temperature: float, max_tokens: int) -> dict[str, Any]:
    return {"prompt": prompt, "temperature": temperature, "seed": 5, "max_tokens": max_tokens}


@dataclass(slots=True)
class Run:
    """One answer as its client saw it: the result, and the longest wait for the next piece, in seconds."""

    result: dict[str, Any]
    pause_s: float

    @property
    def moved(self) -> int:
        return int(self.result["stats"]["resumed"])


async def run(client: Client, request: dict[str, Any]) -> Run:
    result: dict[str, Any] = {}
    last, longest = None, 0.0
    async for event in client.stream(**request):
        now = time.monotonic()
        match event["event"]:
            case "text":
                longest = max(longest, 0.0 if last is None else now - last)
                last = now
            case "done":
                result = event
    return Run(result, longest)


def alone(model: LlamaModel, request: dict[str, Any]) -> list[int]:
    """What the target alone says."""
    ids = prompt_tokens(model, request["prompt"], chat=True)
    sampling = Sampling.of("exact", request["temperature"], seed=request["seed"])
    return list(
        generate(model, ids, sampling, max_tokens=request["max_tokens"], stop=(), threads=1).token_ids
    )


@dataclass(slots=True)
class System:
    """Two clouds and an edge that has both."""

    edge: DaemonProcess
    clouds: list[DaemonProcess]
    addresses: list[str]

    def status(self) -> dict[str, dict[str, Any]]:
        """How each cloud is, as the edge tells it, in the order of `clouds`."""
        told = self.edge.call("status")["clouds"]
        return {address: told[address] for address in self.addresses}

    def wait_until_ready(self) -> None:
        self.edge.wait(
            lambda status: [each["standing"] for each in status["clouds"].values()] == ["ready"] * 2
        )

    def busier(self) -> int:
        """The number of the cloud with more of the edge's answers."""
        running = [each["running"] for each in self.status().values()]
        return running.index(max(running))

    def kill_and_restart(self, number: int) -> None:
        cloud = self.clouds[number]
        cloud.signal(signal.SIGKILL)
        cloud.start()


@contextlib.contextmanager
def two_clouds(folder: Path, target: str = TARGET, *flags: str) -> Iterator[list[DaemonProcess]]:
    """Two that serve the same; each comes back where it was when it is started again."""
    with contextlib.ExitStack() as stack:
        clouds = []
        for name in ("one", "two"):
            place = folder / name
            place.mkdir()
            clouds.append(
                stack.enter_context(running_cloud(place, target, "--context-tokens", "1024", *flags))
            )
        for cloud in clouds:
            cloud.flags[cloud.flags.index("--listen") + 1] = address_of(cloud)
        yield clouds


@contextlib.contextmanager
def connected(
    folder: Path,
    clouds: list[DaemonProcess],
    addresses: list[str],
    draft: Sequence[str] = ("--model", DRAFT),
    module: str = "ecd",
    **settings: Any,
) -> Iterator[System]:
    """An edge that has the clouds at these addresses."""
    config = folder / "edge.yaml"
    config.write_text(json.dumps({"clouds": addresses, **settings}))
    edge = DaemonProcess("edge", [*draft, "--no-http", "--config", str(config)], folder, module)
    try:
        edge.start()
        yield System(edge, clouds, addresses)
    finally:
        edge.stop()


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with (
        two_clouds(tmp_path) as clouds,
        connected(tmp_path, clouds, [address_of(cloud) for cloud in clouds]) as made,
    ):
        made.wait_until_ready()
        yield made


async def until_all_have_begun(client: Client, answers: int) -> None:
    while True:
        sessions = (await client.call("sessions"))["sessions"]
        if len(sessions) == answers and all(session["completion_tokens"] > 2 for session in sessions):
            return
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["killed", "drained"])
async def test_answers_go_on_at_the_other_cloud(system: System, target: LlamaModel, how: str) -> None:
    requests = [request_of(prompt, temperature, 64) for prompt in PROMPTS for temperature in (0.0, 0.8)]
    async with Client(system.edge.socket) as client:
        answers = [asyncio.create_task(run(client, request)) for request in requests]
        await until_all_have_begun(client, len(requests))
        status = await asyncio.to_thread(system.status)
        assert [each["running"] for each in status.values()] == [3, 3], "equal clouds share equally"
        match how:
            case "killed":
                await asyncio.to_thread(system.kill_and_restart, 0)
            case "drained":
                # Its answers leave at once, so that it ends long before `drain_s`.
                assert await asyncio.to_thread(system.clouds[0].signal, signal.SIGTERM) == 0
        runs = await asyncio.gather(*answers)
    assert [each.result["token_ids"] for each in runs] == [alone(target, request) for request in requests]
    assert sum(each.moved for each in runs) == 3


async def test_answers_leave_a_cloud_that_falls_silent(tmp_path: Path, target: LlamaModel) -> None:
    """Its link stalls for longer than the test takes, and no connection ends."""
    requests = [request_of(prompt, 0.8, 64) for prompt in PROMPTS] * 2
    with two_clouds(tmp_path) as clouds:
        (host, port), other = split_address(address_of(clouds[0])), address_of(clouds[1])
        keepalive = {"ping_interval_s": 0.2, "silence_s": 30}
        async with EmulatedLink(host, port, Conditions()) as link:
            addresses = [f"{link.host}:{link.port}", other]
            with connected(tmp_path, clouds, addresses, keepalive=keepalive) as system:
                await asyncio.to_thread(system.wait_until_ready)
                async with Client(system.edge.socket) as client:
                    answers = [asyncio.create_task(run(client, request)) for request in requests]
                    await until_all_have_begun(client, len(requests))
                    link.stall(60)
                    runs = await asyncio.gather(*answers)
                    standings = [
                        each["standing"] for each in (await asyncio.to_thread(system.status)).values()
                    ]
    assert [each.result["token_ids"] for each in runs] == [alone(target, request) for request in requests]
    assert sum(each.moved for each in runs) == 3
    assert standings == ["quiet", "ready"]


@pytest.mark.slow
async def test_200_answers_while_a_cloud_is_killed_every_20_s(tmp_path: Path) -> None:
    """Killed where most answers run, and started again; no answer fails, waits long or has another text.

    The target is a recorded one, at the pace of an accelerator, so that pauses are not those of a busy CPU.
    """
    recordings = load_trace(find_file("traces", TRACE)).recordings
    left = itertools.islice(itertools.cycle(recordings), 200)
    runs: list[Run] = []
    kills = 0

    async def kill_forever(system: System) -> None:
        nonlocal kills
        while True:
            await asyncio.sleep(20)
            await asyncio.to_thread(system.wait_until_ready)
            await asyncio.to_thread(lambda: system.kill_and_restart(system.busier()))
            kills += 1

    async def ask(client: Client) -> None:
        for recording in left:
            made = await run(client, request_of(recording.prompt, 0.0, len(recording.target_ids)))
            assert made.result["token_ids"] == list(recording.target_ids)
            runs.append(made)

    with (
        two_clouds(tmp_path, f"replay:{TRACE}", "--step-ms", "80") as clouds,
        connected(
            tmp_path,
            clouds,
            [address_of(cloud) for cloud in clouds],
            ["--trace", TRACE, "--draft-ms", "15"],
            module="ecd.lab.replay",
        ) as system,
    ):
        await asyncio.to_thread(system.wait_until_ready)
        async with Client(system.edge.socket) as client:
            killing = asyncio.create_task(kill_forever(system))
            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(ask(client))
            killing.cancel()
    moved = [each.pause_s for each in runs if each.moved]
    assert len(runs) == 200
    assert kills > 0
    assert len(moved) > 1
    p95, overall = (quantiles(pauses, n=20)[-1] for pauses in (moved, [each.pause_s for each in runs]))
    print(
        f"{kills} kills, {len(moved)} answers moved; their longest pauses: most {max(moved):.3f} s, "
        f"p95 {p95:.3f} s; p95 of all {overall:.3f} s"
    )
    assert p95 < PAUSE_S
    assert overall < PAUSE_S


async def test_a_cloud_with_another_model_is_left_out(system: System, tmp_path: Path) -> None:
    """A cloud comes back with another model of the same tokenizer: nothing goes there, and both are told."""
    cloud = system.clouds[1]
    cloud.stop()
    cloud.flags[cloud.flags.index(TARGET)] = DRAFT
    cloud.start()
    edge = await asyncio.to_thread(
        system.edge.wait, lambda status: status["clouds"][system.addresses[1]]["refused"]
    )
    reason = edge["clouds"][system.addresses[1]]["reason"]
    assert f"this cloud serves '{DRAFT}', and this edge's clouds serve '{TARGET}'; it is left out" in reason
    assert reason in cloud.log.read_text()
    async with Client(system.edge.socket) as client:
        for _ in range(4):
            assert (await client.call("run", prompt=PROMPTS[0], max_tokens=3))["model"] == TARGET
