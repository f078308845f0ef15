"""Files of prompts and results, and many prompts at once; the edge is a socket with a handler."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.control import Notify, control_socket
from ecd.errors import BadRequest, Code, DaemonError, RemoteError
from ecd.terminal.batch import InOrder, Kept, Prompt, answer_all, kept, read_prompts

PROMPTS = [Prompt(1, {"prompt": "a"}), Prompt(2, {"prompt": "b"}), Prompt(4, {"prompt": "c"})]


def line(prompt: Prompt, **outcome: Any) -> bytes:
    return json.dumps({"line": prompt.line, "request": prompt.request, **outcome}).encode() + b"\n"


def results(count: int) -> bytes:
    return b"".join(line(prompt, result={"text": "x"}) for prompt in PROMPTS[:count])


def test_a_line_is_a_text_or_arguments_of_run() -> None:
    text = (
        '"Hi"\n\n{"prompt": "Ho", "seed": 4, "max_tokens": 9}\n{"prompt": [{"role": "user", "content": "?"}]}'
    )
    assert read_prompts(text, {"max_tokens": 5, "logit_bias": [(1, 2.0)]}) == [
        Prompt(1, {"prompt": "Hi", "max_tokens": 5, "logit_bias": [[1, 2.0]]}),
        Prompt(3, {"prompt": "Ho", "seed": 4, "max_tokens": 9, "logit_bias": [[1, 2.0]]}),
        Prompt(4, {"prompt": [{"role": "user", "content": "?"}], "max_tokens": 5, "logit_bias": [[1, 2.0]]}),
    ]


def test_other_ends_of_lines_are_part_of_a_text() -> None:
    assert [p.request["prompt"] for p in read_prompts('"a\u2028b\u0085"\r\n"c"\n', {})] == [
        "a\u2028b\u0085",
        "c",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"a"\n{"prompt": "b"', "line 2 is not JSON"),
        ('"a"\nhello', "line 2 is not JSON"),
        ("[1]", "line 1 is neither"),
        ('{"messages": []}', "line 1 is neither"),
        ('{"prompt": 3}', "line 1 is neither"),
        ('{"prompt": "a", "temperature": NaN}', "NaN is no number"),
        ('"\\ud800"', "line 1 cannot be sent"),
        ('{"prompt": "a", "seed": 1e400, "top_k": 99999999999999999999999}', "line 1 cannot be sent"),
        ('{"prompt": "a", "stop": ' + "[" * 5000 + "]" * 5000 + "}", "line 1 "),
        ('"' + "a" * (4 << 20) + '"', "line 1 cannot be sent"),
    ],
)
def test_lines_that_cannot_be_asked_are_named(text: str, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        read_prompts(text, {})


@pytest.mark.parametrize("count", range(4))
def test_whole_results_are_kept_and_a_torn_one_is_not(count: int) -> None:
    there = results(count)
    assert kept(there, PROMPTS) == Kept(count, 0, len(there))
    if count < len(PROMPTS):
        torn = line(PROMPTS[count], result={"text": "x"})
        for cut in range(1, len(torn)):
            assert kept(there + torn[:cut], PROMPTS) == Kept(count, 0, len(there))


def test_refusals_among_the_results_are_counted() -> None:
    there = line(PROMPTS[0], error={"code": "bad_request", "message": "no"}) + line(PROMPTS[1], result={})
    assert kept(there, PROMPTS) == Kept(2, 1, len(there))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (line(PROMPTS[1], result={}), "line 1 is not the result of prompt 1"),
        (line(Prompt(1, {"prompt": "a", "seed": 2}), result={}), "line 1 is not the result of prompt 1"),
        (results(3) + line(Prompt(5, {"prompt": "d"}), result={}), "line 4 is not the result of prompt 4"),
        (b'{"text": "x"}\n', "line 1 is not the result"),
        (b"hello\n" + results(1), "line 1 is not JSON"),
        (b"\xff\n", "line 1 is not JSON"),
        (results(1) + b"\n", "line 2 is not JSON"),
    ],
)
def test_a_file_of_something_else_is_left_alone(data: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        kept(data, PROMPTS)


@given(st.permutations(range(8)))
def test_records_come_out_in_order_and_as_soon_as_they_can(order: list[int]) -> None:
    queue, out = InOrder(), []
    for seen, number in enumerate(order, start=1):
        out += [record["number"] for record in queue.add(number, {"number": number})]
        there = set(order[:seen])
        assert out == list(range(next(n for n in range(9) if n not in there)))
        assert queue.due == len(out)


Answer = Callable[[dict[str, Any], Notify], Any]


@asynccontextmanager
async def edge(folder: Path, run: Answer) -> AsyncIterator[Path]:
    path = folder / "edge.sock"
    async with control_socket(path, {"run": run}):
        yield path


async def test_prompts_are_asked_several_at_a_time_and_no_more(tmp_path: Path) -> None:
    running, most, full = 0, 0, asyncio.Event()

    async def run(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        await full.wait()
        # So that others would begin now if they could.
        await asyncio.sleep(0.01)
        running -= 1
        return {"text": args["prompt"].upper()}

    records: dict[int, Any] = {}
    prompts = [Prompt(n + 1, {"prompt": f"p{n}"}) for n in range(10)]
    async with edge(tmp_path, run) as path:
        await answer_all(path, prompts, 3, records.__setitem__)
    assert most == 3
    assert records == {
        n: {"line": n + 1, "request": {"prompt": f"p{n}"}, "result": {"text": f"P{n}"}} for n in range(10)
    }


async def test_a_refused_prompt_has_its_reason_and_the_others_go_on(tmp_path: Path) -> None:
    async def run(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        if args["prompt"] == "b":
            raise BadRequest("stop: each stop string needs 1 to 256 characters")
        return {}

    records: dict[int, Any] = {}
    async with edge(tmp_path, run) as path:
        await answer_all(path, PROMPTS, 2, records.__setitem__)
    assert records[1]["error"] == {
        "code": "bad_request",
        "message": "stop: each stop string needs 1 to 256 characters",
    }
    assert "result" in records[0]
    assert "result" in records[2]


@pytest.mark.parametrize("code", [Code.BUSY, Code.DRAINING, Code.CANCELLED, Code.UNAVAILABLE])
async def test_a_daemon_that_cannot_go_on_ends_the_batch(tmp_path: Path, code: Code) -> None:
    ended = asyncio.Event()

    async def run(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        if args["prompt"] == "b":
            raise RemoteError(code, "not now")
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    records: dict[int, Any] = {}
    async with edge(tmp_path, run) as path:
        with pytest.raises(RemoteError, match="not now"):
            await answer_all(path, PROMPTS, 2, records.__setitem__)
        await asyncio.wait_for(ended.wait(), 10)
    assert records == {}


async def test_no_daemon_is_told(tmp_path: Path) -> None:
    with pytest.raises(DaemonError, match="no daemon answers"):
        await answer_all(tmp_path / "no.sock", PROMPTS, 2, lambda index, record: None)
