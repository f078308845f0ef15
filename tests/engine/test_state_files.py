"""States on a disk: they come back as they were or not at all, and never take more room than they may."""

import logging
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ecd.engine.prefix_cache import Saved, Text, Wanted
from ecd.engine.state_files import PART_S, PART_SUFFIX, SUFFIX, StateFiles
from ecd.errors import ConfigError

MODEL, OTHER = b"model", b"another model"
ROOM = 1 << 20


def saved(first: int, length: int = 100, state_bytes: int = 5000) -> Saved:
    tokens = np.arange(first, first + length, dtype=np.int32)
    noise = np.random.default_rng(first).integers(0, 256, state_bytes, dtype=np.uint8)
    return Saved(Text(tokens, length - 10, length - 20), noise)


def wanted(first: int, length: int = 200) -> Wanted:
    return Wanted(np.arange(first, first + length, dtype=np.int32), length, 1)


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*" + SUFFIX))


def used_at(folder: Path, *seconds: int) -> None:
    """Sets the times of last use of the files, in the order in which they were written."""
    for path, at in zip(sorted(files_in(folder), key=lambda p: p.stat().st_mtime_ns), seconds, strict=True):
        os.utime(path, (at, at))


def test_a_state_survives_a_restart(tmp_path: Path) -> None:
    written = saved(1000)
    StateFiles(tmp_path, ROOM, MODEL).write(written)
    files = StateFiles(tmp_path, ROOM, MODEL)
    assert len(files) == 1
    assert files.size_bytes == files_in(tmp_path)[0].stat().st_size
    found = files.find(wanted(1000), 0)
    assert found is not None
    length, read = found
    assert length == 80
    np.testing.assert_array_equal(read.state, written.state)
    np.testing.assert_array_equal(read.text.tokens, written.text.tokens)
    assert (read.text.prompt_len, read.text.solid) == (90, 80)


def test_the_same_text_of_two_tenants_is_two_files_and_each_finds_its_own(tmp_path: Path) -> None:
    files = StateFiles(tmp_path, ROOM, MODEL)
    for number, tenant in enumerate(("berlin", "paris")):
        each = saved(1000)
        state = np.full_like(each.state, number)
        files.write(Saved(replace(each.text, tenant=tenant), state))
    again = StateFiles(tmp_path, ROOM, MODEL)
    assert len(again) == len(files) == 2
    for number, tenant in enumerate(("berlin", "paris")):
        found = again.find(replace(wanted(1000), tenant=tenant), 0)
        assert found is not None
        assert set(found[1].state.tolist()) == {number}
        assert found[1].text.tenant == tenant
    assert again.find(wanted(1000), 0) is None


def test_a_state_that_was_just_written_is_found_too(tmp_path: Path) -> None:
    files = StateFiles(tmp_path, ROOM, MODEL)
    files.write(saved(1000))
    assert files.find(wanted(1000), 0) is not None
    assert files.find(wanted(1000), 79) is None
    assert files.find(wanted(2000), 0) is None


def test_only_the_owner_may_read_what_users_said(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    StateFiles(folder, ROOM, MODEL).write(saved(1000))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(files_in(folder)[0].stat().st_mode) == 0o600


def test_a_folder_in_which_others_could_put_files_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=r"kv_cache.disk.path: others could put files into .*mode 0777"):
        StateFiles(tmp_path, ROOM, MODEL)
    tmp_path.chmod(0o770)
    StateFiles(tmp_path, ROOM, MODEL)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(tmp_path, 54321, -1)
    StateFiles(tmp_path, ROOM, MODEL)
    monkeypatch.setattr(os, "geteuid", lambda: 54322)
    with pytest.raises(ConfigError, match=r"uid 54321, mode 0700"):
        StateFiles(tmp_path, ROOM, MODEL)


def test_states_of_another_model_are_not_used_and_stay(tmp_path: Path) -> None:
    StateFiles(tmp_path, ROOM, OTHER).write(saved(1000))
    files = StateFiles(tmp_path, ROOM, MODEL)
    assert files.find(wanted(1000), 0) is None
    files.write(saved(1000))
    assert len(files_in(tmp_path)) == 2
    assert StateFiles(tmp_path, ROOM, OTHER).find(wanted(1000), 0) is not None


@pytest.mark.parametrize("place", [0, 3, 9, 40, -3000, -1])
def test_a_damaged_file_is_dropped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    StateFiles(tmp_path, ROOM, MODEL).write(saved(1000))
    StateFiles(tmp_path, ROOM, MODEL).write(saved(5000))
    damaged = next(p for p in files_in(tmp_path) if np.int32(1000).tobytes() in p.read_bytes()[:400])
    content = bytearray(damaged.read_bytes())
    content[place] ^= 1
    damaged.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        files = StateFiles(tmp_path, ROOM, MODEL)
        assert files.find(wanted(1000), 0) is None
    assert f"{damaged} is damaged and is dropped" in caplog.text
    assert not damaged.exists()
    assert files.find(wanted(5000), 0) is not None


@pytest.mark.parametrize("length", [0, 7, 30, 200, -1])
def test_a_file_that_was_cut_off_is_dropped(tmp_path: Path, length: int) -> None:
    StateFiles(tmp_path, ROOM, MODEL).write(saved(1000))
    (path,) = files_in(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    assert StateFiles(tmp_path, ROOM, MODEL).find(wanted(1000), 0) is None
    assert not path.exists()


def test_where_the_best_is_damaged_the_next_best_serves(tmp_path: Path) -> None:
    files = StateFiles(tmp_path, ROOM, MODEL)
    longer = saved(1000, 150)
    shorter = Saved(Text(np.append(longer.text.tokens[:100], 7).astype(np.int32), 90, 100), longer.state)
    files.write(shorter)
    (kept,) = files_in(tmp_path)
    files.write(longer)
    (best,) = set(files_in(tmp_path)) - {kept}
    best.write_bytes(best.read_bytes()[:-1])
    found = files.find(wanted(1000), 0)
    assert found is not None
    assert found[0] == 100
    assert files_in(tmp_path) == [kept]


def test_a_file_that_another_daemon_dropped_is_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = StateFiles(tmp_path, ROOM, MODEL)
    files.write(saved(1000))
    files_in(tmp_path)[0].unlink()
    assert files.find(wanted(1000), 0) is None
    assert len(files) == 0
    assert not caplog.text


def test_a_text_that_another_daemon_saved_too_is_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each computes numbers of its own; the file has one name for both."""
    one, other = (StateFiles(tmp_path, ROOM, MODEL) for _ in range(2))
    ours = saved(1000)
    theirs = replace(ours, state=ours.state[::-1][:4000].copy())
    one.write(ours)
    other.write(theirs)
    assert len(files_in(tmp_path)) == 1
    for files in (one, other):
        found = files.find(wanted(1000), 0)
        assert found is not None
        np.testing.assert_array_equal(found[1].state, theirs.state)
    assert not caplog.text


def test_the_least_recently_used_go_first_whoever_wrote_them(tmp_path: Path) -> None:
    other, files = StateFiles(tmp_path, ROOM, OTHER), StateFiles(tmp_path, 17_000, MODEL)
    other.write(saved(1))
    used_at(tmp_path, 10)
    files.write(saved(1000))
    used_at(tmp_path, 10, 20)
    files.write(saved(2000))
    used_at(tmp_path, 10, 20, 30)
    assert files.find(wanted(1000), 0) is not None  # used now
    files.write(saved(3000))
    assert len(files_in(tmp_path)) == 3
    assert files.size_bytes <= 17_000
    assert other.find(wanted(1), 0) is None
    files.write(saved(4000))
    assert files.find(wanted(2000), 0) is None
    assert files.find(wanted(1000), 0) is not None


def test_a_state_larger_than_all_the_room_is_not_written(tmp_path: Path) -> None:
    files = StateFiles(tmp_path, 4000, MODEL)
    files.write(saved(1000))
    assert files_in(tmp_path) == []
    files.write(saved(2000, state_bytes=1000))
    assert len(files) == 1


def test_a_longer_text_takes_the_place_of_its_beginning(tmp_path: Path) -> None:
    files = StateFiles(tmp_path, ROOM, MODEL)
    files.write(saved(1000, 100))
    files.write(saved(1000, 150))
    assert len(files_in(tmp_path)) == len(files) == 1
    files.write(saved(1000, 100))
    assert len(files_in(tmp_path)) == 1
    found = files.find(wanted(1000), 0)
    assert found is not None
    assert found[0] == 130


def test_a_longer_text_that_does_not_fit_leaves_its_beginning_there(tmp_path: Path) -> None:
    files = StateFiles(tmp_path, 4000, MODEL)
    files.write(saved(1000, 100, state_bytes=1000))
    files.write(saved(1000, 150))
    assert len(files_in(tmp_path)) == len(files) == 1
    found = files.find(wanted(1000), 0)
    assert found is not None
    assert found[0] == 80


def test_what_a_crash_left_half_written_is_cleared_away_in_time(tmp_path: Path) -> None:
    old, new = tmp_path / ("old" + PART_SUFFIX), tmp_path / ("new" + PART_SUFFIX)
    for path in (old, new):
        path.write_bytes(b"half")
    long_ago = new.stat().st_mtime - PART_S - 60
    os.utime(old, (long_ago, long_ago))
    StateFiles(tmp_path, ROOM, MODEL)
    assert not old.exists()
    assert new.exists(), "another daemon may be writing it"


def test_no_half_written_file_stays_and_a_full_disk_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = StateFiles(tmp_path, ROOM, MODEL)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    files.write(saved(1000))
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []
    assert files.find(wanted(1000), 0) is None


def test_a_folder_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"kv_cache\.disk\.path: cannot keep states in .*file"):
        StateFiles(tmp_path / "file" / "folder", ROOM, MODEL)
