"""What becomes of an answer whose only cloud dies: it waits, fails or goes on from the draft, as asked."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from ecd.client import Client
from ecd.engine.llama import LlamaModel
from ecd.errors import RemoteError
from ecd.lab.system import address_of, running_cloud, running_edge
from ecd.oracle import TOLERANCE, check
from ecd.prompt import prompt_tokens

PROMPT = "Tell me about the sea."
MAX_TOKENS = 120


async def until_shown(events: list[dict[str, Any]], origin: str, tokens: int) -> None:
    while sum(event["origins"].count(origin) for event in events) < tokens:
        await asyncio.sleep(0.005)


async def stream(client: Client, events: list[dict[str, Any]], **args: Any) -> dict[str, Any]:
    """The result; what was shown until then is in `events`."""
    async for event in client.stream(PROMPT, **args):
        if event["event"] == "text":
            events.append(event)
        elif event["event"] == "done":
            return event
    raise AssertionError


@pytest.mark.parametrize("temperature", [0.0, 0.8])
async def test_the_draft_goes_on_alone_and_the_target_from_there(
    tmp_path: Path, target: LlamaModel, draft: LlamaModel, temperature: float
) -> None:
    asked = {
        "temperature": temperature,
        "seed": 5,
        "max_tokens": MAX_TOKENS,
        "link_loss": "degrade",
        # So that the text does not end before the cloud is back.
        "logit_bias": [[token, -100.0] for token in sorted(target.eog)],
    }
    config = tmp_path / "edge.yaml"
    config.write_text("link_grace_s: 0.2\nreconnect: {first_s: 0.05, longest_s: 0.2}\n")
    with (
        running_cloud(tmp_path, "smollm2-135m") as cloud,
        running_edge(tmp_path, "smollm2-135m-draft", address_of(cloud), "--config", str(config)) as edge,
    ):
        cloud.flags[cloud.flags.index("--listen") + 1] = address_of(cloud)
        async with Client(edge.socket) as client:
            events: list[dict[str, Any]] = []
            answer = asyncio.create_task(stream(client, events, **asked))
            await until_shown(events, "target", 3)
            await asyncio.to_thread(cloud.signal, signal.SIGKILL)
            await until_shown(events, "edge-offline", 8)
            shown = [token for event in events for token in event["ids"]]
            # Nor may the draft get there first, however long the cloud takes to start.
            assert edge.process is not None
            edge.process.send_signal(signal.SIGSTOP)
            cloud.start()
            await asyncio.to_thread(cloud.wait, lambda status: True)
            edge.process.send_signal(signal.SIGCONT)
            result = await answer
        ids, origins = result["token_ids"], result["origins"]
        assert ids[: len(shown)] == shown, "what was shown is never changed"
        assert [token for event in events for token in event["ids"]] == ids
        first, last = origins.index("edge-offline"), len(origins) - 1 - origins[::-1].index("edge-offline")
        assert set(origins[first : last + 1]) == {"edge-offline"}
        assert last + 1 < len(ids), "the cloud was back before the end"
        prompt = list(prompt_tokens(target, PROMPT, chat=True))
        # Each token is its model's choice behind all that was shown before. The draft's context is not one of
        # the exact kind, so that of its choices about one in 200 is beyond the tolerance.
        for model, is_offline, share in ((target, False, 1.0), (draft, True, 0.9)):
            run = {**result, "prompt_token_ids": prompt}
            checks = check(model, run, tolerance=TOLERANCE, threads=1).checks
            gaps = [
                c.gap for c, o in zip(checks, origins, strict=True) if (o == "edge-offline") is is_offline
            ]
            assert sum(gap <= TOLERANCE for gap in gaps) >= share * len(gaps)


async def test_an_answer_that_is_to_fail_does_so_when_its_cloud_dies(tmp_path: Path) -> None:
    with (
        running_cloud(tmp_path, "smollm2-135m") as cloud,
        running_edge(tmp_path, "smollm2-135m-draft", address_of(cloud)) as edge,
    ):
        async with Client(edge.socket) as client:
            events: list[dict[str, Any]] = []
            asked = {"max_tokens": MAX_TOKENS, "link_loss": "fail"}
            answer = asyncio.create_task(stream(client, events, **asked))
            await until_shown(events, "target", 3)
            await asyncio.to_thread(cloud.signal, signal.SIGKILL)
            with pytest.raises(RemoteError, match=r"no link to the cloud: the connection to .* was lost"):
                await answer
            with pytest.raises(RemoteError, match="no link to the cloud"):
                await client.call("run", prompt=PROMPT, link_loss="fail")
            assert (await client.call("stats"))["failed"] == 2
