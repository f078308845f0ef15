"""Running an ablation: a pair of daemons for each condition, conversations one at a time, answers measured.

Owns what is started and when the clock is read. Knows no statistics; what an answer is worth others say.

Each condition has daemons of its own, also where only requests differ: else what one has read would be found
in its caches by the next. Each repeat has new ones, with empty caches. While one pair answers, all others
are idle, and so it is itself before it is asked again: a cloud reads answers that are over once more.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ecd.client import BlockingClient
from ecd.errors import DaemonError, EcdError
from ecd.lab.ablation.conditions import Condition, Settings
from ecd.lab.ablation.conversations import Conversation
from ecd.lab.ablation.judging import is_right
from ecd.lab.ablation.records import Answer, Asked, Exchange
from ecd.lab.lane import Conditions as LinkConditions
from ecd.lab.rig import relaying
from ecd.lab.runs import Reception
from ecd.lab.system import DaemonProcess, address_of, running_cloud, running_edge

WARM_UP_PROMPT = "Count from one to twenty, in words."
WARM_UP_TOKENS = 32
POLL_S, IDLE_WAIT_S, WATCH_S = 0.05, 60.0, 1.0
NOT_ASKED = "not asked, since the turn before it failed"


@dataclass(frozen=True, slots=True)
class Pair:
    """Both daemons of a condition, and the arguments of its requests."""

    cloud: DaemonProcess
    edge: DaemonProcess
    request: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Counts:
    """Of a pair since its start: the cloud's `sessions` and `forwards`, whatever these were for, and how many
    of the edge's tokens the cloud `audited` and would have said too (`agreed`).
    """

    sessions: int
    forwards: int
    audited: int
    agreed: int

    def __sub__(self, before: "Counts") -> "Counts":
        return Counts(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


@contextlib.contextmanager
def running_pairs(folder: Path, conditions: Sequence[Condition], rtt_ms: float) -> Iterator[dict[str, Pair]]:
    """A pair for each condition while the context lasts, each with an emulated link of this round-trip time.

    All have answered a request to warm up. Raises EcdError for what does not start or answer.
    """
    starting = [_running(folder / condition.name, condition, rtt_ms) for condition in conditions]
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(os.cpu_count(), "starting") as pool:
            pairs = list(pool.map(stack.enter_context, starting))
        for pair in pairs:
            _warm_up(pair)
        yield {condition.name: pair for condition, pair in zip(conditions, pairs, strict=True)}


@contextlib.contextmanager
def _running(place: Path, condition: Condition, rtt_ms: float) -> Iterator[Pair]:
    cloud_settings, edge_settings = condition.given["cloud"], condition.given["edge"]
    place.mkdir()
    with contextlib.ExitStack() as stack:
        cloud = stack.enter_context(
            running_cloud(place, str(cloud_settings["model"]), *_flags(place, "cloud", cloud_settings))
        )
        host, _, port = address_of(cloud).rpartition(":")
        (address,) = stack.enter_context(relaying((host, int(port)), [LinkConditions(rtt_ms / 2000, 0.0)]))
        edge = stack.enter_context(
            running_edge(place, str(edge_settings["model"]), address, *_flags(place, "edge", edge_settings))
        )
        stack.enter_context(_ending_with(cloud, edge))
        yield Pair(cloud, edge, condition.given["request"])


@contextlib.contextmanager
def _ending_with(cloud: DaemonProcess, edge: DaemonProcess) -> Iterator[None]:
    """While the context lasts the edge ends when its cloud has: else an answer would wait for it for good."""
    over = threading.Event()

    def watch() -> None:
        assert cloud.process is not None
        assert edge.process is not None
        while not over.wait(WATCH_S):
            if cloud.process.poll() is not None:
                edge.process.kill()
                return

    thread = threading.Thread(target=watch, name="watching a cloud", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _flags(place: Path, role: str, settings: Settings) -> tuple[str, str]:
    """A settings file for a daemon; what it keeps on a disk lies beside it and is its own."""
    cache = settings.get("kv_cache")
    if isinstance(cache, dict) and cache.get("disk"):
        disk = {**cache["disk"], "path": str(place / f"{role}-kv")}
        settings = {**settings, "kv_cache": {**cache, "disk": disk}}
    file = place / f"{role}.yaml"
    file.write_text(yaml.safe_dump(settings))
    return ("--config", str(file))


def _warm_up(pair: Pair) -> None:
    asked = {**pair.request, "max_tokens": WARM_UP_TOKENS, "kv_cache": False}
    with BlockingClient(pair.edge.socket) as client:
        for _ in client.stream(WARM_UP_PROMPT, **asked):
            pass
    wait_until_idle(pair)


def wait_until_idle(pair: Pair, sessions: int = 0) -> Counts:
    """The counts when neither daemon has anything left to do, or when that takes too long.

    `sessions`: so many the edge has opened; the last may still be on its way to an idle cloud, which keeps it
    until the edge has been told of all comparisons. Raises DaemonError where a daemon is gone.
    """
    deadline_s = time.monotonic() + IDLE_WAIT_S
    while True:
        cloud, edge = _stats(pair.cloud), _stats(pair.edge)
        confident = edge["confident"]
        counts = Counts(cloud["sessions"], cloud["forwards"], confident["audited"], confident["agreed"])
        idle = cloud["idle"] and counts.sessions >= sessions and not edge["running"]
        if idle or time.monotonic() > deadline_s:
            return counts
        time.sleep(POLL_S)


def _stats(daemon: DaemonProcess) -> dict[str, Any]:
    try:
        return daemon.call("stats")
    except (DaemonError, OSError) as e:
        daemon.check_runs()
        raise DaemonError(f"`ecd {daemon.role}` does not answer: {e}") from None


# Of the result of `run`: how many of its tokens are the target's own; None where that cannot be told.
Agreed = Callable[[dict[str, Any]], int | None]


def converse(pair: Pair, asked: Asked, conversation: Conversation, agreed: Agreed) -> Exchange:
    """Has one conversation; a turn that fails is kept as such, and so are those after it.

    Raises DaemonError where a daemon is gone: that is no answer of the condition.
    """
    messages = conversation.opening
    answers: list[Answer] = []
    for turn in conversation.turns:
        messages = [*messages, {"role": "user", "content": turn.content}]
        if answers and answers[-1].error:
            answers.append(Answer(error=NOT_ASKED))
            continue
        before = wait_until_idle(pair)
        try:
            answer, result = _answered(pair, messages)
        except (EcdError, OSError) as e:
            wait_until_idle(pair)
            answers.append(Answer(error=str(e) or type(e).__name__))
            continue
        # Nothing else is asked of the pair, so what it does until it is idle is for this answer.
        counted = wait_until_idle(pair, before.sessions + (answer.wire_bytes > 0)) - before
        answer = replace(
            answer, forwards=counted.forwards, audited=counted.audited, audits_agreed=counted.agreed
        )
        right = None if turn.check is None else is_right(turn.check, answer.text)
        answers.append(replace(answer, agreed=agreed(result), right=right))
        messages = [*messages, {"role": "assistant", "content": answer.text}]
    return Exchange(asked, tuple(answers))


def _answered(pair: Pair, messages: list[dict[str, str]]) -> tuple[Answer, dict[str, Any]]:
    """An answer without what is counted only after its end, and the result that it is from."""
    reception, result = Reception(), dict[str, Any]()
    with BlockingClient(pair.edge.socket) as client:
        started_s = time.perf_counter()
        for event in client.stream(messages, **pair.request):
            match event["event"]:
                case "text":
                    reception.text(time.perf_counter() - started_s, len(event["ids"]))
                case "done":
                    result = event
        latency_s = time.perf_counter() - started_s
    if not reception.at_s:
        raise DaemonError("the answer had no text")
    seen, stats = reception.numbers(), result["stats"]
    answer = Answer(
        text=result["text"],
        finish_reason=result["finish_reason"],
        token_ids=tuple(result["token_ids"]),
        prompt_tokens=result["usage"]["prompt_tokens"],
        latency_ms=1000 * latency_s,
        ttft_ms=seen["ttft_ms"],
        decoded=seen["decoded"],
        decode_ms=seen["decode_ms"],
        wire_bytes=stats["wire_bytes_up"] + stats["wire_bytes_down"],
        edge_tokens=sum(origin.startswith("edge-") for origin in result["origins"]),
        **{
            name: stats[name]
            for name in (
                "drafted", "most_ahead", "verified", "accepted", "prefill_tokens", "cached_tokens",
                "draft_prefill_tokens", "draft_cached_tokens",
            )
        },
    )  # fmt: skip
    return answer, result
