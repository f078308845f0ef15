"""What a process holds now, as Linux tells: file descriptors and resident memory."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Footprint:
    """File descriptors that are open, and resident memory in MiB."""

    descriptors: int
    resident_mib: float


def footprint(pid: int) -> Footprint:
    """Of a process of the same user. Raises OSError when there is none."""
    folder = Path(f"/proc/{pid}")
    pages = int((folder / "statm").read_text().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    return Footprint(len(list((folder / "fd").iterdir())), round(resident, 2))
