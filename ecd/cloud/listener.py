"""Where edges come in: sockets that listen, who is let in, TLS, and the end of each connection.

Owns accepted sockets until their link runs. What is said on a link is the service's business.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from time import monotonic
from typing import Any

from ecd.cloud.admission import Admission, source_of
from ecd.daemon import background
from ecd.errors import ConfigError, DaemonError
from ecd.logs import LimitedLog
from ecd.trust.bucket import TokenBucket
from ecd.trust.settings import CloudTls
from ecd.trust.tls import cloud_context, why_cloud_failed
from ecd.wire.link import Link

log = logging.getLogger(__name__)

# So many new connections a second, whoever they are: shaking hands takes the time of those who are in.
ACCEPTS_PER_S = 200.0
# What one counts as that is refused at once: an address that floods is not to use up the others' share.
REFUSED = 0.1
# Connections that wait to be accepted.
BACKLOG = 512
# What accept says when the process, or the machine, can hold no more.
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
EXHAUSTED_WAIT_S = 1.0
# Lines about connections that came to nothing; a flood of them must not fill the disk.
LINES_PER_S = 5.0


class Listener:
    """Accepts connections and makes links of them; `link` makes the protocol of one.

    `reload` has new handshakes use the certificates as they are then. Raises ConfigError when a file of `tls`
    cannot be used.
    """

    def __init__(
        self, link: Callable[[], Link], admission: Admission, tls: CloudTls | None, handshake_s: float
    ):
        self._link = link
        self._admission = admission
        self._tls = tls
        self._context = None if tls is None else cloud_context(tls)
        self._handshake_s = handshake_s
        self._accepts = TokenBucket.full(ACCEPTS_PER_S, monotonic())
        self._lines = LimitedLog(log, "connections that came to nothing", LINES_PER_S)
        self.handshakes_failed = 0

    def reload(self) -> None:
        """Reads the certificates again; connections stay, and so does what cannot be replaced."""
        if self._tls is None:
            return
        try:
            self._context = cloud_context(self._tls)
        except ConfigError as e:
            log.error("the certificate stays as it was: %s", e)
        else:
            log.info("certificate read again from %s", self._tls.certificate)

    @contextlib.asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[str]:
        """Lets edges in while the context lasts; gives the address. Raises DaemonError."""
        sockets = await _bind(host, port)
        try:
            async with background(*(partial(self._accept_from, each) for each in sockets)):
                yield "{}:{}".format(*sockets[0].getsockname()[:2])
        finally:
            for each in sockets:
                each.close()

    def stats(self) -> dict[str, int]:
        """What came to nothing, since the start."""
        return {
            "connections_refused": self._admission.refused,
            "tls_handshakes_failed": self.handshakes_failed,
        }

    async def _accept_from(self, listening: socket.socket) -> None:
        async with asyncio.TaskGroup() as connections:
            await self._accept_forever(listening, connections)

    async def _accept_forever(self, listening: socket.socket, connections: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._accepts.wait_s(monotonic()))
            try:
                sock, address = await loop.sock_accept(listening)
            except OSError as e:
                # Others are of the connection that was to be accepted, and concern nobody else.
                if e.errno in EXHAUSTED:
                    log.error("cannot accept connections: %s; raise the limit on open files", e.strerror)
                    await asyncio.sleep(EXHAUSTED_WAIT_S)
                continue
            source = source_of(address[0])
            refusal = self._admission.enter(source)
            self._accepts.take(1 if refusal is None else REFUSED, monotonic())
            if refusal is None:
                connections.create_task(self._serve(sock, source))
            else:
                sock.close()
                self._lines.write(logging.WARNING, "a connection was refused: %s", refusal)

    async def _serve(self, sock: socket.socket, source: str) -> None:
        """One connection from its first byte to its last."""
        links: list[Link] = []

        def protocol() -> Link:
            links.append(self._link())
            return links[-1]

        timeouts = {"ssl_handshake_timeout": self._handshake_s, "ssl_shutdown_timeout": self._handshake_s}
        options: dict[str, Any] = {} if self._context is None else {"ssl": self._context, **timeouts}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(protocol, sock, **options)
            await links[-1].ended.wait()
            closed = links[-1].closed
            if closed is not None and links[-1].connection.peer is None:
                self._came_to_nothing(source, closed.message)
        except OSError as e:
            self.handshakes_failed += 1
            sock.close()
            self._came_to_nothing(source, why_cloud_failed(e))
            for link in links:
                # It never began, and nobody else will tell it that it is over.
                link.connection_lost(e)
        except Exception:
            # Whatever one connection brings about, the others go on.
            log.exception("the connection from %s failed", source)
        finally:
            self._admission.leave(source)

    def _came_to_nothing(self, source: str, why: str) -> None:
        self._lines.write(logging.WARNING, "a connection from %s came to nothing: %s", source, why)


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at every address of the name. Raises DaemonError."""
    sockets: list[socket.socket] = []
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, address in dict.fromkeys(found):
            sock = socket.create_server(address, family=family, backlog=BACKLOG)
            sock.setblocking(False)
            sockets.append(sock)
    except OSError as e:
        for sock in sockets:
            sock.close()
        raise DaemonError(f"cannot listen on {host}:{port}: {e.strerror}; choose another --listen") from None
    return sockets
