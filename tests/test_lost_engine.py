"""A cloud whose engine is lost while answers run: it stays up, and edges go on from what is committed."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ecd.client import BlockingClient, Client
from ecd.engine.llama import LlamaModel
from ecd.errors import Code, RemoteError
from ecd.lab.system import DaemonProcess, address_of, running_edge
from ecd.oracle import generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Sampling

PROMPTS = ("Write a Python function that reverses a list.", "Tell me about the sea.")
TEMPERATURES = (0.0, 0.8)
MAX_TOKENS = 40


@contextlib.contextmanager
def failing_cloud(folder: Path, lost_at: int, times: int = 1) -> Iterator[DaemonProcess]:
    """A cloud on the small target that loses its engine in step `lost_at` and in `times` steps in all."""
    losses = ["--lost-at", str(lost_at), "--times", str(times)]
    flags = ["--model", "smollm2-135m", "--listen", "127.0.0.1:0", *losses]
    daemon = DaemonProcess("cloud", flags, folder, module="tests.failing_cloud")
    try:
        daemon.start()
        daemon.wait(lambda status: True)
        yield daemon
    finally:
        daemon.stop()


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
        for temperature in TEMPERATURES
    ]


async def run_all(edge: DaemonProcess) -> list[dict[str, Any]]:
    async with Client(edge.socket) as client:
        return await asyncio.gather(
            *(
                client.call("run", prompt=p, temperature=t, seed=5, max_tokens=MAX_TOKENS)
                for p in PROMPTS
                for t in TEMPERATURES
            )
        )


@pytest.mark.parametrize("lost_at", [1, 4, 11])
def test_the_text_is_the_same_and_the_cloud_stays_up(
    tmp_path: Path, expected: list[list[int]], lost_at: int
) -> None:
    with (
        failing_cloud(tmp_path, lost_at) as cloud,
        running_edge(tmp_path, "smollm2-135m-draft", address_of(cloud)) as edge,
    ):
        results = asyncio.run(run_all(edge))
        assert [result["token_ids"] for result in results] == expected
        resumed = sum(result["stats"]["resumed"] for result in results)
        assert cloud.call("stats")["engine_restarts"] == 1
        # Those of the lost step were opened again, at once and on the link that never broke.
        assert 1 <= resumed == cloud.call("stats")["failed"]
        assert edge.call("stats")["link_connects"] == 1
        assert edge.call("stats")["failed"] == 0


def test_an_engine_that_is_lost_again_and_again_is_told_to_the_client(tmp_path: Path) -> None:
    with (
        failing_cloud(tmp_path, 5, times=4) as cloud,
        running_edge(tmp_path, "smollm2-135m-draft", address_of(cloud)) as edge,
        BlockingClient(edge.socket) as client,
    ):
        with pytest.raises(RemoteError, match="step 8 was told to fail") as failure:
            list(client.stream(PROMPTS[0], max_tokens=MAX_TOKENS))
        assert failure.value.code is Code.ENGINE_RESTARTED
        assert cloud.call("stats")["engine_restarts"] == 4
        # The next answer finds an engine that is well again.
        assert client.call("run", prompt=PROMPTS[1], max_tokens=4)["usage"]["completion_tokens"] == 4
