"""`python flooder.py HOST:PORT CA TRACE TOKEN CONNECTIONS`: everything that a hostile neighbour can send.

It holds so many connections that never finish their TLS handshake, from many addresses of this machine, and
opens each again as soon as it is closed. With a token it keeps one session going and sends wrong hints for it
as fast as the link takes them. It runs until it is killed.
"""

import asyncio
import socket
import ssl
import sys
from pathlib import Path
from time import monotonic

import uvloop

from ecd.addresses import split_address
from ecd.lab.replay import ReplayModel
from ecd.lab.shipped import find_file
from ecd.lab.trace import load_trace
from ecd.trust.settings import EdgeTls
from ecd.trust.tls import edge_context
from ecd.wire.connection import Closed, Connection, Received, Role, Settings
from ecd.wire.frames import encode_frame, id_width
from ecd.wire.messages import Draft, Open, Pace, Tokens, to_fields

# The beginning of a ClientHello, the rest of which never comes.
HALF_A_GREETING = bytes.fromhex("16030100dc010000d80303")
SOURCES = 16
HINTS = 16
FRAMES_AT_ONCE = 64


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


class Hinting:
    """One session after another, and hints for them that are never right."""

    def __init__(self, settings: Settings, prompt: tuple[int, ...], wrong: int):
        self._prompt = prompt
        self._wrong = wrong
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
                greedy = {"rule": "greedy"}
                self._connection.send(
                    Open(self._stream, None, 0, self._prompt, (), greedy, 512, (), Pace(0, 1))
                )

    async def _flood(self, writer: asyncio.StreamWriter) -> None:
        """Hints for the next positions, as fast as they are taken."""
        while True:
            if self._stream:
                draft = Draft(self._stream, self._length, self._length, (self._wrong,) * HINTS)
                writer.write(encode_frame(to_fields(draft, self._width)) * FRAMES_AT_ONCE)
                await writer.drain()
            await asyncio.sleep(0)


async def flood(listen: str, ca: str, trace_name: str, token: str, connections: int) -> None:
    """Everything at once, for ever."""
    address = split_address(listen)
    trace = load_trace(find_file("traces", trace_name))
    settings = Settings(Role.EDGE, "flooder", ReplayModel(trace).fingerprint(), token=token)
    recording = max(trace.recordings, key=lambda each: len(each.target_ids))
    wrong = next(each for each in range(trace.n_vocab) if each not in recording.target_ids)
    hinting = Hinting(settings, recording.prompt_ids, wrong)
    async with asyncio.TaskGroup() as group:
        group.create_task(hinting.run(address, edge_context(EdgeTls(ca=Path(ca)))))
        for number in range(connections):
            group.create_task(hold(address, f"127.0.1.{1 + number % SOURCES}"))


if __name__ == "__main__":
    uvloop.run(flood(*sys.argv[1:5], int(sys.argv[5])))
