"""What a daemon tells its service manager: sd_notify(3), over the socket in NOTIFY_SOCKET.

Owns the datagrams and the heart-beat for the watchdog. Knows nothing of what is served; without the variable
nothing is told. Written out here because it is a datagram, and the libraries for it need libsystemd's headers
or have had no release in years.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Self

log = logging.getLogger(__name__)

# Beats within the watchdog's time, so that one may come late; and the seconds between two without one.
BEATS, STATUS_S = 3, 5.0


class Notifier:
    """The service manager at `address` (a path, or `@` and an abstract name); nobody if it is None.

    watchdog_s: within so many seconds it wants a sign of life; None: never.
    """

    def __init__(self, address: str | None = None, watchdog_s: float | None = None):
        self._address = address
        self._beat_s = STATUS_S if watchdog_s is None else min(STATUS_S, watchdog_s / BEATS)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Self:
        """As systemd says it in NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; what is malformed is ignored.

        The variables are taken out: processes that this one starts are not to speak for it.
        """
        address = environ.pop("NOTIFY_SOCKET", None)
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
        watched = usec.isdecimal() and int(usec) > 0 and pid == str(os.getpid())
        return cls(address, int(usec) / 1e6 if watched else None)

    def tell(self, **states: str) -> None:
        """One notification, for example `READY="1"`. Never waits: one that nobody takes is lost."""
        if self._address is None:
            return
        # A newline would begin another state.
        message = "\n".join(f"{name}={value.replace(chr(10), ' ')}" for name, value in states.items())
        path = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            try:
                sock.sendto(message.encode(), path)
            except OSError as e:
                log.warning("the service manager was not told %s: %s", ", ".join(states), e)

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """While it lasts, files are read again; then the daemon is ready as before."""
        # With the time systemd knows that what follows belongs to the reload it asked for.
        self.tell(RELOADING="1", MONOTONIC_USEC=str(int(time.monotonic() * 1e6)))
        try:
            yield
        finally:
            self.tell(READY="1")

    async def beat_forever(self, alive: Callable[[], Awaitable[None]], status: Callable[[], str]) -> None:
        """Shows again and again that the daemon lives, and tells its `status`, until cancelled.

        `alive` returns once the engine's thread has done something. So a beat proves that thread, and since
        it is sent from here, the event loop; where either hangs there are no beats.
        """
        while self._address is not None:
            await alive()
            self.tell(WATCHDOG="1", STATUS=status())
            await asyncio.sleep(self._beat_s)
