"""The uplink's count of bytes over connections that come and go."""

import asyncio

from ecd.edge.uplink import Backoff, Uplink
from ecd.wire.connection import Closed, Connected, Connection, Event, Role, Settings
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.link import IPV4_HEADER_BYTES, Link

FINGERPRINT = Fingerprint(1000, "aa", {"bos": 1}, "bpe", "bb")
LIMIT_S = 10.0


async def test_bytes_of_ended_connections_still_count() -> None:
    accepted: list[Link] = []
    events: asyncio.Queue[Event] = asyncio.Queue()

    def cloud() -> Link:
        settings = Settings(Role.CLOUD, "cloud under test", FINGERPRINT)
        accepted.append(
            Link(Connection(settings, asyncio.get_running_loop().time()), lambda link, event: None)
        )
        return accepted[-1]

    async def until(kind: type[Event]) -> None:
        while not isinstance(await events.get(), kind):
            pass

    server = await asyncio.get_running_loop().create_server(cloud, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = Settings(Role.EDGE, "edge under test", FINGERPRINT)
    uplink = Uplink("127.0.0.1", port, settings, Backoff(0.01, 0.01), lambda _, e: events.put_nowait(e))
    assert uplink.packet_bytes == (0, 0)
    keeping = asyncio.create_task(uplink.keep())
    try:
        async with asyncio.timeout(LIMIT_S):
            await until(Connected)
            first = uplink.wire_bytes, uplink.packet_bytes
            for frames, packets in zip(*first, strict=True):
                assert packets >= frames + IPV4_HEADER_BYTES
            accepted[-1].abort()
            await until(Closed)
            await until(Connected)
            # The second connection's handshake took about what the first one's did.
            for once, twice in zip(first[1], uplink.packet_bytes, strict=True):
                assert twice > 1.5 * once
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        server.close()
        accepted[-1].abort()
