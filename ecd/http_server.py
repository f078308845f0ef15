"""uvicorn inside a daemon's own event loop: sockets, start and end of an HTTP server.

Owns where it listens, and how many connections there may be; what is served is the application's. Signals
stay the daemon's: it drains first and then leaves this context.
"""

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ecd.addresses import split_address
from ecd.control import peer_uid, refusal_of
from ecd.errors import DaemonError
from ecd.logs import LimitedLog

# Lines about connections that were closed.
LINES_PER_S = 1.0
lines = LimitedLog(logging.getLogger(__name__), "HTTP connections", LINES_PER_S)

BACKLOG = 1024
# Of a request's line and headers while they are read.
PARSED_HEAD_BYTES = 64 << 10
# Fewer than the descriptors that a process usually may have, so that links and control sockets find some.
MAX_CONNECTIONS = 512
# From a connection, or an answer there, to the end of the next head. Behind an answer uvicorn closes sooner
# if nothing comes, but stops its clock at the first byte.
HEAD_S = 10.0
# Answers have ended by then; what is left is to write what they said.
LAST_WRITES_S = 2


class BoundedProtocol(H11Protocol):
    """uvicorn's, on the parser that has a limit for heads: beyond it, it answers 400 and closes.

    Closes connections that are too many, those that ask for nothing more, and other users' at a Unix socket.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        refusal = _refusal_of(transport.get_extra_info("socket"))
        if len(self.connections) > MAX_CONNECTIONS:
            lines.write(logging.WARNING, "closed an HTTP connection: there are %d already", MAX_CONNECTIONS)
            transport.abort()
        elif refusal is not None:
            lines.write(logging.WARNING, "closed an HTTP connection: %s", refusal)
            transport.write(b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\n\r\n" + refusal.encode() + b"\n")
            transport.close()
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, by whomever."""
        super().connection_lost(exc)
        self._stop_waiting()

    def on_response_complete(self) -> None:
        """An answer is written; the head of the next request may have come in part, or whole."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._wait_for_head()

    def send_400_response(self, msg: str) -> None:
        """What the client sends is not HTTP: the connection ends, whatever was being answered there."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()
        if self.cycle is not None:
            # Else the application's answer, which comes too late, is an error with a traceback in the log.
            self.cycle.disconnected = True

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._head_timer = self.loop.call_later(HEAD_S, self._close_if_idle)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            # Not aborted: a slow reader has yet to get the answer before.
            self.transport.close()


def _refusal_of(sock: socket.socket) -> str | None:
    """Why whoever connected may not use this; None if it may. TCP tells nothing of users."""
    return None if sock.family != socket.AF_UNIX else refusal_of(peer_uid(sock), os.geteuid())


@contextlib.asynccontextmanager
async def http_server(
    app: ASGIApp, listen: str | None, unix: Path | None = None, *, flag: str = "--http"
) -> AsyncIterator[list[str]]:
    """Serves the application while the context lasts, at an address and a Unix socket; gives the URLs.

    Raises DaemonError, which names the `flag` that says another address.
    """
    with _listening(listen, unix, flag) as (sockets, urls):
        settings = uvicorn.Config(
            app,
            http=BoundedProtocol,
            h11_max_incomplete_event_size=PARSED_HEAD_BYTES,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=LAST_WRITES_S,
        )
        server = uvicorn.Server(settings)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        serving = asyncio.create_task(server.serve(sockets))
        try:
            yield urls
        finally:
            server.should_exit = True
            await serving


@contextlib.contextmanager
def _listening(
    listen: str | None, unix: Path | None, flag: str
) -> Iterator[tuple[list[socket.socket], list[str]]]:
    sockets, urls = [], []
    with contextlib.ExitStack() as stack:
        if listen is not None:
            sockets.append(stack.enter_context(_tcp(listen, flag)))
            host, port = sockets[-1].getsockname()[:2]
            urls.append(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        if unix is not None:
            sockets.append(stack.enter_context(_unix(unix)))
            urls.append(f"unix:{unix}")
        yield sockets, urls


@contextlib.contextmanager
def _tcp(listen: str, flag: str) -> Iterator[socket.socket]:
    host, port = split_address(listen)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as e:
        raise DaemonError(
            f"cannot listen on {listen} for HTTP: {e.strerror}; choose another {flag}"
        ) from None
    with listener:
        yield listener


@contextlib.contextmanager
def _unix(path: Path) -> Iterator[socket.socket]:
    """For this user only, as the control socket. A socket that nobody listens at any more is replaced."""
    old_mask = os.umask(0o177)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as e:
        raise DaemonError(
            f"cannot listen on {path} for HTTP: {e.strerror or e}; name another http.socket"
        ) from None
    finally:
        os.umask(old_mask)
    with listener:
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        try:
            knock.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
