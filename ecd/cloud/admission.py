"""Who may come in before anything is known of them: connections counted, in all and by address.

Pure; knows no sockets and no tokens.
"""

import ipaddress
from collections import Counter
from dataclasses import dataclass, field


def source_of(host: str) -> str:
    """What counts as one address: an IPv4 address, and of IPv6 a /64, which is what one customer is given."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


@dataclass(slots=True)
class Admission:
    """At most `total` connections, at most `per_address` of them from one source."""

    total: int
    per_address: int
    held: int = 0
    refused: int = 0
    by_source: Counter[str] = field(default_factory=Counter)

    def enter(self, source: str) -> str | None:
        """Counts one in; if it may not come in, why."""
        if self.by_source[source] >= self.per_address:
            reason = f"{source} has {self.per_address} connections already (`connections.per_address`)"
        elif self.held >= self.total:
            reason = f"there are {self.total} connections already (`connections.total`)"
        else:
            self.held += 1
            self.by_source[source] += 1
            return None
        self.refused += 1
        return reason

    def leave(self, source: str) -> None:
        """Counts one out that was let in."""
        self.held -= 1
        self.by_source[source] -= 1
        if not self.by_source[source]:
            del self.by_source[source]
