"""What a process holds."""

import os
from mmap import mmap
from pathlib import Path

from ecd.lab.usage import Usage, early_and_late, usage_of

HELD_BYTES = 32 << 20


def test_a_reading_sees_memory_and_open_files(tmp_path: Path) -> None:
    before = usage_of(os.getpid())
    # Of its own: what the allocator still holds of earlier tests would be used first.
    with (tmp_path / "open").open("w"), mmap(-1, HELD_BYTES) as held:
        held.write(b"x" * HELD_BYTES)
        after = usage_of(os.getpid())
    assert after.fds == before.fds + 1
    assert after.rss_bytes >= before.rss_bytes + HELD_BYTES // 2
    assert before.pid == os.getpid()


def readings(pid: int, *rss: int) -> list[Usage]:
    return [Usage(pid, each, 5) for each in rss]


def test_memory_is_compared_behind_the_warm_up_of_the_last_process() -> None:
    grown = readings(1, *[900] * 20) + readings(2, 1, 1, 1, 12, 10, 11, 15, 15, 15, 22, 21, 20)
    assert early_and_late(grown) == (10, 20)


def test_what_is_held_for_a_while_is_no_growth() -> None:
    busy = readings(1, 1, 1, 1, 10, 11, 10, 15, 15, 15, 30, 10, 30)
    assert early_and_late(busy) == (10, 10)


def test_of_a_process_that_was_read_seldom_nothing_is_said() -> None:
    assert early_and_late(readings(1, *[9] * 20) + readings(2, 1, 2)) is None
    assert early_and_late([]) is None
