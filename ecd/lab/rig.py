"""One cloud, and for each round-trip time an emulated link and an edge behind it, all on this machine.

Owns what runs while a benchmark does: daemons in processes of their own, and the links in a thread, which
only wait and copy. What is asked of the edges is not its business.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from ecd.lab.lane import Conditions
from ecd.lab.link import EmulatedLink
from ecd.lab.runs import Campaign
from ecd.lab.system import DaemonProcess, address_of, running_cloud, running_edge

STALL_EVERY_S = 5.0
STALL_S = 0.3


@dataclass(frozen=True, slots=True)
class Daemons:
    """What to start: the models, of which either may be `replay:TRACE`, and further flags of each daemon."""

    target: str
    draft: str
    cloud_flags: tuple[str, ...] = ()
    edge_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rig:
    """The running system; `edges` by round-trip time in ms."""

    cloud: DaemonProcess
    edges: dict[float, DaemonProcess]


@contextlib.contextmanager
def running_rig(folder: Path, daemons: Daemons, campaign: Campaign) -> Iterator[Rig]:
    """Starts all of it, and stops it at the end. Raises DaemonError for what did not start."""
    with contextlib.ExitStack() as stack:
        cloud = stack.enter_context(running_cloud(folder, daemons.target, *daemons.cloud_flags))
        host, _, port = address_of(cloud).rpartition(":")
        addresses = stack.enter_context(running_links((host, int(port)), campaign))
        edges = {}
        for rtt_ms, address in zip(campaign.rtts_ms, addresses, strict=True):
            place = folder / f"rtt-{rtt_ms:g}"
            place.mkdir()
            edges[rtt_ms] = stack.enter_context(
                running_edge(place, daemons.draft, address, *daemons.edge_flags)
            )
        yield Rig(cloud, edges)


@contextlib.contextmanager
def running_links(upstream: tuple[str, int], campaign: Campaign) -> Iterator[list[str]]:
    """Relays in a thread while the context lasts, one for each round-trip time; their addresses."""
    jitter_s = campaign.jitter_ms / 1000
    conditions = [Conditions(rtt_ms / 2000, jitter_s) for rtt_ms in campaign.rtts_ms]
    with relaying(upstream, conditions, seed=campaign.seed, stalls=campaign.stalls) as addresses:
        yield addresses


@contextlib.contextmanager
def relaying(
    upstream: tuple[str, int], conditions: Sequence[Conditions], *, seed: int = 0, stalls: bool = False
) -> Iterator[list[str]]:
    """Relays in a thread while the context lasts, one for each of the conditions; their addresses."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="links", daemon=True)
    thread.start()
    stack = contextlib.AsyncExitStack()

    async def open_links() -> list[str]:
        links = [
            await stack.enter_async_context(EmulatedLink(*upstream, each, seed=seed + number))
            for number, each in enumerate(conditions)
        ]
        if stalls:
            task = asyncio.create_task(_stall_forever(links))
            stack.callback(task.cancel)
        return [f"{link.host}:{link.port}" for link in links]

    try:
        yield asyncio.run_coroutine_threadsafe(open_links(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _stall_forever(links: Sequence[EmulatedLink]) -> None:
    while True:
        await asyncio.sleep(STALL_EVERY_S)
        for link in links:
            link.stall(STALL_S)
