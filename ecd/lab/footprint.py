"""What daemons hold while nobody asks them anything, and whether that grew under a load.

Owns what counts as a leak. What was asked of the daemons is not its business.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ecd.lab.soaked import MAX_GROWTH_BYTES
from ecd.lab.system import DaemonProcess
from ecd.lab.usage import Usage, early_and_late, usage_of

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Footprint:
    """A daemon's file descriptors and memory, and the tasks of its event loop."""

    usage: Usage
    tasks: int

    def within(self, other: "Footprint") -> bool:
        """Whether it has no more descriptors and tasks than `other`; memory comes and goes."""
        return self.usage.fds <= other.usage.fds and self.tasks <= other.tasks


Footprints = Mapping[str, Footprint]


def footprint(daemon: DaemonProcess) -> Footprint:
    """Of a daemon that runs. Raises DaemonError when it does not answer."""
    assert daemon.process is not None
    tasks = int(daemon.call("stats")["tasks"])
    return Footprint(usage_of(daemon.process.pid), tasks)


def leaks(seen: Sequence[Footprints]) -> Iterator[str]:
    """What a daemon held more of in the end than at first, behind the warm-up; for a person.

    Memory is judged as in a soak: by medians of the first and the last third, and nothing is said of fewer
    than four readings.
    """
    for role, first, last, readings in _by_role(seen):
        for what, held, left in (
            ("descriptors", first.usage.fds, last.usage.fds),
            ("tasks", first.tasks, last.tasks),
        ):
            if left > held:
                yield f"{role}: {left} {what} at the end, and {held} after the warm-up"
        early, late = early_and_late(readings) or (0, 0)
        if late - early > MAX_GROWTH_BYTES:
            yield f"{role}: memory grew by {(late - early) / MIB:.1f} MiB after the warm-up"


def told_of_footprints(seen: Sequence[Footprints]) -> str:
    """A line for each daemon: behind the warm-up, at most, in the end."""
    return "\n".join(
        f"{role}: descriptors {first.usage.fds} after the warm-up, {last.usage.fds} at the end; "
        f"tasks {first.tasks}, {last.tasks}; resident {first.usage.rss_bytes / MIB:.1f} MiB, "
        f"at most {max(each.rss_bytes for each in readings) / MIB:.1f}, {last.usage.rss_bytes / MIB:.1f}"
        for role, first, last, readings in _by_role(seen)
    )


def _by_role(seen: Sequence[Footprints]) -> Iterator[tuple[str, Footprint, Footprint, list[Usage]]]:
    for role, first in seen[0].items():
        yield role, first, seen[-1][role], [each[role].usage for each in seen]
