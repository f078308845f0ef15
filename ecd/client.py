"""Clients of the control socket: `Client` for asyncio, `BlockingClient` for everything else.

with BlockingClient() as ecd:
    for event in ecd.stream("Why is the sky blue?"):
        print(event.get("text", ""), end="")
"""

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ecd.config import default_socket
from ecd.control import MAX_ITEMS, READ_BYTES, ControlType, distrust_of, peer_uid
from ecd.errors import Code, DaemonError, ProtocolError, RemoteError
from ecd.wire.frames import FrameReader, encode_frame

# A text, token ids, or the messages of a conversation.
Prompt = str | Sequence[int] | Sequence[dict[str, str]]


def _unreachable(path: Path, reason: OSError) -> DaemonError:
    return DaemonError(
        f"no daemon answers on {path} ({reason.strerror}); start `ecd edge`, or name its --socket"
    )


def _closed(path: Path) -> DaemonError:
    return DaemonError(f"the daemon on {path} closed the connection")


def _check_daemon(sock: socket.socket, path: Path) -> None:
    """Raises DaemonError when it runs as somebody who is not to know what is asked."""
    distrust = distrust_of(peer_uid(sock), os.geteuid())
    if distrust is not None:
        raise DaemonError(f"the daemon on {path} {distrust}")


def _outcome(fields: list[Any]) -> tuple[bool, dict[str, Any]]:
    """Whether a frame ends its call, and what it carries; raises RemoteError for a failure."""
    match fields:
        case [ControlType.EVENT, _, dict(event)]:
            return False, event
        case [ControlType.RESULT, _, dict(result)]:
            return True, result
        case [ControlType.FAILURE, _, int(code), str(message)]:
            known = code in Code.__members__.values()
            raise RemoteError(Code(code) if known else Code.INTERNAL, message)
    raise ProtocolError(
        "the daemon sent a frame that is none of the control socket's; is it of another release?"
    )


class Client:
    """Asyncio client; any number of calls may run at once on its one connection."""

    def __init__(self, path: Path | str | None = None):
        self._path = Path(path) if path else default_socket("edge")
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Queue[list[Any] | None]] = {}
        self._reader_task: asyncio.Task[None] | None = None
        self._gone = False

    async def __aenter__(self) -> Self:
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(str(self._path))
        except OSError as e:
            raise _unreachable(self._path, e) from None
        try:
            _check_daemon(self._writer.get_extra_info("socket"), self._path)
        except DaemonError:
            self._writer.close()
            raise
        self._reader_task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._reader_task is not None
        self._reader_task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader_task
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def call(self, verb: str, **args: Any) -> dict[str, Any]:
        """Result of one call; its events are dropped. Raises RemoteError with the daemon's reason."""
        frames = [fields async for _, fields in self._frames(verb, args)]
        return frames[-1]

    async def stream(self, prompt: Prompt, **args: Any) -> AsyncGenerator[dict[str, Any]]:
        """Events of one answer (`event`: `started`, `text`), at last the result with `event: "done"`.

        Leaving the iteration early cancels the answer. Arguments as of `run` in docs/PROTOCOL.md.
        """
        async with contextlib.aclosing(self._frames("run", {"prompt": prompt, **args})) as frames:
            async for done, fields in frames:
                yield {"event": "done", **fields} if done else fields

    async def _frames(self, verb: str, args: dict[str, Any]) -> AsyncGenerator[tuple[bool, dict[str, Any]]]:
        if self._gone or self._writer.is_closing():
            raise _closed(self._path)
        call, done = next(self._ids), False
        queue = self._calls[call] = asyncio.Queue()
        try:
            self._writer.write(encode_frame([ControlType.CALL, call, verb, args]))
            await self._writer.drain()
            while not done:
                fields = await queue.get()
                if fields is None:
                    raise _closed(self._path)
                done, content = _outcome(fields)
                yield done, content
        except RemoteError:
            done = True
            raise
        except ConnectionError:
            raise _closed(self._path) from None
        finally:
            del self._calls[call]
            # A daemon that is gone is not to be told; uvloop refuses to try.
            if not done and not self._writer.is_closing():
                self._writer.write(encode_frame([ControlType.CANCEL, call]))

    async def _read(self) -> None:
        frames = FrameReader(max_items=MAX_ITEMS)
        try:
            while data := await self._reader.read(READ_BYTES):
                for fields, _ in frames.feed(data):
                    if fields[1] in self._calls:
                        self._calls[fields[1]].put_nowait(fields)
        except OSError:
            pass
        finally:
            self._gone = True
            for queue in self._calls.values():
                queue.put_nowait(None)


class BlockingClient:
    """Client for programs without an event loop; one call at a time."""

    def __init__(self, path: Path | str | None = None):
        self._path = Path(path) if path else default_socket("edge")
        self._ids = itertools.count(1)
        self._frames_in = FrameReader(max_items=MAX_ITEMS)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Self:
        try:
            self._socket.connect(str(self._path))
        except OSError as e:
            raise _unreachable(self._path, e) from None
        try:
            _check_daemon(self._socket, self._path)
        except DaemonError:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def call(
        self, verb: str, on_event: Callable[[dict[str, Any]], None] = lambda event: None, **args: Any
    ) -> dict[str, Any]:
        """Result of one call; `on_event` gets its events. Raises RemoteError with the daemon's reason."""
        result: dict[str, Any] = {}
        for done, result in self._frames(verb, args):
            if not done:
                on_event(result)
        return result

    def stream(self, prompt: Prompt, **args: Any) -> Iterator[dict[str, Any]]:
        """As `Client.stream`."""
        for done, fields in self._frames("run", {"prompt": prompt, **args}):
            yield {"event": "done", **fields} if done else fields

    def _frames(self, verb: str, args: dict[str, Any]) -> Iterator[tuple[bool, dict[str, Any]]]:
        call, done = next(self._ids), False
        try:
            self._socket.sendall(encode_frame([ControlType.CALL, call, verb, args]))
            for fields in self._incoming():
                # Frames of a call that was left early may still be on their way.
                if fields[1] == call:
                    done, content = _outcome(fields)
                    yield done, content
                    if done:
                        return
        except RemoteError:
            done = True
            raise
        except ConnectionError:
            raise _closed(self._path) from None
        finally:
            if not done:
                with contextlib.suppress(OSError):
                    self._socket.sendall(encode_frame([ControlType.CANCEL, call]))

    def _incoming(self) -> Iterator[list[Any]]:
        data = b""
        while True:
            for fields, _ in self._frames_in.feed(data):
                yield fields
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise _closed(self._path)
