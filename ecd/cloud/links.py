"""The connections of a cloud: the tenant of each, how fast it may be read, what it has carried.

Knows links and tenants; not sessions, nor what messages mean.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from time import monotonic
from typing import Any

from ecd.cloud.tenants import Tenant, Tenants
from ecd.errors import AuthError, LimitExceeded
from ecd.logs import LimitedLog
from ecd.trust.settings import Limits
from ecd.trust.tokens import Token
from ecd.wire.link import Link

log = logging.getLogger(__name__)

# Lines of the log that a tenant may cause.
LINES_PER_S = 20.0
# So many bytes cost a tenant as much as a hint: long frames take their time too.
CHARGED_BYTES = 256
# What a peer may make us hold before it is asked what its tenant holds in all.
SMALL_BYTES = 64 << 10


@dataclass(slots=True)
class Carried:
    """Bytes of connections, both ways; named as in `stats`."""

    wire_bytes_in: int = 0
    wire_bytes_out: int = 0
    packet_bytes_in: int = 0
    packet_bytes_out: int = 0

    def add(self, link: Link) -> None:
        """What this one has carried until now."""
        packets_in, packets_out = link.packet_bytes()
        self.wire_bytes_in += link.traffic.bytes_in
        self.wire_bytes_out += link.traffic.bytes_out
        self.packet_bytes_in += packets_in
        self.packet_bytes_out += packets_out


class Links:
    """All connections of now.

    `limits` are each tenant's; `token` gives the token of that name, None where none is asked for, or raises
    AuthError when it is no longer good.
    """

    def __init__(self, limits: Limits, token: Callable[[str], Token | None]):
        self._token = token
        self._tenants = Tenants(limits)
        self._numbers = itertools.count(1)
        self._number_of: dict[Link, int] = {}
        self._tenant_of: dict[Link, Tenant] = {}
        self._carried = Carried()
        self._logs: dict[str, LimitedLog] = {}

    def __len__(self) -> int:
        return len(self._number_of)

    def __iter__(self) -> Iterator[Link]:
        """Those of now; they may leave meanwhile."""
        return iter(list(self._number_of))

    def add(self, link: Link) -> None:
        """A new connection, which has still to shake hands."""
        self._number_of[link] = next(self._numbers)
        link.toll, link.wait_s = self._toll, self._wait_s

    def enter(self, link: Link) -> None:
        """Notes who is at the link's other end and what it may use; ends the link when that is nothing."""
        name = link.connection.tenant
        try:
            token = self._token(name)
        except AuthError as e:
            link.close(e.code, str(e))
            return
        self._tenant_of[link] = self._tenants.enter(name, token.limits if token else Limits(), monotonic())
        if name not in self._logs:
            self._logs[name] = LimitedLog(log, f"the tenant {name!r}" if name else "edges", LINES_PER_S)

    def entered(self, link: Link) -> bool:
        """Whether it came as far as that."""
        return link in self._tenant_of

    def tenant(self, link: Link) -> Tenant:
        """Whose it is, of a link that has entered."""
        return self._tenant_of[link]

    def leave(self, link: Link) -> None:
        """The connection is no more."""
        self._carried.add(link)
        self._number_of.pop(link, None)
        self._tenant_of.pop(link, None)

    def check_tokens(self) -> None:
        """Ends the connections whose token is no longer good; the others have the limits of now."""
        for link in list(self._tenant_of):
            self.enter(link)

    def tell(self, link: Link, line: str, *details: object, **about: int) -> None:
        """Logs what became of a link that has entered, or of what `about` names on it."""
        name = link.connection.tenant
        whose = {"tenant": name} if name else {}
        extra = {"connection": self._number_of.get(link), "peer": link.peername, **whose, **about}
        self._logs[name].write(logging.INFO, line, *details, extra=extra)

    def stats(self) -> dict[str, Any]:
        """What all have carried since the start, and the tenants."""
        told = replace(self._carried)
        for link in self._number_of:
            told.add(link)
        return {"tenants": self._tenants.stats(), **asdict(told)}

    def _wait_s(self, link: Link) -> float:
        """For how long nothing more is to be done for it, seconds."""
        tenant = self._tenant_of.get(link)
        # One that is not let in yet: the handshake has limits of its own.
        return 0.0 if tenant is None else tenant.wait_s(monotonic())

    def _toll(self, link: Link, size: int, frames: int) -> None:
        """After each read."""
        tenant = self._tenant_of.get(link)
        if tenant is None:
            return
        if size:
            tenant.charge(max(1, frames) + size // CHARGED_BYTES, monotonic())
        if link.held_bytes > SMALL_BYTES:
            held = sum(each.held_bytes for each, of in self._tenant_of.items() if of is tenant)
            try:
                tenant.check_held(held)
            except LimitExceeded as e:
                link.close(e.code, str(e))
