"""What drafts and target steps take, over all clouds and at each of them.

Pure. Owns which measurement counts where: a cloud's round trips and steps are its own, the draft's time is
everybody's.
"""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from ecd.edge.meter import Meter

Cloud = TypeVar("Cloud", bound=Hashable)


class Meters(Generic[Cloud]):
    """`every` has the means over all clouds, which are also the first guess of what a new cloud takes."""

    def __init__(self, every: Meter):
        self.every = every
        self._own: WeakKeyDictionary[Cloud, Meter] = WeakKeyDictionary()

    def at(self, cloud: Cloud | None) -> Meter:
        """The meter of a cloud; that of all of them for an answer that is at none."""
        if cloud is None:
            return self.every
        if cloud not in self._own:
            self._own[cloud] = replace(self.every)
        return self._own[cloud]

    def drafted(self, seconds: float) -> None:
        """A forward of the draft model brought a guess for each line it was asked for."""
        for meter in (self.every, *self._own.values()):
            meter.drafted(seconds)

    def read(self, tokens: int, seconds: float) -> None:
        """The draft model read so many tokens of prompts."""
        for meter in (self.every, *self._own.values()):
            meter.read(tokens, seconds)

    def stepped(self, cloud: Cloud, seconds: float, verified: int) -> None:
        """A step of a cloud took so long and verified so many of our hints."""
        for meter in (self.at(cloud), self.every):
            meter.stepped(seconds, verified)

    def told(self, cloud: Cloud, rtt_s: float | None, jitter_s: float, load: Mapping[str, Any]) -> None:
        """What a cloud's link and its newest PONG say."""
        for meter in (self.at(cloud), self.every):
            meter.told(load)
            meter.rtt_s, meter.jitter_s = rtt_s, jitter_s
