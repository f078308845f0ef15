"""What is fuzzed: functions of bytes that raise when a promise of docs/PROTOCOL.md is broken.

`python -m tests.fuzz` runs them under atheris, `test_fuzz.py` on the kept inputs. TARGETS has them by name,
each within the bounds of one call; what piles up over many calls is libFuzzer's to notice.
"""

import asyncio
import resource
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from time import thread_time
from typing import Any

from ecd.control import MAX_ITEMS, ControlType, Notify, control_socket
from ecd.errors import BadRequest, ProtocolError
from ecd.wire.connection import ALLOWED, Closed, Connected, Connection, Event, Role, Settings, State
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.frames import LENGTH_BYTES, FrameReader, decode_body, encode_frame
from ecd.wire.messages import Error, Message, Ping, Pong, from_fields, to_fields
from tests.fuzz.ends import CLOUD, EDGE, FINGERPRINT, WIDTH, CloudEnd, EdgeEnd, greeting

# One call takes no more CPU time and makes the process's peak no larger. The decoder alone may take 100 MiB
# (PROTOCOL.md, section 13), and a machine under load has slow moments.
MAX_CPU_S = 1.0
MAX_GROWTH_KIB = 160 << 10
# Bytes that an end queues for each byte that arrives, and beside that: its own HELLO, PING and ERROR.
OUTPUT_PER_BYTE, OUTPUT_BESIDE = 40, 24 << 10

Target = Callable[[bytes], None]


def frames(data: bytes) -> None:
    """The frame reader: any chunking gives the same frames, and no more is held than is allowed."""
    size, stream = data[:1], data[1:]
    limit = 1 << 16
    whole, cut = FrameReader(limit), FrameReader(limit)
    found = _frames_of(whole, [stream])
    assert _frames_of(cut, _chunks(stream, size)) == found
    for reader in (whole, cut):
        assert reader.buffered_bytes <= min(len(stream), limit + LENGTH_BYTES)
    for array, length in found[0]:
        assert LENGTH_BYTES < length <= len(stream)
        again = decode_body(encode_frame(array)[LENGTH_BYTES:])
        assert repr(again) == repr(array)


def messages(data: bytes) -> None:
    """Message decoding: a message or a ProtocolError, and what was decoded travels again unchanged."""
    width = 3 if data[:1] > b"\x7f" else 2
    try:
        message = from_fields(decode_body(data[1:]), width)
    except ProtocolError:
        return
    if message is not None:
        sent = encode_frame(to_fields(message, width))
        again = from_fields(decode_body(sent[LENGTH_BYTES:]), width)
        assert repr(again) == repr(message)


def fingerprints(data: bytes) -> None:
    """A peer's fingerprint: taken or refused, and every difference can be told."""
    try:
        given = decode_body(b"\x93\x01\x00" + data)[2]
        if not isinstance(given, dict):
            return
        theirs = Fingerprint.from_map(given)
    except ProtocolError:
        return
    assert theirs.to_map().keys() == FINGERPRINT.to_map().keys()
    there, back = FINGERPRINT.differences(theirs), theirs.differences(FINGERPRINT)
    assert bool(there) == bool(back)
    assert all(len(reason) < 1000 + 2 * len(data) for reason in (*there, *back))


def edge(data: bytes) -> None:
    """An edge's connection with two answers, and a cloud that says anything."""
    _end(EDGE, EdgeEnd, data)


def cloud(data: bytes) -> None:
    """A cloud's connection with its sessions, and an edge that says anything."""
    _end(CLOUD, CloudEnd, data)


def control(data: bytes) -> None:
    """The control socket: every call of a program that says anything has an end, and leaves no task."""
    _CONTROL.ask(data)


# -- connections


def _end(settings: Settings, kind: type[EdgeEnd] | type[CloudEnd], data: bytes) -> None:
    """First byte: 1 after a handshake, 2 while draining, 4 with nothing behind it; second: chunk size."""
    flags, size, stream = (data[:1] or b"\0")[0], data[1:2], data[2:]
    greeted = greeting(settings.role) if flags & 1 else b""
    if flags & 4:
        whole, cut = _Watched(settings, flags), _Watched(settings, flags)
        whole.receive(greeted + stream, 0.0)
        for chunk in _chunks(greeted + stream, size) or [b""]:
            cut.receive(chunk, 0.0)
        assert repr(cut.events) == repr(whole.events)
        assert cut.sent == whole.sent
        cut.check(greeted + stream)
        return
    watched = _Watched(settings, flags)
    end = kind(watched.connection)
    for number, chunk in enumerate([greeted, *_chunks(stream, size)]):
        end.take(watched.receive(chunk, now := number / 1000), now)
        end.check()
    watched.note(end.events)
    watched.check(greeted + stream)


class _Watched:
    """A connection whose events and frames are kept and checked."""

    def __init__(self, settings: Settings, flags: int) -> None:
        self.connection = Connection(settings, 0.0)
        self.events: list[Event] = []
        self.sent: list[bytes] = []
        if flags & 2:
            self.connection.drain("draining from the start")

    def receive(self, data: bytes, now: float) -> list[Event]:
        events = self.connection.receive(data, now)
        self.note(events)
        return events

    def note(self, events: Iterable[Event]) -> None:
        self.events.extend(events)
        self.sent.extend(frame.data for frame in self.connection.output())

    def check(self, stream: bytes) -> None:
        """What holds once all bytes have arrived, and after the silence behind them."""
        connection, settings = self.connection, self.connection.settings
        was_open = connection.state is State.OPEN
        at_once = [message for message in self._messages() if isinstance(message, Pong)]
        asked = [message.cookie for message in _messages_in(stream) if isinstance(message, Ping)]
        assert [pong.cookie for pong in at_once] == asked[: None if was_open else len(at_once)]
        now = start = len(stream) / 1000
        while (due := connection.next_timer()) is not None:
            assert due <= start + settings.handshake_s + settings.silence_s
            now = max(now, due)
            self.note(connection.timeout(now))
        # A violation gives one ERROR and one end, and then silence.
        assert connection.state is State.CLOSED
        assert [type(event) for event in self.events].count(Closed) == 1
        assert isinstance(self.events[-1], Closed)
        assert [type(event) for event in self.events].count(Connected) <= 1
        sent = self._messages()
        assert [type(message) for message in sent].count(Error) <= 1
        assert not any(isinstance(message, Error) for message in sent[:-1])
        assert not connection.receive(greeting(settings.role) + stream, now)
        assert not connection.timeout(now)
        assert not connection.output()
        assert sum(map(len, self.sent)) <= OUTPUT_PER_BYTE * len(stream) + OUTPUT_BESIDE
        peer = Role.CLOUD if settings.role is Role.EDGE else Role.EDGE
        allowed = ALLOWED[peer, State.HANDSHAKE] | ALLOWED[peer, State.OPEN]
        assert all(type(message) in allowed for message in sent if not isinstance(message, Error))

    def _messages(self) -> list[Message]:
        return list(_messages_in(b"".join(self.sent)))


def _messages_in(stream: bytes) -> Iterator[Message]:
    """The messages in a byte stream up to the first thing that is none."""
    try:
        for array, _ in FrameReader().feed(stream):
            message = from_fields(array, WIDTH)
            if message is not None:
                yield message
    except ProtocolError:
        return


def _frames_of(reader: FrameReader, chunks: Iterable[bytes]) -> tuple[list[tuple[list[Any], int]], str]:
    """All frames, and what was wrong with the next one."""
    found: list[tuple[list[Any], int]] = []
    try:
        for chunk in chunks:
            found.extend(reader.feed(chunk))
    except ProtocolError as e:
        return found, str(e)
    return found, ""


def _chunks(stream: bytes, size: bytes) -> list[bytes]:
    """As many bytes each as the first byte of `size` says and one more; one chunk without it."""
    step = size[0] + 1 if size else max(1, len(stream))
    return [stream[at : at + step] for at in range(0, len(stream), step)]


# -- the control socket


class _Control:
    """A control socket of its own, opened by the first that asks."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._path = Path()
        self._stack = AsyncExitStack()

    def ask(self, data: bytes) -> None:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._path = Path(tempfile.mkdtemp(prefix="ecd-fuzz-")) / "control.sock"
            serving = control_socket(self._path, {"echo": _echo, "wait": _wait, "fail": _fail})
            self._loop.run_until_complete(self._stack.enter_async_context(serving))
        self._loop.run_until_complete(self._ask(data))

    async def _ask(self, data: bytes) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        writer.write(data)
        writer.write_eof()
        answer = b""
        try:
            async with asyncio.timeout(5):
                answer = await reader.read()
        except ConnectionError:
            pass  # it closed with bytes of ours unread
        writer.close()
        for _ in range(20):
            if len(asyncio.all_tasks()) == 1:
                break
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "a call outlived its client"
        called, replies, _ = FrameReader(max_items=MAX_ITEMS), FrameReader(max_items=MAX_ITEMS), None
        calls = [f[1] for f, _ in _frames_of(called, [data])[0] if f[0] == ControlType.CALL]
        told, wrong = _frames_of(replies, [answer])
        assert not wrong
        ends = [f[1] for f, _ in told if f[0] in (ControlType.RESULT, ControlType.FAILURE)]
        assert len(ends) <= len(calls)
        assert set(ends) <= set(calls)
        assert all(f[0] in (ControlType.EVENT, ControlType.RESULT, ControlType.FAILURE) for f, _ in told)


async def _echo(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
    await emit({"args": args})
    return args


async def _wait(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


async def _fail(args: dict[str, Any], emit: Notify) -> dict[str, Any]:
    raise BadRequest(f"not with {args}")


_CONTROL = _Control()


# -- bounds


def within_bounds(target: Target) -> Target:
    """The target, which must not take long or much, whatever the bytes."""

    def run(data: bytes) -> None:
        peak_kib, start = _peak_kib(), thread_time()
        target(data)
        assert thread_time() - start < MAX_CPU_S
        assert _peak_kib() - peak_kib < MAX_GROWTH_KIB

    return run


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


TARGETS: dict[str, Target] = {
    target.__name__: within_bounds(target)
    for target in (frames, messages, fingerprints, edge, cloud, control)
}
