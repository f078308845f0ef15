"""The edge's one connection to a cloud: made, kept, lost and made again.

Owns connect attempts and back-off. What travels on the link is the service's business; which of several
clouds an answer goes to is that of `Uplinks`.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic
from typing import Any

from ecd.errors import Code, ConfigError
from ecd.trust.settings import EdgeTls
from ecd.trust.tls import edge_context, why_edge_failed
from ecd.wire.connection import Closed, Connected, Connection, Event, Settings, readable
from ecd.wire.link import Link

log = logging.getLogger(__name__)


class LinkState(StrEnum):
    """CONNECTING while an attempt or a handshake runs, DOWN between attempts."""

    CONNECTED = "connected"
    CONNECTING = "connecting"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between attempts: `first_s`, doubled each time up to `longest_s`, less a random half.

    The jitter keeps many edges from coming back in the same instant (AWS Architecture Blog 2015, 'Exponential
    backoff and jitter', the 'equal jitter' variant).
    """

    first_s: float
    longest_s: float

    def delay_s(self, failures: int, rng: random.Random) -> float:
        """Wait before the next attempt after so many failures in a row (at least 1)."""
        ceiling = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60))
        return ceiling * (0.5 + rng.random() / 2)


class Uplink:
    """Keeps a link to `host:port`; tells `on_event` of everything that happens on it.

    `key` tells uplinks apart. `tls`: None for plain TCP; its files are read again for each connection.
    `name`: whose certificate the cloud must have, unless `tls` says; None: `host`. `link` is the connected
    link or None. `refused` says why the cloud will not have this edge, or why it is left out, None while
    neither is so.
    """

    def __init__(
        self,
        host: str,
        port: int,
        settings: Settings,
        backoff: Backoff,
        on_event: Callable[["Uplink", Event], None],
        tls: EdgeTls | None = None,
        name: str | None = None,
    ):
        self.host, self.port = host, port
        self.name = name or host
        self.key = f"{host}:{port}"
        self.state = LinkState.DOWN
        self.link: Link | None = None
        self.reason = "not tried yet"
        self.refused: str | None = None
        self.connects = 0
        self._settings = settings
        self._backoff = backoff
        self._on_event = on_event
        self._tls = tls
        self._closed = asyncio.Event()
        self._wire_in = self._wire_out = 0
        self._packets_in = self._packets_out = 0

    async def keep(self) -> None:
        """Connects, and again whenever the connection ends, until cancelled."""
        rng = random.Random()
        failures = 0
        while True:
            started = monotonic()
            await self._once()
            # A link that ends as soon as it is made is a failure too.
            failures = 1 if monotonic() - started > self._backoff.longest_s else failures + 1
            self.state = LinkState.DOWN
            delay_s = self._backoff.longest_s if self.refused else self._backoff.delay_s(failures, rng)
            await asyncio.sleep(delay_s)

    @property
    def wire_bytes(self) -> tuple[int, int]:
        """Bytes received and sent since the start, over all connections."""
        live = self.link.traffic if self.link else None
        return self._wire_in + (live.bytes_in if live else 0), self._wire_out + (
            live.bytes_out if live else 0
        )

    @property
    def packet_bytes(self) -> tuple[int, int]:
        """The same with TCP/IP headers and bare acknowledgements."""
        live_in, live_out = self.link.packet_bytes() if self.link else (0, 0)
        return self._packets_in + live_in, self._packets_out + live_out

    async def _once(self) -> None:
        """One connection from attempt to end."""
        self.state = LinkState.CONNECTING
        self._closed.clear()
        loop = asyncio.get_running_loop()
        links: list[Link] = []

        def protocol() -> Link:
            links.append(Link(Connection(self._settings, monotonic()), self._on_link_event))
            return links[-1]

        name = self.name if self._tls is None else self._tls.server_name or self.name
        try:
            context = None if self._tls is None else edge_context(self._tls)
            async with asyncio.timeout(self._settings.handshake_s):
                await loop.create_connection(
                    protocol,
                    self.host,
                    self.port,
                    ssl=context,
                    server_hostname=None if context is None else name,
                )
        except ConfigError as e:
            self._note(str(e), refused=True)
            return
        except (OSError, TimeoutError) as e:
            why = why_edge_failed(e, name) if self._tls is not None and isinstance(e, OSError) else None
            reason = why or str(e) or "timed out"
            # Another attempt meets the same certificate.
            refused = isinstance(e, ssl.SSLCertVerificationError)
            self._note(f"cannot reach the cloud at {self.host}:{self.port}: {reason}", refused=refused)
            return
        try:
            await self._closed.wait()
        finally:
            links[-1].abort()
            self._wire_in += links[-1].traffic.bytes_in
            self._wire_out += links[-1].traffic.bytes_out
            ended_in, ended_out = links[-1].packet_bytes()
            self._packets_in += ended_in
            self._packets_out += ended_out

    def _on_link_event(self, link: Link, event: Event) -> None:
        match event:
            case Connected():
                self.state, self.link = LinkState.CONNECTED, link
                self.connects += 1
                self.refused = None
                self.reason = ""
                log.info(
                    "connected to the cloud (%s)", readable(event.peer.agent[:100]), extra=self.about(link)
                )
            case Closed():
                reason = event.message
                if self.link is None and event.code is Code.UNAVAILABLE:
                    # TLS of the other end does not tell why; an edge's certificate is judged last.
                    demanded = "TLS (`tls`)" if self._tls is None else "another `tls.certificate`"
                    reason += f" before its welcome; it may demand {demanded} of this edge, and its log says"
                self.link = None
                self._note(reason, refused=not event.retry)
                self._closed.set()
        self._on_event(self, event)

    def about(self, link: Link) -> dict[str, Any]:
        """What a line of the log names a connection by."""
        return {"connection": self.connects, "peer": link.peername}

    def _note(self, reason: str, *, refused: bool) -> None:
        self.refused = reason if refused else None
        if reason != self.reason:
            log.warning("no link to %s:%d: %s", self.host, self.port, reason)
        self.reason = reason
