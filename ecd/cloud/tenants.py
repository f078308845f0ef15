"""Tenants: what the edges that share a token may use together, and what they have used.

Pure; time is passed in. Knows no links and no sessions but their number. A limit that is exceeded concerns
its tenant alone: what can wait is held back, what cannot is refused with a code.
"""

from dataclasses import dataclass, field
from typing import Any

from ecd.errors import LimitExceeded, Overloaded
from ecd.trust.bucket import TokenBucket
from ecd.trust.settings import Limits


def _bucket(rate: float | None, now: float) -> TokenBucket | None:
    return None if rate is None else TokenBucket.full(rate, now)


@dataclass(slots=True)
class Tenant:
    """One tenant. `hints` holds its reading back, `rejections` the verification of its hints."""

    name: str
    limits: Limits
    hints: TokenBucket | None
    rejections: TokenBucket | None
    sessions: int = 0
    refused: int = 0
    charged: int = 0
    rejected: int = 0

    @classmethod
    def of(cls, name: str, limits: Limits, now: float) -> "Tenant":
        """One that has used nothing yet."""
        return cls(name, limits, _bucket(limits.hints_per_s, now), _bucket(limits.rejected_per_s, now))

    def check_open(self, prompt_tokens: int) -> None:
        """Raises LimitExceeded for too long a prompt, Overloaded when there are too many sessions."""
        longest, most = self.limits.prompt_tokens, self.limits.sessions
        if longest is not None and prompt_tokens > longest:
            self.refused += 1
            raise LimitExceeded(
                f"the token {self.name!r} allows prompts of {longest} tokens, not {prompt_tokens}; "
                "shorten it, or ask the cloud's operator for more"
            )
        if most is not None and self.sessions >= most:
            self.refused += 1
            raise Overloaded(
                f"the token {self.name!r} allows {most} sessions at once; wait for one of them to end"
            )

    def opened(self) -> None:
        """Counts a session in."""
        self.sessions += 1

    def closed(self) -> None:
        """Counts a session out."""
        self.sessions -= 1

    def charge(self, amount: int, now: float) -> None:
        """So many hints, or frames, came."""
        self.charged += amount
        if self.hints is not None:
            self.hints.take(amount, now)

    def wait_s(self, now: float) -> float:
        """How long nothing more is to be read from it."""
        return 0.0 if self.hints is None else self.hints.wait_s(now)

    def reject(self, count: int, now: float) -> None:
        """So many of its hints were verified in vain."""
        self.rejected += count
        if self.rejections is not None and count:
            self.rejections.take(count, now)

    def may_verify(self, now: float) -> bool:
        """Whether its hints are worth the target's time now; without them it decodes as ever."""
        return self.rejections is None or not self.rejections.wait_s(now)

    def check_held(self, held_bytes: int) -> None:
        """Raises LimitExceeded when the cloud holds too much for it."""
        most = self.limits.bytes_in_flight
        if most is not None and held_bytes > most:
            self.refused += 1
            raise LimitExceeded(
                f"the token {self.name!r} allows {most} bytes in flight and its connections hold {held_bytes}"
            )

    def stats(self) -> dict[str, int]:
        """What `stats` tells of it."""
        return {
            "sessions": self.sessions,
            "charged_hints": self.charged,
            "rejected_hints": self.rejected,
            "refused": self.refused,
        }


@dataclass(slots=True)
class Tenants:
    """All tenants that were here since the start; each new connection may bring new limits of its own."""

    limits: Limits
    by_name: dict[str, Tenant] = field(default_factory=dict)

    def enter(self, name: str, own: Limits, now: float) -> Tenant:
        """The tenant of that name, with its own limits over those of all."""
        limits = self.limits.but(own)
        tenant = self.by_name.get(name)
        if tenant is None:
            tenant = self.by_name[name] = Tenant.of(name, limits, now)
        elif tenant.limits != limits:
            tenant.limits = limits
            tenant.hints = _bucket(limits.hints_per_s, now)
            tenant.rejections = _bucket(limits.rejected_per_s, now)
        return tenant

    def stats(self) -> dict[str, Any]:
        """By name what each has used; nothing of those without a token."""
        return {name: tenant.stats() for name, tenant in self.by_name.items() if name}
