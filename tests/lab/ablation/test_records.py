"""The order of conversations, and going on after an interruption."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ecd.errors import BadRequest
from ecd.lab.ablation.records import Answer, Asked, Exchange, left, open_records, schedule

PLAN: dict[str, Any] = {"prompts": "abc", "conditions": {"baseline": {}}, "rtt_ms": 20.0}
FIRST = Exchange(
    Asked("baseline", 0, 1),
    (Answer(text="ja – nein", token_ids=(1, 2), latency_ms=1.5, agreed=2, right=True), Answer(error="gone")),
)
SECOND = Exchange(Asked("edge_only", 0, 0), (Answer(token_ids=(3,), agreed=None),))


def test_everything_is_asked_once_and_conditions_are_interleaved() -> None:
    order = schedule(["a", "b", "c"], 5, repeat=1, seed=3)
    assert set(Counter(order).values()) == {1}
    assert len(order) == 15
    groups = [order[i : i + 3] for i in range(0, 15, 3)]
    assert all(len({asked.conversation for asked in group}) == 1 for group in groups)
    assert len({tuple(asked.condition for asked in group) for group in groups}) > 1
    assert [group[0].conversation for group in groups] != [0, 1, 2, 3, 4]
    assert order == schedule(["a", "b", "c"], 5, repeat=1, seed=3)
    assert order != schedule(["a", "b", "c"], 5, repeat=2, seed=3)


def test_what_was_had_is_not_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with open_records(file, PLAN) as records:
        assert records.exchanges == []
        records.add(FIRST)
    with open_records(file, PLAN) as records:
        assert records.exchanges == [FIRST]
        records.add(SECOND)
    with open_records(file, PLAN) as records:
        assert records.exchanges == [FIRST, SECOND]
        order = schedule(["baseline", "edge_only"], 2, repeat=0, seed=0)
        todo = left(order, records.exchanges)
        assert set(todo) == set(order) - {FIRST.asked, SECOND.asked}
        assert todo == [asked for asked in order if asked in todo]


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_asked_again(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "rows.jsonl"
    with open_records(file, PLAN) as records:
        records.add(FIRST)
        whole = file.stat().st_size
        records.add(SECOND)
    data = file.read_bytes()
    file.write_bytes(data[: whole + kept] if kept > 0 else data[:-1])
    with open_records(file, PLAN) as records:
        assert records.exchanges == [FIRST]
        records.add(SECOND)
    with open_records(file, PLAN) as records:
        assert records.exchanges == [FIRST, SECOND]


def test_a_torn_head_is_written_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"prom')
    with open_records(file, PLAN) as records:
        records.add(FIRST)
    with open_records(file, PLAN) as records:
        assert records.exchanges == [FIRST]


def test_rows_of_another_run_are_not_mixed_in(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with open_records(file, PLAN) as records:
        records.add(FIRST)
    before = file.read_bytes()
    with (
        pytest.raises(BadRequest, match="another run, by prompts, rtt_ms; choose"),
        open_records(file, {"prompts": "other", "conditions": {"baseline": {}}}),
    ):
        pass
    assert file.read_bytes() == before


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with (
        open_records(file, PLAN),
        pytest.raises(BadRequest, match="another run writes"),
        open_records(file, PLAN),
    ):
        pass


@pytest.mark.parametrize("line", [b"{}", b"nonsense", b'{"asked": 5}'])
def test_a_damaged_file_is_refused(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "rows.jsonl"
    with open_records(file, PLAN):
        pass
    file.write_bytes(file.read_bytes() + line + b"\n")
    with pytest.raises(BadRequest, match="is damaged"), open_records(file, PLAN):
        pass
    file.write_bytes(line + b"\n")
    with pytest.raises(BadRequest, match="another run"), open_records(file, PLAN):
        pass


def test_a_folder_that_takes_no_files_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="choose another --out"), open_records(tmp_path, PLAN):
        pass
