"""Pages between real daemons with real models: a prompt that the cloud reads for a slow edge, and an answer
that moves to another edge.
"""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ecd.client import BlockingClient
from ecd.engine.llama import LlamaModel
from ecd.lab.assist import a_prompt, measure, running_pair
from ecd.lab.system import DaemonProcess, address_of, running_edge
from ecd.oracle import generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Sampling

PROMPT = "Describe a day at the sea, hour by hour, in plain words. " * 6
TOKENS = 120


@pytest.mark.slow
def test_a_slow_edge_drafts_at_least_twice_as_early_with_the_clouds_pages(
    tmp_path: Path, target: LlamaModel
) -> None:
    asked = {"max_tokens": 500, "logit_bias": [[end, -1000.0] for end in sorted(target.eog)]}
    with running_pair(tmp_path, "smollm2-135m", "smollm2-135m-draft", (10, 1000), 20, ()) as edges:
        ready = {
            cell: measure(edge, *cell, a_prompt(1400, seed), share=0.25, asked=asked)
            for seed, (cell, edge) in enumerate(edges.items())
            if cell != (10, "null")
        }
    helped, alone, narrow = ready[1000, "q8_0"], ready[1000, "null"], ready[10, "q8_0"]
    assert helped.joined
    assert helped.ready_s is not None
    # One that is not ready when the answer ends is later than that, which only makes the claim stronger.
    assert alone.ready_s is None or 2 * helped.ready_s < alone.ready_s
    assert not narrow.joined
    assert narrow.page_bytes <= 128 << 10


def test_an_answer_moves_in_the_middle_and_its_text_is_the_targets(
    cloud: DaemonProcess, edge: DaemonProcess, target: LlamaModel, tmp_path: Path
) -> None:
    expected = generate(
        target,
        prompt_tokens(target, PROMPT, chat=True),
        Sampling.of(temperature=0.8, seed=5),
        max_tokens=TOKENS,
        stop=(),
        threads=1,
    )
    with running_edge(tmp_path, "smollm2-135m-draft", address_of(cloud)) as other:
        moved = threading.Event()

        def guessed() -> int:
            by_model: dict[str, int] = edge.call("stats")["drafters"].get("model", {"drafted": 0})
            return by_model["drafted"]

        before = guessed()
        events: list[dict[str, Any]] = []

        def migrate(number: int) -> None:
            # On a busy machine the draft may still be reading the prompt, and its cells are what is to move.
            while guessed() < before + 2:
                time.sleep(0.005)
            with BlockingClient(edge.socket) as client:
                told = client.call("migrate", id=number, to=str(other.socket))
            assert told == {"migrated": number, "to": str(other.socket)}
            moved.set()

        with BlockingClient(edge.socket) as client:
            for event in client.stream(PROMPT, temperature=0.8, seed=5, max_tokens=TOKENS):
                events.append(event)
                if len(events) == 5:
                    threading.Thread(target=migrate, args=(events[0]["id"],)).start()
        assert moved.wait(10)
        deadline = time.monotonic() + 10
        while (there := other.call("stats"))["finished"] < 1 and time.monotonic() < deadline:
            time.sleep(0.02)
    result = events[-1]
    assert result["token_ids"] == list(expected.token_ids)
    assert [token for event in events[1:-1] for token in event["ids"]] == list(expected.token_ids)
    assert "".join(event["text"] for event in events[1:-1]) == expected.text == result["text"]
    assert 0 < there["committed"] < TOKENS
    assert there["assisted"] == 1
    assert there["assisted_tokens"] > result["usage"]["prompt_tokens"]
    assert there["drafted"] > 0
