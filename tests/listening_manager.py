"""A service manager's end of sd_notify: a real datagram socket."""

import socket
from pathlib import Path


class ListeningManager:
    """Collects what is told to `path`."""

    def __init__(self, path: Path, patience_s: float = 20.0):
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(patience_s)

    def next(self) -> dict[str, str]:
        """The next notification. Raises TimeoutError when none comes."""
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())

    def until(self, state: str) -> dict[str, str]:
        """The next notification that has this state."""
        while state not in (told := self.next()):
            pass
        return told

    def is_silent_for(self, seconds: float) -> bool:
        """Whether nothing more comes for so long, once what has come already is taken."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(4096)
        except BlockingIOError:
            pass
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(4096)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()
