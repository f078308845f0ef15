"""An edge service whose one cloud is the test: a real choice of clouds over a link that is made up."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ecd.edge.drafter import DraftTask, Prefill
from ecd.edge.fleet import Served
from ecd.edge.service import EdgeService
from ecd.edge.uplink import Backoff, LinkState, Uplink
from ecd.edge.uplinks import Place, Uplinks
from ecd.sampling import Guess
from ecd.wire.connection import Role, Rtt, Settings
from ecd.wire.fingerprint import Fingerprint

SERVED = Served("bytes", "v", "p", {})


class NoDrafter:
    """Has no slot; a text of `slot_tokens` would fit one."""

    slots = branches = 0

    def __init__(self, slot_tokens: int = 0) -> None:
        self.slot_tokens = slot_tokens

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        raise AssertionError

    def release(self, slot: int) -> None: ...

    def prefill(self, slot: int) -> Prefill:
        raise AssertionError

    def stats(self) -> dict[str, int]:
        return {}

    def close(self) -> None: ...


class MadeUpLink:
    """What a service sees of a link. `sent` and `closed` are what it does with it."""

    peername = "cloud:1"

    def __init__(self, limits: dict[str, int] | None = None, features: tuple[str, ...] = ()) -> None:
        self.sent: list[Any] = []
        self.closed: list[tuple[Any, str]] = []
        self.traffic = SimpleNamespace(bytes_in=30, bytes_out=40)
        streams: set[int] = set()

        def new_stream() -> int:
            streams.add(len(streams) + 1)
            return len(streams)

        self.connection = SimpleNamespace(
            peer=SimpleNamespace(limits=limits or {}, features=features),
            peer_draining=False,
            peer_load={},
            rtt=Rtt(),
            heard_at=asyncio.get_running_loop().time(),
            streams=streams,
            new_stream=new_stream,
        )

    def packet_bytes(self) -> tuple[int, int]:
        return 50, 60

    def certificate_expires(self) -> float | None:
        return None

    def send(self, message: Any) -> int:
        self.sent.append(message)
        return 1

    def close(self, code: Any, message: str) -> None:
        self.closed.append((code, message))


def connect(uplinks: Uplinks, uplink: Uplink, link: Any, max_context: int = 1 << 20) -> None:
    """A handshake has been made over `link`."""
    uplink.link, uplink.state, uplink.reason = link, LinkState.CONNECTED, ""
    uplink.connects += 1
    now = asyncio.get_running_loop().time()
    assert uplinks.fleet.connected(uplink.key, SERVED, max_context, now, bound=False) is None


def attach(service: EdgeService, *places: Place) -> Uplinks:
    """Clouds that nobody connects to but the test."""
    settings = Settings(Role.EDGE, "test", Fingerprint(256, "v", {}, "bytes", "p"))
    uplinks = Uplinks(
        places or (Place("cloud", 1),), settings, Backoff(1, 1), service.on_event, lambda: service.bound
    )
    service.attach(uplinks)
    return uplinks
