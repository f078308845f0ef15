"""The edge's clouds: an uplink to each, and what `Fleet` decides among them carried out.

Owns which addresses a name has, and when it is looked up again. What travels on a link, and which answer runs
where, is the service's business.
"""

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from ecd.edge.fleet import Fleet, Served, Standing
from ecd.edge.uplink import Backoff, LinkState, Uplink
from ecd.errors import Code
from ecd.trust.settings import EdgeTls
from ecd.wire.connection import Closed, Connected, Event, PeerDraining, Settings, readable
from ecd.wire.link import Link
from ecd.wire.messages import Welcome

log = logging.getLogger(__name__)

# How often a name is looked up again, seconds, and how many of its addresses are used.
LOOK_UP_S = 10.0
MAX_ADDRESSES = 64
# Behind the key of an uplink whose cloud drains, beside which there is another to the same address.
ASIDE = " draining"
# Where a cloud tells no limit of its own; so many ids fit a frame.
MAX_CONTEXT_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where clouds are. `each`: every address of `host` is a cloud; else one cloud is at some of them."""

    host: str
    port: int
    weight: float = 1.0
    each: bool = False


class Uplinks:
    """Keeps a link to every cloud; tells `on_event` what happens on those that are not left out.

    bound: whether answers have tokens already, which another model must not go on from. tls: of the links,
    None for plain TCP; a cloud must have the certificate of the name that it was looked up by.
    """

    def __init__(
        self,
        places: Sequence[Place],
        settings: Settings,
        backoff: Backoff,
        on_event: Callable[[Uplink, Event], None],
        bound: Callable[[], bool],
        tls: EdgeTls | None = None,
    ):
        self.fleet = Fleet(settings.ping_interval_s, random.Random())
        self._places = places
        self._settings = settings
        self._backoff = backoff
        self._on_event = on_event
        self._bound = bound
        self._tls = tls
        self._uplinks: dict[str, Uplink] = {}
        self._keeping: dict[str, asyncio.Task[None]] = {}
        self._group = asyncio.TaskGroup()
        self._addresses: dict[Place, list[str]] = {}
        self._reason = "not tried yet"
        self._gone_wire = self._gone_packets = (0, 0)
        self._gone_connects = 0
        for place in places:
            if not place.each:
                self._add(place.host, place.port, place.weight, place.host)

    async def keep(self) -> None:
        """Connects to all clouds, and again whenever a connection ends, until cancelled."""
        async with self._group:
            self._start()
            while names := [place for place in self._places if place.each]:
                await self._look_up(names)
                self._start()
                self._drop_left()
                await asyncio.sleep(LOOK_UP_S)

    # -- which cloud

    def __len__(self) -> int:
        return len(self._uplinks)

    def __iter__(self) -> Iterator[Uplink]:
        return iter(self._uplinks.values())

    def choose(self, tokens: int, held: Mapping[Uplink, float] | None = None) -> Uplink | None:
        """The cloud for an answer of so many tokens, prompt and longest answer together; None for none.

        `held`: which share of the prompt each has from earlier texts.
        """
        self._look()
        by_key = {uplink.key: share for uplink, share in (held or {}).items()}
        return self._at(self.fleet.choose(tokens, monotonic(), by_key))

    def elsewhere(self, uplink: Uplink, tokens: int) -> Uplink | None:
        """Another cloud that would take such an answer without a wait."""
        self._look()
        return self._at(self.fleet.elsewhere(uplink.key, tokens, monotonic()))

    def successor(self, uplink: Uplink, tokens: int) -> Uplink | None:
        """Where an answer that runs at a cloud is to go on; None: it stays."""
        self._look()
        return self._at(self.fleet.successor(uplink.key, tokens, monotonic()))

    def opened(self, uplink: Uplink) -> None:
        """An answer was sent there."""
        self.fleet.opened(uplink.key)

    def troubled(self, uplink: Uplink) -> None:
        """A cloud turned an answer away that another may take."""
        self.fleet.troubled(uplink.key, monotonic())

    # -- how they are

    @property
    def shown(self) -> Uplink | None:
        """The cloud that is told of first: the best connected one, else any; None before a name is known."""
        self._look()
        return self._at(self.fleet.best(monotonic())) or next(iter(self), None)

    @property
    def link(self) -> Link | None:
        """The best connected link; None without any."""
        return self.shown.link if self.shown else None

    @property
    def state(self) -> LinkState:
        """Connected while any cloud is, else connecting while any attempt runs."""
        states = {uplink.state for uplink in self}
        return next((state for state in LinkState if state in states), LinkState.DOWN)

    @property
    def reason(self) -> str:
        """Why there is no link to a cloud, or why it takes no answers; empty while all is well."""
        return "; ".join(u.reason for u in self if u.reason) if len(self) else self._reason

    @property
    def why_none(self) -> str:
        """Why no cloud takes an answer."""
        return self.reason or "no cloud that is connected has room for so many tokens"

    @property
    def refused(self) -> str | None:
        """Why no cloud will have this edge; None while one may."""
        refusals = [f"the cloud at {u.key} refuses this edge: {u.refused}" for u in self if u.refused]
        return "; ".join(refusals) if refusals and len(refusals) == len(self) else None

    def standing(self, uplink: Uplink) -> Standing:
        """How a cloud stands."""
        self._look()
        return self.fleet.standing(uplink.key, monotonic())

    @property
    def connects(self) -> int:
        """Times that a link was made, to any cloud."""
        return self._gone_connects + sum(uplink.connects for uplink in self)

    @property
    def wire_bytes(self) -> tuple[int, int]:
        """Bytes received and sent since the start, over all connections."""
        return _sums([self._gone_wire, *(uplink.wire_bytes for uplink in self)])

    @property
    def packet_bytes(self) -> tuple[int, int]:
        """The same with TCP/IP headers and bare acknowledgements."""
        return _sums([self._gone_packets, *(uplink.packet_bytes for uplink in self)])

    # -- inside

    def _at(self, key: str | None) -> Uplink | None:
        return None if key is None else self._uplinks[key]

    def _look(self) -> None:
        """Tells the fleet what the links know."""
        for key, uplink in self._uplinks.items():
            if uplink.link is not None:
                connection = uplink.link.connection
                self.fleet.told(key, connection.rtt.smoothed_s, connection.peer_load, connection.heard_at)

    def _on_uplink_event(self, uplink: Uplink, event: Event) -> None:
        match event:
            case Connected(Welcome() as peer):
                served = Served.of(peer.model, peer.fingerprint)
                limit = peer.limits.get("max_context", MAX_CONTEXT_TOKENS)
                reason = self.fleet.connected(uplink.key, served, limit, monotonic(), bound=self._bound())
                if reason is not None:
                    assert uplink.link is not None
                    uplink.link.close(Code.FINGERPRINT, f"{readable(reason)}; it is left out")
                    return
            case PeerDraining():
                uplink.reason = f"the cloud takes no new sessions: {event.message}"
                log.info("%s: %s", uplink.key, uplink.reason)
                self.fleet.draining(uplink.key)
                if not any(place.each for place in self._places):
                    self._connect_beside(uplink)
            case Closed():
                self.fleet.closed(uplink.key)
            case _:
                pass
        self._on_event(uplink, event)
        if isinstance(event, Closed) and uplink.key.endswith(ASIDE):
            # Once it has counted what it carried.
            asyncio.get_running_loop().call_soon(self._drop, uplink)

    def _add(self, host: str, port: int, weight: float, name: str) -> str:
        uplink = Uplink(host, port, self._settings, self._backoff, self._on_uplink_event, self._tls, name)
        self._uplinks.setdefault(uplink.key, uplink)
        self.fleet.add(uplink.key, weight)
        return uplink.key

    def _start(self) -> None:
        for key, uplink in self._uplinks.items():
            if key not in self._keeping:
                self._keeping[key] = self._group.create_task(uplink.keep())

    def _connect_beside(self, uplink: Uplink) -> None:
        """Behind the one address of a draining cloud there may be others: the next connection may reach one.

        While it reaches a draining one too, it is made anew now and then.
        """
        aside = uplink.key + ASIDE
        if aside in self._uplinks:
            asyncio.get_running_loop().call_later(self._backoff.longest_s, _close_draining, uplink)
            return
        key, weight = uplink.key, self.fleet.members[uplink.key].weight
        self.fleet.rename(key, aside)
        self._uplinks[aside], self._keeping[aside] = self._uplinks.pop(key), self._keeping.pop(key)
        uplink.key = aside
        self._add(uplink.host, uplink.port, weight, uplink.name)
        self._start()

    async def _look_up(self, names: Sequence[Place]) -> None:
        """Uses the addresses that names have now, and no longer those that they had. A name that cannot be
        looked up keeps its own.
        """
        for place in names:
            try:
                found = await asyncio.get_running_loop().getaddrinfo(
                    place.host, place.port, type=socket.SOCK_STREAM
                )
            except OSError as e:
                reason = f"cannot look up {place.host}: {e.strerror or e}"
                if reason != self._reason:
                    log.warning("%s", reason)
                self._reason = reason
                continue
            hosts = list(dict.fromkeys(str(address[0]) for *_, address in found))[:MAX_ADDRESSES]
            self._addresses[place] = [self._add(host, place.port, place.weight, place.host) for host in hosts]
        wanted = {key for keys in self._addresses.values() for key in keys}
        for key in self._uplinks.keys() - wanted:
            self.fleet.leave(key)

    def _drop_left(self) -> None:
        """Ends the links that are not to be used any more and on which nothing runs."""
        for key, uplink in list(self._uplinks.items()):
            idle = uplink.link is None or not uplink.link.connection.streams
            if idle and self.fleet.members[key].leaving:
                log.info("%s is no cloud of this edge any more", key)
                self._drop(uplink)

    def _drop(self, uplink: Uplink) -> None:
        self._keeping.pop(uplink.key).cancel()
        del self._uplinks[uplink.key]
        self.fleet.remove(uplink.key)
        self._gone_connects += uplink.connects
        self._gone_wire = _sums([self._gone_wire, uplink.wire_bytes])
        self._gone_packets = _sums([self._gone_packets, uplink.packet_bytes])


def _close_draining(uplink: Uplink) -> None:
    link = uplink.link
    if link is not None and link.connection.peer_draining and not link.connection.streams:
        link.close(Code.DRAINING, "this edge looks for a cloud that takes sessions")


def _sums(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(one for one, _ in pairs), sum(other for _, other in pairs)
