"""States in memory and on a disk as one."""

from pathlib import Path

import numpy as np
import pytest

from ecd.config import KvCache, KvDisk
from ecd.engine.prefix_cache import State, Text, Wanted
from ecd.engine.saved_states import SavedStates
from ecd.errors import EngineError


class Engine:
    """Hands out states and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def save(self) -> State:
        self.asked += 1
        return np.full(1000, self.asked, np.uint8)


def text(first: int, length: int = 100) -> Text:
    return Text(np.arange(first, first + length, dtype=np.int32), 0, length)


def wanted(first: int, length: int = 300) -> Wanted:
    return Wanted(np.arange(first, first + length, dtype=np.int32), length, 1)


def states(folder: Path | None = None, max_bytes: int = 10_000) -> SavedStates:
    disk = None if folder is None else KvDisk(path=folder)
    return SavedStates(KvCache(max_bytes=max_bytes, disk=disk), lambda: b"model")


def test_a_state_is_asked_for_once() -> None:
    kept, engine = states(), Engine()
    for _ in range(2):
        kept.put(text(0), engine.save)
    kept.put(text(0, 80), engine.save)
    assert engine.asked == 1
    assert kept.stats() == {"saved_texts": 1, "saved_bytes": 1400}


def test_without_room_it_is_not_asked_for_at_all() -> None:
    kept, engine = states(max_bytes=0), Engine()
    kept.put(text(0), engine.save)
    assert engine.asked == 0
    assert kept.find(wanted(0), 0) is None


def test_the_fingerprint_is_asked_for_only_with_a_disk() -> None:
    def costly() -> bytes:
        raise AssertionError

    SavedStates(KvCache(), costly).close(())


def test_what_memory_has_no_room_for_goes_to_the_disk(tmp_path: Path) -> None:
    kept, engine = states(tmp_path, max_bytes=1500), Engine()
    kept.put(text(0), engine.save)
    kept.put(text(1000), engine.save)
    kept.close(())
    again = states(tmp_path)
    for first, state in ((0, 1), (1000, 2)):
        found = again.find(wanted(first), 0)
        assert found is not None
        assert found[0] == 100
        assert set(found[1].state) == {state}
    told = again.stats()
    assert (told["saved_texts"], told["disk_texts"]) == (0, 2)
    assert 0 < told["disk_bytes"] < 4000


def test_the_disk_is_read_only_for_clearly_more(tmp_path: Path) -> None:
    first, engine = states(tmp_path), Engine()
    first.put(text(0, 150), engine.save)
    first.close(())
    kept = states(tmp_path)
    kept.put(text(0, 100), engine.save)
    found = kept.find(wanted(0), 0)
    assert found is not None
    assert found[0] == 100
    assert kept.find(wanted(0), 30) is not None
    longer = states(tmp_path)
    longer.put(text(0, 80), engine.save)
    found = longer.find(wanted(0), 0)
    assert found is not None
    assert found[0] == 150


def test_at_the_end_the_disk_gets_all_that_memory_and_cells_hold(tmp_path: Path) -> None:
    kept, engine = states(tmp_path, max_bytes=4000), Engine()
    kept.put(text(0), engine.save)
    in_cells = [(text(1000 * n), engine.save) for n in range(6)]
    kept.close([*in_cells, (text(9000, 20), engine.save)])
    assert engine.asked == 6, "one was saved already, and one is too short"
    again = states(tmp_path)
    assert all(again.find(wanted(1000 * n), 0) for n in range(6))


def test_without_a_disk_nothing_is_asked_for_at_the_end() -> None:
    kept, engine = states(), Engine()
    kept.close([(text(0), engine.save)])
    assert engine.asked == 0


def test_with_a_disk_and_no_memory_the_disk_gets_it(tmp_path: Path) -> None:
    kept, engine = states(tmp_path, max_bytes=0), Engine()
    kept.put(text(0), engine.save)
    kept.close(())
    assert states(tmp_path).find(wanted(0), 0) is not None


def test_a_state_that_the_engine_does_not_give_is_lost_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails() -> State:
        raise EngineError("no")

    kept = states()
    kept.put(text(0), fails)
    assert "a text of 100 tokens could not be kept: no" in caplog.text
    assert kept.stats()["saved_texts"] == 0


def test_at_the_end_one_that_the_engine_does_not_give_costs_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> State:
        raise EngineError("no")

    states(tmp_path).close([(text(0), fails), (text(1000), Engine().save)])
    assert "a text of 100 tokens could not be kept: no" in caplog.text
    assert states(tmp_path).find(wanted(1000), 0) is not None
