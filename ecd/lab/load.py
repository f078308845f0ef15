"""Many sessions kept busy through edges, and what reaches the client and what the daemons count meanwhile.

Owns the requests, the client's clock and the time that is looked at. What is made of it is not its business.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

from ecd.client import Client
from ecd.lab.system import DaemonProcess
from ecd.lab.trace import Trace

# Until every session has had its prompt read, the edges have learned, and the daemons are warm.
SETTLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """`new` tokens of a session reached the client at `at_s`, monotonic: tokens up to `end` of an answer.

    `answer` is the number that the edge gave it.
    """

    session: int
    answer: int
    new: int
    end: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Window:
    """What happened in `seconds`: arrivals, and how far the counters of `stats` went, all edges' together."""

    seconds: float
    cloud: Mapping[str, float]
    edges: Mapping[str, float]
    arrivals: Sequence[Arrival]


def requests(trace: Trace, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Arguments of `run` for every recorded answer, with `arguments` besides."""
    return [
        {
            "prompt": recording.prompt,
            "temperature": recording.sampling.temperature,
            "seed": recording.sampling.seed,
            "max_tokens": len(recording.target_ids),
            **arguments,
        }
        for recording in trace.recordings
    ]


@asynccontextmanager
async def busy(
    edges: Sequence[Path], sessions: int, asked: Sequence[Mapping[str, Any]]
) -> AsyncIterator[list[Arrival]]:
    """Keeps sessions busy while the context lasts, in turn on the edges with these control sockets.

    Each asks one of `asked` after the other, no two begin with the same. Arrivals are added to the list as
    they come. Raises EcdError when a request fails.
    """
    arrivals: list[Arrival] = []
    try:
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            clients = [await stack.enter_async_context(Client(edge)) for edge in edges]
            tasks = [
                group.create_task(_session(number, clients[number % len(clients)], asked, arrivals))
                for number in range(sessions)
            ]
            yield arrivals
            for task in tasks:
                task.cancel()
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _session(
    number: int, client: Client, asked: Sequence[Mapping[str, Any]], arrivals: list[Arrival]
) -> None:
    answer = end = 0
    for turn in count(number):
        async for event in client.stream(**asked[turn % len(asked)]):
            match event["event"]:
                case "started":
                    answer, end = event["id"], 0
                case "text":
                    new = len(event["ids"])
                    end += new
                    arrivals.append(Arrival(number, answer, new, end, monotonic()))


async def watch(
    cloud: DaemonProcess,
    edges: Sequence[DaemonProcess],
    sessions: int,
    asked: Sequence[Mapping[str, Any]],
    seconds: float,
) -> Window:
    """Keeps `sessions` busy and looks at them for `seconds`, once they have settled. Raises EcdError."""
    async with busy([edge.socket for edge in edges], sessions, asked) as arrivals:
        await asyncio.sleep(SETTLE_S)
        before, start = await _counts(cloud, edges), monotonic()
        await asyncio.sleep(seconds)
        after, end = await _counts(cloud, edges), monotonic()
    of_cloud, of_edges = (
        {name: later[name] - earlier[name] for name in later}
        for earlier, later in zip(before, after, strict=True)
    )
    return Window(end - start, of_cloud, of_edges, [a for a in arrivals if start <= a.at_s < end])


async def _counts(
    cloud: DaemonProcess, edges: Sequence[DaemonProcess]
) -> tuple[dict[str, float], dict[str, float]]:
    """The cloud's counters, and the sums of the edges'."""

    async def counters(daemon: DaemonProcess) -> dict[str, float]:
        # In a thread and on a connection of its own: the clients go on meanwhile.
        stats = await asyncio.to_thread(daemon.call, "stats")
        return {name: value for name, value in stats.items() if isinstance(value, int | float)}

    of_edges = [await counters(edge) for edge in edges]
    return await counters(cloud), {name: sum(each[name] for each in of_edges) for name in of_edges[0]}
