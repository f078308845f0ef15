"""The listening socket that a service manager opened for us: socket activation, sd_listen_fds(3).

Owns the environment's LISTEN_ variables. What is served on the socket is not its business.
"""

import os
import socket
from collections.abc import MutableMapping
from pathlib import Path

from ecd.errors import DaemonError

FIRST_FD = 3


def handed_over(path: Path, environ: MutableMapping[str, str]) -> socket.socket | None:
    """The Unix socket at `path` that was opened for this process; None when nothing was.

    Raises DaemonError when it is another. The variables are taken out, so that a second call, and processes
    that this one starts, find nothing.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal() or count == "0":
        return None
    sockets = [socket.socket(fileno=fd) for fd in range(FIRST_FD, FIRST_FD + int(count))]
    for sock in sockets:
        sock.set_inheritable(False)
    names = [_name(sock) for sock in sockets]
    if names != [str(path)]:
        for sock in sockets:
            sock.close()
        raise DaemonError(
            f"the service manager opened {', '.join(names)}, and the setting `socket` is {path}; "
            "make it and ListenStream= of the .socket unit the same path, and the only one there"
        )
    return sockets[0]


def _name(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
        return str(sock.getsockname())
    return f"a socket of {sock.family.name} and {sock.type.name}"
