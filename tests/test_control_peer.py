"""Who may use a control socket, by what the kernel says of them and whatever the file's mode is."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from ecd.client import BlockingClient, Client
from ecd.config import EdgeConfig
from ecd.control import ControlType, Notify, control_socket, distrust_of, peer_uid, refusal_of
from ecd.edge.handing import socket_of
from ecd.edge.run_args import AnswerSettings
from ecd.edge.service import EdgeService
from ecd.edge.taking import Taking, handover
from ecd.errors import Code, DaemonError
from ecd.wire.connection import Closed, Connected, Connection, Event, Role, Settings
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.frames import FrameReader, encode_frame

STRANGER = 54321
EDGE = Settings(Role.EDGE, "a test", Fingerprint(100, "a", {}, "bpe", "b"))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as somebody else")
LIMIT_S = 20.0


def test_the_daemon_s_user_and_root_may_and_others_are_told() -> None:
    assert refusal_of(1000, 1000) is None
    assert refusal_of(0, 1000) is None
    assert refusal_of(None, 1000) is None  # the kernel does not say, and the mode has to do
    assert refusal_of(1001, 1000) == (
        "uid 1001 may not use this daemon, which runs as uid 1000; ask it as that user, or as root"
    )
    assert refusal_of(1001, 0) is not None


def test_a_daemon_of_this_user_or_of_root_is_told_and_no_other() -> None:
    assert distrust_of(1000, 1000) is None
    assert distrust_of(0, 1000) is None
    assert distrust_of(None, 1000) is None
    assert distrust_of(1001, 0) is None  # root knows whom it asks
    assert "runs as uid 1001, which is neither you (uid 1000) nor root" in str(distrust_of(1001, 1000))


async def test_the_kernel_says_who_connected(tmp_path: Path) -> None:
    uids: list[int | None] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uids.append(peer_uid(writer.get_extra_info("socket")))
        writer.close()

    async with await asyncio.start_unix_server(connected, tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        assert await reader.read() == b""
        writer.close()
    assert uids == [os.geteuid()]


def connect_as_stranger(sock: socket.socket, path: Path) -> None:
    """The kernel notes who it is when it connects."""
    os.seteuid(STRANGER)
    try:
        sock.connect(str(path))
    finally:
        os.seteuid(0)
    sock.setblocking(False)


@needs_root
async def test_another_user_that_asks_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecd.control.REFUSED_S", 0.05)
    path = Path(f"/tmp/ecd-peer-{os.getpid()}-silent.sock")
    async with asyncio.timeout(LIMIT_S), control_socket(path, {}):
        path.chmod(0o666)
        with socket.socket(socket.AF_UNIX) as sock:
            connect_as_stranger(sock, path)
            assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
    path.with_name(path.name + ".lock").unlink()


@needs_root
async def test_another_user_is_refused_in_words_though_the_mode_lets_it_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[str] = []

    async def status(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        calls.append("status")
        return {"role": "edge"}

    # Not in a folder of the test's, which other users cannot enter.
    path = Path(f"/tmp/ecd-peer-{os.getpid()}.sock")
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LIMIT_S), control_socket(path, {"status": status}):
        path.chmod(0o666)
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as sock:
                connect_as_stranger(sock, path)
                await loop.sock_sendall(sock, encode_frame([ControlType.CALL, 1, "status", {}]))
                ((fields, _),) = FrameReader().feed(await loop.sock_recv(sock, 1 << 16))
                # Once is enough.
                assert await loop.sock_recv(sock, 1 << 16) == b""
            assert fields[:3] == [ControlType.FAILURE, 1, Code.AUTH]
            assert f"uid {STRANGER} may not use this daemon, which runs as uid 0" in fields[3]
        assert calls == []
        assert 0 < caplog.text.count("control client refused") < 20
        async with Client(path) as client:
            assert await client.call("status") == {"role": "edge"}
    path.with_name(path.name + ".lock").unlink()


@needs_root
async def test_a_client_tells_nothing_to_a_daemon_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(path: Path) -> None:
        with BlockingClient(path):
            raise AssertionError("connected")

    path = Path(f"/tmp/ecd-peer-{os.getpid()}-daemon.sock")
    with socket.socket(socket.AF_UNIX) as served:
        # The kernel notes who listens.
        os.seteuid(STRANGER)
        try:
            served.bind(str(path))
            served.listen()
        finally:
            os.seteuid(0)
        try:
            monkeypatch.setattr(os, "geteuid", lambda: STRANGER + 1)
            with pytest.raises(DaemonError, match=f"runs as uid {STRANGER}, which is neither you"):
                ask(path)
            with pytest.raises(DaemonError, match=f"runs as uid {STRANGER}, which is neither you"):
                await Client(path).__aenter__()
        finally:
            path.unlink()


@needs_root
async def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(tmp_path, STRANGER, -1)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER + 1)
    with pytest.raises(DaemonError, match=f"belongs to uid {STRANGER}"):
        await control_socket(tmp_path / "s", {}).__aenter__()


async def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "s.lock").symlink_to(precious)
    with pytest.raises(DaemonError, match="cannot use the folder"):
        await control_socket(tmp_path / "s", {}).__aenter__()
    assert precious.read_text() == "mine"


@needs_root
async def test_another_user_hands_nothing_over_though_the_mode_lets_it_in() -> None:
    path = Path(f"/tmp/ecd-peer-{os.getpid()}-over.sock")
    config = EdgeConfig(model="m", socket=path)
    taking = Taking(
        cast(EdgeService, None), Settings(Role.CLOUD, "a test", EDGE.fingerprint), AnswerSettings()
    )
    loop, connection = asyncio.get_running_loop(), Connection(EDGE, 0.0)
    events: list[Event] = []
    async with asyncio.timeout(LIMIT_S), handover(config, taking):
        where = Path(socket_of(str(path)))
        where.chmod(0o666)
        with socket.socket(socket.AF_UNIX) as sock:
            connect_as_stranger(sock, where)
            await loop.sock_sendall(sock, b"".join(frame.data for frame in connection.output()))
            while data := await loop.sock_recv(sock, 1 << 16):
                events += connection.receive(data, 0.0)
    welcomed, closed = events
    assert isinstance(welcomed, Connected)
    assert isinstance(closed, Closed)
    assert closed.code is Code.AUTH
    assert f"uid {STRANGER} may not use this daemon" in closed.message
