"""The control socket: a Unix socket that speaks the frame codec, and the calls that travel on it.

Owns the socket file (mode 0600, one daemon per path), who may call, calls, events and cancellation. What a
call does is a handler's business. docs/PROTOCOL.md lists the frames.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from ecd.activation import handed_over
from ecd.errors import BadRequest, Code, DaemonError, EcdError, ProtocolError
from ecd.logs import LimitedLog
from ecd.wire.frames import FrameReader, encode_frame

log = logging.getLogger(__name__)

READ_BYTES = 64 << 10
MAX_CALLS = 256
# Results list token ids one by one.
MAX_ITEMS = 1 << 20
BACKLOG = 100
# A program of another user is told so in answer to a call of so many bytes at most, and within this time.
REFUSED_BYTES, REFUSED_S = 64 << 10, 5.0
# Lines about programs that are refused or dropped.
LINES_PER_S = 1.0
_UCRED = struct.Struct("iII")
# sun_path of Linux, less its closing zero.
MAX_PATH_BYTES = 107


class ControlType(IntEnum):
    """Frame types on the control socket, apart from those between the daemons."""

    CALL = 64
    EVENT = 65
    RESULT = 66
    FAILURE = 67
    CANCEL = 68


Notify = Callable[[dict[str, Any]], Awaitable[None]]
Handler = Callable[[dict[str, Any], Notify], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class _Client:
    """One connected program and its running calls."""

    writer: asyncio.StreamWriter
    calls: dict[int, asyncio.Task[None]]

    async def send(self, kind: ControlType, call: int, *fields: Any) -> None:
        if self.writer.is_closing():
            # uvloop would raise RuntimeError.
            raise ConnectionResetError("the client is gone")
        self.writer.write(encode_frame([kind, call, *fields]))
        await self.writer.drain()


def peer_uid(sock: socket.socket) -> int | None:
    """The user at the other end of a Unix socket, as the kernel noted it; None where it does not."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    # struct ucred of Linux: pid, uid, gid (unix(7)).
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[1])


def refusal_of(uid: int | None, own: int) -> str | None:
    """Why a user may not use a daemon that runs as `own`; None if it may: that user, and root.

    The mode of the socket file says the same, but modes are changed by mistake, and folders are shared.
    """
    if uid in (own, 0, None):
        return None
    return f"uid {uid} may not use this daemon, which runs as uid {own}; ask it as that user, or as root"


def distrust_of(uid: int | None, own: int) -> str | None:
    """Why a program that runs as `own` should tell nothing to a daemon that runs as `uid`; None if it may.

    Whoever has put a socket where another was expected is not to get prompts. Root knows whom it asks.
    """
    if uid in (own, 0, None) or own == 0:
        return None
    return f"runs as uid {uid}, which is neither you (uid {own}) nor root; name your own daemon's --socket"


@contextlib.asynccontextmanager
async def control_socket(path: Path, handlers: Mapping[str, Handler]) -> AsyncIterator[None]:
    """Serves the handlers at `path` while the context lasts; DaemonError when another daemon does.

    A service manager may have opened the socket already. Then it is its own: it stays when we go.
    """
    with contextlib.ExitStack() as stack:
        listener = handed_over(path, os.environ)
        if listener is None:
            stack.enter_context(_owned(path))
            listener = _listener(path)
        # What becomes of the path is not asyncio's to decide.
        keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        lines = LimitedLog(log, "control clients", LINES_PER_S)
        server = await asyncio.start_unix_server(
            lambda reader, writer: _serve(reader, writer, handlers, lines), sock=listener, **keep
        )
        try:
            yield
        finally:
            server.close()


def _listener(path: Path) -> socket.socket:
    """A new socket at `path`, for this user only. Raises DaemonError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as e:
        listener.close()
        raise DaemonError(f"cannot listen on {path}: {e.strerror}; choose another --socket") from None
    finally:
        os.umask(old_mask)
    return listener


@contextlib.contextmanager
def _owned(path: Path) -> Iterator[None]:
    """The path is this process's while the context lasts: free at its start, gone at its end."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise DaemonError(f"socket path {path} is longer than {MAX_PATH_BYTES} bytes; choose a shorter one")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_folder(path)
        # In a folder that others may write to, it could be a link to a file of ours.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock_file = os.fdopen(os.open(path.with_name(path.name + ".lock"), flags, 0o600), "rb")
    except OSError as e:
        raise DaemonError(f"cannot use the folder of {path}: {e.strerror}; choose another --socket") from None
    with lock_file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DaemonError(
                f"another daemon serves {path}; stop it, or give this one another --socket"
            ) from None
        # Whoever holds the lock owns the path: a socket that lies there was left by a daemon that died.
        try:
            path.unlink(missing_ok=True)
        except OSError as e:
            raise DaemonError(f"cannot replace {path}: {e.strerror}; choose another --socket") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _check_folder(path: Path) -> None:
    """Raises DaemonError when the folder is another user's, who could put a socket of his own there.

    Root is not asked: it may serve somebody's folder, as in a container.
    """
    owner, own = path.parent.stat().st_uid, os.geteuid()
    if own and owner not in (own, 0):
        raise DaemonError(
            f"the folder of {path} belongs to uid {owner}, who could put another socket there; "
            "choose another --socket"
        )


async def _serve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    handlers: Mapping[str, Handler],
    lines: LimitedLog,
) -> None:
    client, frames = _Client(writer, {}), FrameReader(max_items=MAX_ITEMS)
    refusal = refusal_of(peer_uid(writer.get_extra_info("socket")), os.geteuid())
    try:
        if refusal is not None:
            lines.write(logging.WARNING, "control client refused: %s", refusal)
            await _refuse(reader, client, refusal)
            return
        async with asyncio.TaskGroup() as calls:
            while data := await reader.read(READ_BYTES):
                for fields, _ in frames.feed(data):
                    _on_frame(client, fields, handlers, calls)
            for task in client.calls.values():
                task.cancel()
    except* ProtocolError as errors:
        lines.write(logging.WARNING, "control client dropped: %s", errors.exceptions[0])
    except* ConnectionError:
        pass
    finally:
        writer.close()


async def _refuse(reader: asyncio.StreamReader, client: _Client, refusal: str) -> None:
    """Tells it why in answer to its first call, if it makes one before long."""
    frames = FrameReader(REFUSED_BYTES)
    with contextlib.suppress(TimeoutError, ProtocolError, ConnectionError):
        async with asyncio.timeout(REFUSED_S):
            while data := await reader.read(REFUSED_BYTES):
                for fields, _ in frames.feed(data):
                    match fields:
                        case [ControlType.CALL, int(call), *_]:
                            await client.send(ControlType.FAILURE, call, int(Code.AUTH), refusal)
                            return


def _on_frame(
    client: _Client, fields: list[Any], handlers: Mapping[str, Handler], calls: asyncio.TaskGroup
) -> None:
    match fields:
        case [ControlType.CALL, int(call), str(verb), dict(args)]:
            if call in client.calls or len(client.calls) >= MAX_CALLS:
                raise ProtocolError(f"call {call} is running already, or {MAX_CALLS} others are")
            task = calls.create_task(_answer(client, call, verb, args, handlers))
            client.calls[call] = task
            task.add_done_callback(lambda _: client.calls.pop(call, None))
        case [ControlType.CANCEL, int(call)]:
            if call in client.calls:
                client.calls[call].cancel()
        case _:
            raise ProtocolError("not a frame of the control socket; is this an ecd of another release?")


async def _answer(
    client: _Client, call: int, verb: str, args: dict[str, Any], handlers: Mapping[str, Handler]
) -> None:
    async def emit(event: dict[str, Any]) -> None:
        await client.send(ControlType.EVENT, call, event)

    try:
        handler = handlers.get(verb)
        if handler is None:
            raise BadRequest(f"this daemon knows no {verb!r}; it knows {', '.join(sorted(handlers))}")
        await client.send(ControlType.RESULT, call, await handler(args, emit))
    except EcdError as e:
        with contextlib.suppress(ConnectionError):
            await client.send(ControlType.FAILURE, call, int(e.code), str(e))
    except ConnectionError:
        log.debug("client of %s went away", verb)
    except asyncio.CancelledError:
        with contextlib.suppress(ConnectionError):
            await client.send(ControlType.FAILURE, call, int(Code.CANCELLED), "cancelled")
    except Exception:
        log.exception("%s failed", verb)
        with contextlib.suppress(ConnectionError):
            await client.send(
                ControlType.FAILURE, call, int(Code.INTERNAL), f"{verb} failed; see the daemon's log"
            )
