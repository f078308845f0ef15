"""The emulated link: a TCP relay on loopback that delays, throttles, stalls, cuts, loses and corrupts.

Owns the listening socket and the timers; what is wrong with the network, and when, is `ecd.lab.lane`'s, and a
connection's two sockets are `ecd.lab.relay`'s. Nothing here may know what the bytes mean: no frames, no
protocol, nothing of the edge or the cloud.
"""

import asyncio
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Self, assert_never

import click
import uvloop

from ecd.errors import EcdError, LinkError
from ecd.lab.lane import (
    NOTHING_PLANNED,
    Conditions,
    Cut,
    CutAt,
    Direction,
    HalfOpen,
    HalfOpenAt,
    Lane,
    Refuse,
    Schedule,
    Stall,
)
from ecd.lab.relay import Refused, Side


@dataclass(frozen=True, slots=True)
class LinkStats:
    """What a link has done since its start; up and down are what it delivered, `queued_bytes` wait now."""

    connections: int
    refused: int
    cuts: int
    up_bytes: int
    up_chunks: int
    down_bytes: int
    down_chunks: int
    swallowed_bytes: int
    corruptions: int
    queued_bytes: int


class EmulatedLink:
    """A relay from a loopback port of its own to `host`:`port`, open inside `async with`.

    `conditions` hold for each connection on its own, `schedule` counts its times from the start, and `seed`
    fixes all that is drawn. Entering raises LinkError if the relay cannot listen on `listen`. Connections
    still open at the end are reset. Connecting itself takes no emulated time: the relay accepts at once.
    """

    def __init__(
        self,
        host: str,
        port: int,
        conditions: Conditions,
        *,
        schedule: Schedule = NOTHING_PLANNED,
        seed: int = 0,
        listen: tuple[str, int] = ("127.0.0.1", 0),
    ):
        self.host, self.port = listen  # once entered, where the relay really listens
        self._upstream = (host, port)
        self._conditions = conditions
        self._schedule = schedule
        self._rng = random.Random(seed)
        self._tally: Counter[str] = Counter()
        self._sides: set[Side] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._black_hole = False
        self._held_until_s = 0.0

    async def __aenter__(self) -> Self:
        self._start_s = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, self.host, self.port)
        except OSError as error:
            raise LinkError(f"the emulated link cannot listen on {self.host}:{self.port}: {error}") from error
        self.host, self.port = self._server.sockets[0].getsockname()[:2]
        for event in self._schedule.events:
            match event:
                case Stall():
                    self._timers.append(loop.call_later(event.at_s, self.stall, event.for_s))
                case CutAt():
                    self._timers.append(loop.call_later(event.at_s, self.cut))
                case HalfOpenAt():
                    self._timers.append(loop.call_later(event.at_s, self._kill_open))
                case Cut() | HalfOpen() | Refuse():
                    pass  # looked up when a connection comes
                case unreachable:
                    assert_never(unreachable)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for timer in self._timers:
            timer.cancel()
        for dial in self._dials:
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        for side in self._sides:
            side.drop()
        await self._server.wait_closed()

    @property
    def stats(self) -> LinkStats:
        """The counts up to now."""
        counts = {field.name: self._tally[field.name] for field in fields(LinkStats)}
        return LinkStats(**counts | {"queued_bytes": sum(lane.queued_bytes for lane in self._lanes())})

    def set(self, conditions: Conditions) -> None:
        """Change the conditions for all that enters the link from now on."""
        self._conditions = conditions
        for lane in self._lanes():
            lane.conditions = conditions

    def cut(self) -> None:
        """Reset every open connection at once; bytes under way are lost."""
        for side in self._sides:
            if not side.closed:
                self._tally["cuts"] += 1
                side.drop()

    def stall(self, for_s: float) -> None:
        """Deliver nothing for `for_s` seconds; what is under way arrives that much later."""
        now_s = time.monotonic()
        self._held_until_s = max(self._held_until_s, now_s + for_s)
        for lane in self._lanes():
            lane.hold(now_s, self._held_until_s)

    def corrupt(self) -> None:
        """Overwrite what is delivered next, each way of every open connection, with bytes of 255."""
        for lane in self._lanes():
            self._tally["corruptions"] += not lane.corrupting
            lane.corrupting = True

    def black_hole(self) -> None:
        """Swallow everything on open and new connections, closing none, until `restore`."""
        self._black_hole = True
        self._kill_open()

    def restore(self) -> None:
        """End every half-open death; connections that lost bytes by it are reset, the others live on."""
        self._black_hole = False
        for side in self._sides:
            if side.lane.swallowing:
                side.revive()

    def _kill_open(self) -> None:
        for side in tuple(self._sides):
            side.die()

    def _lanes(self) -> frozenset[Lane]:
        return frozenset(lane for side in self._sides for lane in (side.lane, side.peer.lane))

    def _accept(self) -> asyncio.Protocol:
        now_s = time.monotonic()
        if self._schedule.refuses(now_s - self._start_s):
            self._tally["refused"] += 1
            return Refused()
        connection = self._tally["connections"]
        self._tally["connections"] += 1
        client, upstream = (
            Side(
                direction,
                # a source of its own for each lane, or the timing of one would change the draws of another
                Lane(
                    self._conditions,
                    random.Random(self._rng.getrandbits(64)),
                    self._schedule.stop(connection, direction),
                ),
                self._sides,
                self._tally,
            )
            for direction in (Direction.DOWN, Direction.UP)
        )
        client.peer, upstream.peer = upstream, client
        for lane in (client.lane, upstream.lane):
            lane.hold(now_s, self._held_until_s)
            if self._black_hole:
                lane.swallow()
        dial = asyncio.get_running_loop().create_task(self._dial(upstream))
        self._dials.add(dial)
        dial.add_done_callback(self._dials.discard)
        return client

    async def _dial(self, upstream: Side) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: upstream, *self._upstream)
        except OSError:
            upstream.drop()


def _address(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 1 << 16):
        raise click.BadParameter(f"{value!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


@click.command()
@click.option("--listen", default="127.0.0.1:0", callback=_address, help="HOST:PORT; any port by default.")
@click.option("--to", "upstream", required=True, callback=_address, help="HOST:PORT to relay to.")
@click.option("--delay-ms", default=0.0, show_default=True, help="One way; the round trip is twice this.")
@click.option("--jitter-ms", default=0.0, show_default=True, help="Added to the delay, from 0 to this.")
@click.option("--bandwidth-mbit", default=0.0, show_default=True, help="Mbit/s each way, 0 for no limit.")
@click.option("--seed", default=0, show_default=True, help="Fixes the jitter.")
def main(
    listen: tuple[str, int],
    upstream: tuple[str, int],
    delay_ms: float,
    jitter_ms: float,
    bandwidth_mbit: float,
    seed: int,
) -> None:
    """Relay TCP through an emulated network until SIGINT or SIGTERM."""

    async def serve() -> None:
        conditions = Conditions(delay_ms / 1e3, jitter_ms / 1e3, bandwidth_mbit * 1e6)
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        async with EmulatedLink(*upstream, conditions, seed=seed, listen=listen) as link:
            click.echo(f"listening on {link.host}:{link.port}")
            await stopped.wait()

    try:
        uvloop.run(serve())
    except EcdError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
