"""`python flooder.py HOST:PORT CA TRACE TOKEN CONNECTIONS KIND`: what a hostile neighbour can send.

It holds so many connections that never finish their TLS handshake, from many addresses of this machine, and
opens each again as soon as it is closed. With a token it sends frames of one kind as fast as the link takes
them: wrong hints for a session, very long frames of them, PINGs, or OPENs with a long known prefix, each
followed by its RESET. It runs until it is killed.
"""

import asyncio
import itertools
import socket
import ssl
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic

import uvloop

from ecd.addresses import split_address
from ecd.errors import Code
from ecd.lab.replay import ReplayModel
from ecd.lab.shipped import find_file
from ecd.lab.trace import load_trace
from ecd.trust.settings import EdgeTls
from ecd.trust.tls import edge_context
from ecd.wire.connection import Closed, Connection, Received, Role, Settings
from ecd.wire.frames import encode_frame, id_width
from ecd.wire.messages import Draft, Message, Open, Pace, Ping, Reset, Tokens, to_fields
from ecd.wire.prefix import BLOCK_TOKENS, blocks

# The beginning of a ClientHello, the rest of which never comes.
HALF_A_GREETING = bytes.fromhex("16030100dc010000d80303")
SOURCES = 16
HINTS, LONG_HINTS = 16, 20_000
FRAMES_AT_ONCE = 64
PREFIX_BLOCKS = 48


async def hold(address: tuple[str, int], source: str) -> None:
    """One connection that never gets anywhere, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.bind((source, 0))
            try:
                await loop.sock_connect(sock, address)
                await loop.sock_sendall(sock, HALF_A_GREETING)
                while await loop.sock_recv(sock, 1024):
                    pass
            except OSError:
                pass
        await asyncio.sleep(0)


class Hostile:
    """One session after another, and more frames of one kind than anybody has a use for."""

    def __init__(self, settings: Settings, prompt: tuple[int, ...], wrong: int, kind: str):
        self._prompt = prompt
        self._wrong = wrong
        self._kind = kind
        self._width = id_width(settings.fingerprint.n_vocab)
        self._connection = Connection(settings, monotonic())
        self._stream = self._length = 0

    async def run(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        """Never returns."""
        reader, writer = await asyncio.open_connection(*address, ssl=context)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(reader, writer))
            group.create_task(self._flood(writer))

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Sees what is committed, answers pings, opens the next session."""
        while True:
            writer.write(b"".join(frame.data for frame in self._connection.output()))
            for event in self._connection.receive(await reader.read(1 << 16), monotonic()):
                match event:
                    case Received(message=Tokens(base=base, ids=ids)):
                        self._length = base + len(ids)
                    case Closed():
                        raise ConnectionError(event.message)
            if self._connection.peer is not None and not self._connection.streams:
                self._length = len(self._prompt)
                self._stream = self._connection.new_stream()
                self._connection.send(self._opening(self._stream))

    async def _flood(self, writer: asyncio.StreamWriter) -> None:
        """One piece after another, as fast as they are taken."""
        while not self._stream:
            await asyncio.sleep(0.001)
        for piece in self._pieces():
            writer.write(b"".join(encode_frame(to_fields(message, self._width)) for message in piece))
            await writer.drain()
            await asyncio.sleep(0)

    def _pieces(self) -> Iterator[list[Message]]:
        match self._kind:
            case "hints":
                while True:
                    yield [self._draft(HINTS)] * FRAMES_AT_ONCE
            case "long":
                while True:
                    yield [self._draft(LONG_HINTS)]
            case "pings":
                while True:
                    yield [Ping(0, 1)] * FRAMES_AT_ONCE
            case "opens":
                # A prefix is known once it was sent whole.
                known = (self._wrong,) * (PREFIX_BLOCKS * BLOCK_TOKENS)
                *_, (known_hash, _) = blocks(known)
                for first in itertools.count():
                    pairs = [
                        self._opened(known_hash if first else None, known) for _ in range(FRAMES_AT_ONCE)
                    ]
                    yield [message for pair in pairs for message in pair]
            case other:
                raise ValueError(other)

    def _opened(self, known_hash: bytes | None, known: tuple[int, ...]) -> tuple[Open, Reset]:
        stream = self._connection.new_stream()
        self._connection.streams.discard(stream)
        opening = replace(self._opening(stream), prompt=known)
        if known_hash is not None:
            opening = replace(opening, prefix_hash=known_hash, prefix_len=len(known), prompt=(self._wrong,))
        return opening, Reset(stream, Code.CANCELLED, "")

    def _opening(self, stream: int) -> Open:
        return Open(stream, None, 0, self._prompt, (), {"rule": "greedy"}, 512, (), Pace(0, 1))

    def _draft(self, hints: int) -> Draft:
        return Draft(self._stream, self._length, self._length, (self._wrong,) * hints)


async def flood(listen: str, ca: str, trace_name: str, token: str, connections: int, kind: str) -> None:
    """Everything at once, for ever."""
    address = split_address(listen)
    trace = load_trace(find_file("traces", trace_name))
    settings = Settings(Role.EDGE, "flooder", ReplayModel(trace).fingerprint(), token=token)
    recording = max(trace.recordings, key=lambda each: len(each.target_ids))
    wrong = next(each for each in range(trace.n_vocab) if each not in recording.target_ids)
    hostile = Hostile(settings, recording.prompt_ids, wrong, kind)
    async with asyncio.TaskGroup() as group:
        group.create_task(hostile.run(address, edge_context(EdgeTls(ca=Path(ca)))))
        for number in range(connections):
            group.create_task(hold(address, f"127.0.1.{1 + number % SOURCES}"))


if __name__ == "__main__":
    uvloop.run(flood(*sys.argv[1:5], int(sys.argv[5]), sys.argv[6]))
