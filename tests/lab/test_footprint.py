"""What a process holds."""

import mmap
import os

import pytest

from ecd.lab.footprint import footprint


def test_a_file_more_is_a_descriptor_more_and_memory_is_seen() -> None:
    before = footprint(os.getpid())
    with open(os.devnull), open(os.devnull), mmap.mmap(-1, 32 << 20) as held:
        held.write(b"x" * len(held))
        after = footprint(os.getpid())
    assert after.descriptors == before.descriptors + 2
    assert after.resident_mib - before.resident_mib > 30
    assert footprint(os.getpid()).descriptors == before.descriptors


def test_a_process_that_is_gone_has_nothing() -> None:
    with pytest.raises(OSError, match="No such file"):
        footprint(1 << 30)
