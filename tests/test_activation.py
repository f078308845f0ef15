"""Sockets that a service manager hands over: a process with a real one at file descriptor 3."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ecd.activation import handed_over

# The shell's process id becomes python's.
ACTIVATED = 'exec env LISTEN_PID=$$ LISTEN_FDS=1 "$@" 3<&0 </dev/null'
TELL = """
import os, sys
from pathlib import Path
from ecd.activation import handed_over
from ecd.errors import DaemonError
try:
    sock = handed_over(Path(sys.argv[1]), os.environ)
except DaemonError as e:
    sys.exit(str(e))
assert sock.fileno() == 3 and not sock.get_inheritable()
assert handed_over(Path(sys.argv[1]), os.environ) is None
sock.accept()[0].sendall(b"hello")
"""


def activated(listener: socket.socket, expected: Path) -> subprocess.Popen[bytes]:
    command = ["sh", "-c", ACTIVATED, "sh", sys.executable, "-c", TELL, str(expected)]
    return subprocess.Popen(command, stdin=listener.fileno(), stderr=subprocess.PIPE)


def test_it_serves_the_socket_that_was_opened_for_it(tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        listener.listen()
        client.connect(str(path))
        process = activated(listener, path)
        client.settimeout(20)
        assert client.recv(10) == b"hello"
        assert process.wait(20) == 0


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_another_socket_is_refused(tmp_path: Path, family: socket.AddressFamily) -> None:
    with socket.socket(family) as listener:
        listener.bind(str(tmp_path / "other.sock") if family == socket.AF_UNIX else ("127.0.0.1", 0))
        listener.listen()
        process = activated(listener, tmp_path / "edge.sock")
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"make it and ListenStream=" in said
    assert (b"other.sock" if family == socket.AF_UNIX else b"AF_INET") in said


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "some"},
    ],
)
def test_nothing_was_handed_over(environ: dict[str, str]) -> None:
    assert handed_over(Path("/x"), environ) is None
    assert not environ
