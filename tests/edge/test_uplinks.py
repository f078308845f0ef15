"""Links to several clouds over real sockets: names with many addresses, another model, clouds that go."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from ecd.edge import uplinks as module
from ecd.edge.fleet import Standing
from ecd.edge.uplink import Backoff, LinkState, Uplink
from ecd.edge.uplinks import Place, Uplinks
from ecd.errors import Code
from ecd.wire.connection import Closed, Connected, Connection, Event, Role, Settings
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.link import Link

FINGERPRINT = Fingerprint(1000, "aa", {"bos": 1}, "bpe", "bb")
EDGE = Settings(Role.EDGE, "edge under test", FINGERPRINT)
NAME = "clouds.test"
NEED = 100
LIMIT_S = 10.0


class Cloud:
    """A listening cloud that only shakes hands; `events` is what happened on its connections."""

    def __init__(self, model: str = "m"):
        self.links: list[Link] = []
        self.events: list[Event] = []
        self.port = 0
        self._settings = Settings(Role.CLOUD, "cloud", FINGERPRINT, {"max_context": 4096}, {"name": model})
        self._server: asyncio.Server | None = None

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> "Cloud":
        self._server = await asyncio.get_running_loop().create_server(self._accept, host, port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def _accept(self) -> Link:
        connection = Connection(self._settings, asyncio.get_running_loop().time())
        self.links.append(Link(connection, lambda link, event: self.events.append(event)))
        return self.links[-1]

    def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for link in self.links:
            link.abort()


@contextlib.asynccontextmanager
async def kept(*places: Place, on_event: Callable[[Uplink, Event], None]) -> AsyncIterator[Uplinks]:
    uplinks = Uplinks(places, EDGE, Backoff(0.01, 0.02), on_event, lambda: False)
    keeping = asyncio.create_task(uplinks.keep())
    try:
        async with asyncio.timeout(LIMIT_S):
            yield uplinks
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


class Noted:
    """Events of the links, and a way to wait for what follows from them."""

    def __init__(self) -> None:
        self.all: list[tuple[str, Event]] = []
        self._more = asyncio.Event()

    def __call__(self, uplink: Uplink, event: Event) -> None:
        self.all.append((uplink.key, event))
        self._more.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await self._more.wait()


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What NAME has for addresses; none: it cannot be looked up. Looked up again and again."""
    found: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> Sequence[Any]:
        if host != NAME:
            return real(host, port, *args, **kwargs)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(module, "LOOK_UP_S", 0.01)
    return found


async def test_every_address_of_a_name_is_a_cloud_as_long_as_the_name_has_it(addresses: list[str]) -> None:
    noted = Noted()
    one = await Cloud().listen("127.0.0.1")
    other = await Cloud().listen("127.0.0.2", one.port)
    place = Place(NAME, one.port, 2.0, each=True)
    try:
        async with kept(place, on_event=noted) as uplinks:
            await noted.until(lambda: uplinks.reason.startswith(f"cannot look up {NAME}: Name or service"))
            assert uplinks.choose(NEED) is None
            assert uplinks.shown is None
            addresses[:] = ["127.0.0.1", "127.0.0.2", "127.0.0.1"]
            await noted.until(lambda: sum(uplink.link is not None for uplink in uplinks) == 2)
            assert {u.key for u in uplinks} == {f"127.0.0.{n}:{one.port}" for n in (1, 2)}
            assert uplinks.fleet.members[f"127.0.0.2:{one.port}"].weight == 2.0
            (leaving,) = (u for u in uplinks if u.host == "127.0.0.2")
            assert leaving.link is not None
            stream = leaving.link.connection.new_stream()
            bytes_before = uplinks.wire_bytes
            addresses[:] = ["127.0.0.1"]
            await noted.until(lambda: uplinks.standing(leaving) is Standing.LEAVING)
            chosen = uplinks.choose(NEED)
            assert chosen is not None
            assert chosen.host == "127.0.0.1"
            # Something runs there still.
            assert len(list(uplinks)) == 2
            leaving.link.connection.streams.discard(stream)
            await noted.until(lambda: len(list(uplinks)) == 1)
            await noted.until(lambda: leaving.link is None)
            assert uplinks.connects == 2
            assert all(now >= then for now, then in zip(uplinks.wire_bytes, bytes_before, strict=True))
            # A name that cannot be looked up keeps the addresses that it had.
            addresses.clear()
            await noted.until(lambda: "cannot look up" in uplinks._reason)
            assert [u.host for u in uplinks] == ["127.0.0.1"]
    finally:
        one.close()
        other.close()


async def test_a_cloud_of_another_model_is_told_and_left_out() -> None:
    noted = Noted()
    right, wrong = await Cloud("m").listen(), await Cloud("n").listen()
    first = Place("127.0.0.1", right.port)
    try:
        async with kept(first, Place("127.0.0.1", wrong.port), on_event=noted) as uplinks:
            served, left_out = uplinks
            # Whoever comes first decides: let that be the right one.
            await noted.until(lambda: bool(served.link or left_out.link))
            if left_out.link is not None:
                served, left_out, right, wrong = left_out, served, wrong, right
            await noted.until(lambda: left_out.refused is not None)
            assert left_out.link is None
            assert "and this edge's clouds serve" in str(left_out.refused)
            assert uplinks.state is LinkState.CONNECTED
            assert uplinks.refused is None, "one of the two will have us"
            chosen = {uplinks.choose(NEED) for _ in range(9)}
            assert chosen == {served}
            await noted.until(lambda: any(isinstance(event, Closed) for event in wrong.events))
            (told,) = (event for event in wrong.events if isinstance(event, Closed))
            assert told.code is Code.FINGERPRINT
            assert "it is left out" in told.message
            # The service hears nothing of it but its end.
            assert not any(key == left_out.key and isinstance(e, Connected) for key, e in noted.all)
    finally:
        right.close()
        wrong.close()


async def test_a_single_cloud_is_tried_by_its_name(addresses: list[str]) -> None:
    noted = Noted()
    cloud = await Cloud().listen("127.0.0.2")
    # Nobody listens at the first address: the one cloud is where somebody answers.
    addresses[:] = ["127.0.0.3", "127.0.0.2"]
    try:
        async with kept(Place(NAME, cloud.port), on_event=noted) as uplinks:
            await noted.until(lambda: uplinks.state is LinkState.CONNECTED)
            (uplink,) = uplinks
            assert uplink.key == f"{NAME}:{cloud.port}"
            assert uplinks.reason == ""
    finally:
        cloud.close()


async def test_only_when_all_clouds_refuse_there_is_no_hope() -> None:
    noted = Noted()
    good, other = await Cloud().listen(), await Cloud().listen()
    bad = Settings(Role.CLOUD, "cloud", Fingerprint(999, "x", {"bos": 1}, "bpe", "bb"))
    other._settings = bad
    places = [Place("127.0.0.1", cloud.port) for cloud in (good, other)]
    try:
        async with kept(*places, on_event=noted) as uplinks:
            one, two = uplinks
            await noted.until(lambda: one.link is not None and two.refused is not None)
            assert uplinks.refused is None
            good._settings = bad
            good.links[-1].abort()
            await noted.until(lambda: uplinks.refused is not None)
            for place in places:
                assert f"the cloud at 127.0.0.1:{place.port} refuses this edge" in str(uplinks.refused)
    finally:
        good.close()
        other.close()


async def test_behind_one_address_the_next_connection_may_reach_a_cloud_that_does_not_drain() -> None:
    noted = Noted()
    # A balancer's address: whose turn it is answers.
    cloud = await Cloud().listen()
    try:
        async with kept(Place("127.0.0.1", cloud.port), on_event=noted) as uplinks:
            await noted.until(lambda: uplinks.link is not None)
            (first,) = uplinks
            assert first.link is not None
            stream = first.link.connection.new_stream()
            cloud.links[0].drain("going")
            await noted.until(lambda: uplinks.choose(NEED) not in (None, first))
            second = uplinks.choose(NEED)
            assert second is not None
            assert uplinks.successor(first, NEED) is second
            assert first.link.connection.streams == {stream}, "what runs there may go on"
            bytes_before = uplinks.wire_bytes
            cloud.links[0].abort()
            await noted.until(lambda: list(uplinks) == [second])
            assert uplinks.connects == 2
            assert all(now >= then for now, then in zip(uplinks.wire_bytes, bytes_before, strict=True))
            # That one drains too, and so does all that is reached next, until one does not.
            cloud.links[1].drain("going too")
            await noted.until(lambda: uplinks.choose(NEED) not in (None, second))
            cloud.links[2].drain("and this")
            await noted.until(lambda: len(cloud.links) > 3 and uplinks.choose(NEED) is not None)
            assert len(list(uplinks)) == 2
    finally:
        cloud.close()
