"""Who may use a control socket, by what the kernel says of them and whatever the file's mode is."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from ecd.client import Client
from ecd.control import ControlType, Notify, control_socket, peer_uid, refusal_of
from ecd.errors import Code
from ecd.wire.frames import FrameReader, encode_frame

STRANGER = 54321
LIMIT_S = 20.0


def test_the_daemon_s_user_and_root_may_and_others_are_told() -> None:
    assert refusal_of(1000, 1000) is None
    assert refusal_of(0, 1000) is None
    assert refusal_of(None, 1000) is None  # the kernel does not say, and the mode has to do
    assert refusal_of(1001, 1000) == (
        "uid 1001 may not use this daemon, which runs as uid 1000; ask it as that user, or as root"
    )
    assert refusal_of(1001, 0) is not None


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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as somebody else")
async def test_another_user_is_refused_in_words_though_the_mode_lets_it_in() -> None:
    calls: list[str] = []

    async def status(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        calls.append("status")
        return {"role": "edge"}

    # Not in a folder of the test's, which other users cannot enter.
    path = Path(f"/tmp/ecd-peer-{os.getpid()}.sock")
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LIMIT_S), control_socket(path, {"status": status}):
        path.chmod(0o666)
        with socket.socket(socket.AF_UNIX) as sock:
            # The kernel notes who it is when it connects.
            os.seteuid(STRANGER)
            try:
                sock.connect(str(path))
            finally:
                os.seteuid(0)
            sock.setblocking(False)
            await loop.sock_sendall(sock, encode_frame([ControlType.CALL, 1, "status", {}]))
            ((fields, _),) = FrameReader().feed(await loop.sock_recv(sock, 1 << 16))
        assert fields[:3] == [ControlType.FAILURE, 1, Code.AUTH]
        assert f"uid {STRANGER} may not use this daemon, which runs as uid 0" in fields[3]
        assert calls == []
        async with Client(path) as client:
            assert await client.call("status") == {"role": "edge"}
    path.with_name(path.name + ".lock").unlink()
