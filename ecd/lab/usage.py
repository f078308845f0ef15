"""What a process holds, as Linux tells: memory and file descriptors, and whether either grew.

Knows no daemons.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Of a process's readings the first share is not looked at: that is warm-up.
WARM_UP = 1 / 4


@dataclass(frozen=True, slots=True)
class Usage:
    """One reading of the process `pid`: resident memory and open file descriptors."""

    pid: int
    rss_bytes: int
    fds: int


def usage_of(pid: int) -> Usage:
    """A reading now. Raises OSError when the process is gone."""
    folder = Path("/proc", str(pid))
    pages = int((folder / "statm").read_text().split()[1])
    return Usage(pid, pages * PAGE_BYTES, len(os.listdir(folder / "fd")))


def early_and_late(readings: Sequence[Usage]) -> tuple[int, int] | None:
    """Resident bytes of the last process that was read, soon after the warm-up and at the end.

    The least of thirds: what a process holds while it works, a state on its way to the disk, it gives back,
    and what leaks it does not. None where it was read too seldom to tell.
    """
    if not readings:
        return None
    last = [each.rss_bytes for each in readings if each.pid == readings[-1].pid]
    warm = last[int(len(last) * WARM_UP) :]
    third = len(warm) // 3
    if not third:
        return None
    return min(warm[:third]), min(warm[-third:])
