"""Large bodies: others are answered while they are worked on."""

import threading
from typing import Any

import httpx
import pytest

from ecd.edge.gateway.bodies import LARGE_BODY_BYTES, done_with
from tests.edge.gateway.instant_cloud import ByteModel, InstantCloud, serving

LARGE = "x" * (LARGE_BODY_BYTES + 1)
PATIENCE_S = 10


@pytest.mark.parametrize(
    ("path", "asked", "method"),
    [
        ("/v1/completions", {"prompt": LARGE}, "tokenize"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LARGE}]}, "tokenize"),
        ("/tokenize", {"prompt": LARGE}, "tokenize"),
        ("/detokenize", {"tokens": [65] * LARGE_BODY_BYTES}, "piece"),
    ],
)
async def test_others_are_answered_while_a_large_one_is_worked_on(
    path: str, asked: dict[str, Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    usual = getattr(ByteModel, method)

    def slow(self: ByteModel, *args: Any, **kwargs: Any) -> Any:
        begun.set()
        assert may_end.wait(PATIENCE_S)
        return usual(self, *args, **kwargs)

    async with serving(InstantCloud()) as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        monkeypatch.setattr(ByteModel, method, slow)
        answered: list[int] = []

        def other() -> None:
            begun.wait(PATIENCE_S)
            answered.append(httpx.get(f"{url}/health", timeout=PATIENCE_S).status_code)
            may_end.set()

        thread = threading.Thread(target=other)
        thread.start()
        reply = await client.post(path, json=asked)
        thread.join()
    assert answered == [200]
    # The texts are too long for the context, and then that is what is said.
    assert reply.status_code == (200 if "tokenize" in path else 400)


async def test_small_ones_are_not_sent_to_a_thread() -> None:
    assert await done_with(LARGE_BODY_BYTES, threading.get_ident) == threading.get_ident()
    assert await done_with(LARGE_BODY_BYTES + 1, threading.get_ident) != threading.get_ident()
