"""Several clouds as one: which of them an answer goes to, when it leaves one, and the model that all serve.

Pure. Owns how each cloud stands, by what its link and its PONGs tell. It knows no sockets and no answers;
time is passed in, in seconds on any monotonic clock.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

# A cloud that turned an answer away is asked again after this, or before if no other is left: by then a PONG
# has told its load anew.
TROUBLE_S = 2.0
# A live cloud is heard of once per PING; so much later, and two round trips, it counts as quiet.
QUIET_SLACK_S = 0.5
# Added to what a token takes: clouds that differ by less than this are equally near.
SAME_S = 0.01
# A cloud that holds all of a prompt may cost up to 1 / (1 - HELD_WORTH) times what another does.
HELD_WORTH = 0.5
NOTHING_HELD: Mapping[str, float] = MappingProxyType({})


class Standing(StrEnum):
    """How a cloud stands. Answers leave one that is QUIET, DRAINING or LEAVING as soon as another is READY.

    DOWN: no link. TROUBLED: turned an answer away just now. QUIET: not heard of for longer than a PING takes.
    LEAVING: no longer one of the edge's clouds.
    """

    DOWN = "down"
    READY = "ready"
    TROUBLED = "troubled"
    QUIET = "quiet"
    DRAINING = "draining"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class Served:
    """What a cloud serves. Two clouds give the same text only if all of this is equal.

    `special` has the ids that end an answer, which are the cloud's to say.
    """

    name: str
    vocabulary: str
    probes: str
    special: Mapping[str, Any]

    @classmethod
    def of(cls, model: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> "Served":
        """From the `model` and the `fingerprint` of a WELCOME, of which the latter has been checked."""
        return cls(
            str(model.get("name", "")),
            fingerprint["vocabulary"],
            fingerprint["probes"],
            dict(fingerprint["special"]),
        )


@dataclass(slots=True)
class Member:
    """One cloud, as far as it is known. `served` is None without a link.

    max_context: tokens that prompt and answer may have, 0 until it has told; stays when the link is lost.
    opened: answers sent there since it told its load.
    """

    weight: float
    served: Served | None = None
    max_context: int = 0
    draining: bool = False
    leaving: bool = False
    rtt_s: float | None = None
    heard_at: float = 0.0
    load: Mapping[str, Any] = field(default_factory=dict)
    opened: int = 0
    troubled_until: float = float("-inf")

    @property
    def waiting(self) -> bool:
        """Whether sessions wait for room there."""
        return _number(self.load, "queued") > 0

    @property
    def cost(self) -> float:
        """What one more answer makes of this cloud: those who share it, times what a token takes each."""
        sharing = 1 + _number(self.load, "running") + _number(self.load, "queued") + self.opened
        return sharing / self.weight * ((self.rtt_s or 0.0) + _number(self.load, "step_ms") / 1000 + SAME_S)


class Fleet:
    """The clouds by key, and the model that they serve.

    ping_interval_s: how often each is asked for a sign of life. The model is that of the first cloud that
    connects; it stays until no cloud is connected and no answer depends on it.
    """

    def __init__(self, ping_interval_s: float, rng: random.Random):
        self.members: dict[str, Member] = {}
        self._quiet_s = ping_interval_s + QUIET_SLACK_S
        self._rng = rng
        self._served: Served | None = None

    # -- what happens

    def add(self, key: str, weight: float) -> None:
        """A cloud to be used; one that was leaving stays."""
        member = self.members.setdefault(key, Member(weight))
        member.weight, member.leaving = weight, False

    def leave(self, key: str) -> None:
        """A cloud is no longer to be used; `remove` follows when nothing runs there."""
        self.members[key].leaving = True

    def rename(self, key: str, new: str) -> None:
        """Another cloud is to have the key."""
        self.members[new] = self.members.pop(key)

    def remove(self, key: str) -> None:
        """Forgets a cloud."""
        del self.members[key]

    def connected(self, key: str, served: Served, max_context: int, now: float, *, bound: bool) -> str | None:
        """A cloud shook hands; why it must be left out, None if it may stay.

        bound: whether answers have tokens already, which another model must not go on from.
        """
        others = any(m.served is not None for name, m in self.members.items() if name != key)
        if self._served is not None and served != self._served and (others or bound):
            return self._difference(served)
        if served != self._served:
            for other in self.members.values():
                other.max_context = 0
        self._served = served
        member = self.members[key]
        self.members[key] = Member(member.weight, served, max_context, leaving=member.leaving, heard_at=now)
        return None

    def _difference(self, served: Served) -> str:
        decided = self._served
        assert decided is not None
        if served.name != decided.name:
            return f"this cloud serves {served.name!r}, and this edge's clouds serve {decided.name!r}"
        return (
            f"this cloud's {served.name!r} has another vocabulary, or other ids that end an answer, than the "
            "one that this edge's clouds serve"
        )

    def closed(self, key: str) -> None:
        """The link to a cloud is gone, or was never made."""
        if key in self.members:
            self.members[key].served = None

    def draining(self, key: str) -> None:
        """A cloud takes no new answers."""
        self.members[key].draining = True

    def troubled(self, key: str, now: float) -> None:
        """A cloud turned an answer away that another may take."""
        self.members[key].troubled_until = now + TROUBLE_S

    def told(self, key: str, rtt_s: float | None, load: Mapping[str, Any], heard_at: float) -> None:
        """What is known of a connected cloud: smoothed RTT, its newest PONG's load, when it last spoke."""
        member = self.members[key]
        if load is not member.load:
            member.load, member.opened = load, 0
        member.rtt_s, member.heard_at = rtt_s, heard_at

    def opened(self, key: str) -> None:
        """An answer was sent to a cloud."""
        self.members[key].opened += 1

    # -- what follows

    def standing(self, key: str, now: float) -> Standing:
        """How a cloud stands now."""
        member = self.members[key]
        if member.served is None:
            return Standing.DOWN
        if member.leaving:
            return Standing.LEAVING
        if member.draining:
            return Standing.DRAINING
        if now - member.heard_at > self._quiet_s + 2 * (member.rtt_s or 0.0):
            return Standing.QUIET
        return Standing.TROUBLED if now < member.troubled_until else Standing.READY

    @property
    def max_context(self) -> int | None:
        """Tokens of the longest prompt and answer together that any cloud takes; None while none has told."""
        return max((member.max_context for member in self.members.values()), default=0) or None

    def choose(self, tokens: int, now: float, held: Mapping[str, float] = NOTHING_HELD) -> str | None:
        """The cloud for an answer of so many tokens, prompt and longest answer together; None for none.

        Of two that are drawn by weight the one that costs less: with loads that are a PING old, always taking
        the least loaded of all would send everybody to the same cloud (Mitzenmacher 2001, 'The power of two
        choices in randomized load balancing'). `held`: which share of the prompt, 0 to 1, a cloud has from
        earlier texts and need not read. The one with the largest share is compared too, and each cloud by

            cost * (1 - HELD_WORTH * held)

        so that a second turn goes where the first one was, unless that cloud has twice as much to do. One
        where sessions wait comes behind all others, and one that is troubled or quiet is the last resort.
        """
        for standings in ((Standing.READY,), (Standing.TROUBLED, Standing.QUIET)):
            fitting = self._fitting(tokens, now, *standings)
            if fitting:
                free = [key for key in fitting if not self.members[key].waiting]
                return self._cheaper(free or fitting, held)
        return None

    def elsewhere(self, key: str, tokens: int, now: float) -> str | None:
        """Another cloud that would take such an answer without a wait; None for none."""
        ready = self._fitting(tokens, now, Standing.READY)
        free = [name for name in ready if name != key and not self.members[name].waiting]
        return self._cheaper(free) if free else None

    def successor(self, key: str, tokens: int, now: float) -> str | None:
        """Where an answer that runs at a cloud is to go on; None: it stays."""
        leaves = (Standing.QUIET, Standing.DRAINING, Standing.LEAVING)
        return self.elsewhere(key, tokens, now) if self.standing(key, now) in leaves else None

    def best(self, now: float) -> str | None:
        """The connected cloud that is told of first: ready before others, then the cheapest."""
        linked = [key for key, member in self.members.items() if member.served is not None]
        return min(
            linked,
            key=lambda key: (self.standing(key, now) is not Standing.READY, self.members[key].cost),
            default=None,
        )

    def _fitting(self, tokens: int, now: float, *standings: Standing) -> list[str]:
        return [
            key
            for key, member in self.members.items()
            if tokens <= member.max_context and self.standing(key, now) in standings
        ]

    def _cheaper(self, keys: list[str], held: Mapping[str, float] = NOTHING_HELD) -> str:
        first = self._drawn(keys)
        rest = [key for key in keys if key != first]
        compared = [first, self._drawn(rest)] if rest else [first]
        holder = max(keys, key=lambda key: held.get(key, 0.0))
        if held.get(holder, 0.0) > 0:
            compared.append(holder)
        return min(compared, key=lambda key: self.members[key].cost * (1 - HELD_WORTH * held.get(key, 0.0)))

    def _drawn(self, keys: list[str]) -> str:
        return self._rng.choices(keys, [self.members[key].weight for key in keys])[0]


def _number(load: Mapping[str, Any], name: str) -> float:
    """A number of a PONG's load, which may lack it or hold nonsense; 0 then."""
    match load.get(name):
        case bool():
            return 0.0
        case int() | float() as value if 0 <= value < 1e9:
            return float(value)
        case _:
            return 0.0
