"""The listener on real sockets: many who want in, those who leave at once, and a process out of files."""

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest
import uvloop

from ecd.cloud import listener
from ecd.cloud.admission import Admission
from ecd.cloud.listener import Listener
from ecd.errors import DaemonError
from ecd.wire.connection import Closed, Connected, Connection, Event, Role, Settings
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.link import Link

FINGERPRINT = Fingerprint(1000, "aa", {"bos": 1}, "bpe", "bb")
LIMIT_S = 20.0
# Closing sends RST: nothing is left to wait for.
LINGER_0 = struct.pack("ii", 1, 0)
Scene = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Scene], None]:
    """Runs a test's coroutine on one of the loops; an exception that a loop would only log fails the test."""

    def runner(test: Scene) -> None:
        complaints: list[dict[str, Any]] = []

        async def limited() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            async with asyncio.timeout(LIMIT_S):
                await test()

        with asyncio.Runner(loop_factory=request.param) as loop:
            loop.run(limited())
        assert complaints == []

    return runner


class Cloud:
    """A listener, and what becomes of its links."""

    def __init__(self, total: int = 64, per_address: int = 64, handshake_s: float = 5.0):
        self.admission = Admission(total, per_address)
        self.handshake_s = handshake_s
        self.links: set[Link] = set()
        self.ended = 0
        self.listener = Listener(self._link, self.admission, None, handshake_s)
        self.address = ("", 0)

    def _link(self) -> Link:
        settings = Settings(Role.CLOUD, "cloud under test", FINGERPRINT, handshake_s=self.handshake_s)
        link = Link(Connection(settings, asyncio.get_running_loop().time()), self._on_event)
        self.links.add(link)
        return link

    def _on_event(self, link: Link, event: Event) -> None:
        if isinstance(event, Closed):
            self.ended += 1
            self.links.discard(link)


@asynccontextmanager
async def running(cloud: Cloud) -> AsyncIterator[Cloud]:
    async with cloud.listener.listening("127.0.0.1", 0) as listen:
        host, _, port = listen.rpartition(":")
        cloud.address = (host, int(port))
        yield cloud


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def reach(cloud: Cloud, stack: ExitStack, source: str = "127.0.0.1") -> socket.socket:
    """A connection from an address of this machine."""
    sock = stack.enter_context(socket.socket())
    sock.bind((source, 0))
    sock.connect(cloud.address)
    sock.setblocking(False)
    return sock


async def is_closed(sock: socket.socket) -> bool:
    """Whether the other end has closed it, once it has said anything or nothing."""
    try:
        return await asyncio.get_running_loop().sock_recv(sock, 1) == b""
    except ConnectionResetError:
        return True


async def greets(cloud: Cloud, source: str = "127.0.0.1") -> bool:
    """Whether an edge from there is welcomed."""
    connected = asyncio.Event()

    def on_event(link: Link, event: Event) -> None:
        if isinstance(event, Connected | Closed):
            connected.set()

    edge = Link(
        Connection(Settings(Role.EDGE, "test", FINGERPRINT), asyncio.get_running_loop().time()), on_event
    )
    await asyncio.get_running_loop().create_connection(lambda: edge, *cloud.address, local_addr=(source, 0))
    await connected.wait()
    welcomed = edge.connection.peer is not None
    edge.abort()
    return welcomed


def test_one_address_that_takes_all_it_can_leaves_room_for_others(run: Callable[[Scene], None]) -> None:
    async def talk() -> None:
        async with running(Cloud(per_address=3)) as cloud:
            with ExitStack() as stack:
                for _ in range(3):
                    reach(cloud, stack)
                await until(lambda: len(cloud.links) == 3)
                assert await is_closed(reach(cloud, stack))
                assert not await greets(cloud)
                assert await greets(cloud, "127.0.0.2")
                assert cloud.listener.stats()["connections_refused"] == 2
            await until(lambda: not cloud.admission.held)
            assert await greets(cloud)

    run(talk)


def test_an_address_that_floods_does_not_use_up_what_is_accepted(
    run: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The bucket is not filled meanwhile.
    monkeypatch.setattr(listener, "monotonic", lambda: 0.0)

    async def talk() -> None:
        async with running(Cloud(per_address=1)) as cloud:
            with ExitStack() as stack:
                reach(cloud, stack)
                for _ in range(int(listener.ACCEPTS_PER_S) + 50):
                    assert await is_closed(reach(cloud, stack))
                assert await greets(cloud, "127.0.0.2")
            assert cloud.listener._accepts.level == pytest.approx(listener.ACCEPTS_PER_S - 2 - 25)

    run(talk)


def test_those_who_never_greet_make_room_again(run: Callable[[Scene], None]) -> None:
    async def talk() -> None:
        async with running(Cloud(total=4, handshake_s=0.2)) as cloud:
            with ExitStack() as stack:
                silent = [reach(cloud, stack) for _ in range(4)]
                await until(lambda: len(cloud.links) == 4)
                await until(lambda: not cloud.admission.held)
                assert await greets(cloud)
                for sock in silent:
                    # The reason why, and then the end.
                    while not await is_closed(sock):
                        pass

    run(talk)


def test_connections_that_are_gone_before_they_are_looked_at_leave_nothing_behind(
    run: Callable[[Scene], None],
) -> None:
    async def talk() -> None:
        async with running(Cloud(total=500, per_address=500)) as cloud:
            for _ in range(150):
                with socket.socket() as sock:
                    sock.connect(cloud.address)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
            assert await greets(cloud)
            await until(lambda: not cloud.admission.held)
            assert cloud.links == set()

    run(talk)


def test_a_process_out_of_files_goes_on_when_there_are_some(
    run: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ecd.cloud.listener.EXHAUSTED_WAIT_S", 0.01)

    async def talk() -> None:
        loop = asyncio.get_running_loop()
        failures = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ECONNABORTED, "gone")] * 2

        class Exhausted:
            """The loop, with an accept that fails at first."""

            def __getattr__(self, name: str) -> Any:
                return getattr(loop, name)

            async def sock_accept(self, sock: socket.socket) -> Any:
                if failures:
                    raise failures.pop()
                return await loop.sock_accept(sock)

        with monkeypatch.context() as patched:
            patched.setattr("ecd.cloud.listener.asyncio.get_running_loop", Exhausted)
            async with running(Cloud()) as cloud:
                await until(lambda: not failures)
                patched.undo()
                assert await greets(cloud)

    run(talk)
    assert caplog.text.count("raise the limit on open files") == 2


def test_a_flood_of_refusals_does_not_fill_the_log(
    run: Callable[[Scene], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def talk() -> None:
        async with running(Cloud(per_address=1)) as cloud:
            with ExitStack() as stack:
                for _ in range(100):
                    reach(cloud, stack)
                await until(lambda: cloud.admission.refused == 99)

    with caplog.at_level(logging.WARNING):
        run(talk)
    assert 1 <= caplog.text.count("a connection was refused") < 30


def test_an_address_that_is_taken_or_not_ours_is_told(run: Callable[[Scene], None]) -> None:
    async def talk() -> None:
        async with running(Cloud()) as cloud:
            with pytest.raises(
                DaemonError, match=f"cannot listen on 127.0.0.1:{cloud.address[1]}: .*--listen"
            ):
                async with Cloud().listener.listening(*cloud.address):
                    pass
            with pytest.raises(DaemonError, match=r"cannot listen on 192\.0\.2\.1"):
                async with Cloud().listener.listening("192.0.2.1", 0):
                    pass

    run(talk)


def test_the_end_of_the_listener_frees_its_port_at_once(run: Callable[[Scene], None]) -> None:
    async def talk() -> None:
        async with running(Cloud()) as cloud:
            assert await greets(cloud)
        async with Cloud().listener.listening(*cloud.address):
            pass

    run(talk)
