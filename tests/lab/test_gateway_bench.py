"""What the gateway costs, from arrivals and notes; and a small load on real daemons."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ecd.errors import DaemonError
from ecd.lab.errands import Visits
from ecd.lab.gateway import (
    CONTROL,
    GATEWAY,
    Slice,
    delays_of,
    gateway,
    line_of,
    load_of,
    told_of_delays,
)
from ecd.lab.runs import Reception


def test_pieces_are_held_against_the_notes_of_their_own_answer() -> None:
    commits = {(1, 2): 10.0, (1, 3): 11.0, (2, 1): 20.0, (2, 4): 21.0, (3, 1): 30.0}
    answers = [
        (GATEWAY, [(2, 10.002), (3, 11.004)]),
        # Its last piece was cut: no step ended there.
        (CONTROL, [(1, 20.001), (3, 21.5)]),
        (GATEWAY, [(1, 30.003)]),
    ]
    through, control = delays_of(answers, commits)
    assert (through.way, control.way) == (GATEWAY, CONTROL)
    assert through.first_ms["p50"] == pytest.approx(2.5)
    assert through.all_ms["p50"] == pytest.approx(3)
    assert through.all_ms["p99"] == pytest.approx(3.98)
    assert control.first_ms == control.all_ms == {"p50": pytest.approx(1), "p99": pytest.approx(1)}
    assert "control socket: first piece 1.00 ms (p99 1.00), all pieces 1.00" in told_of_delays([control])


def visits(*at_s: float) -> Visits:
    return Visits([Reception(list(at_s), [2] * len(at_s))], complete=1, left=2)


def made(way: str, seen: Visits, emptied_s: float = 0.1) -> Slice:
    return Slice(way, 2.0, seen, emptied_s, {})


def test_a_way_is_all_of_its_slices() -> None:
    ours = [made(GATEWAY, visits(0.1, 0.13)), made(GATEWAY, visits(0.3, 0.31, 0.36), emptied_s=0.4)]
    row = load_of(GATEWAY, [ours[0], made(CONTROL, visits(9.0, 9.9)), ours[1]])
    assert (row.seconds, row.answers, row.left) == (4.0, 2, 4)
    assert row.tokens_per_s == pytest.approx(10 / 4)
    assert row.ttft_ms["p50"] == pytest.approx(200)
    assert row.itl_ms["p50"] == pytest.approx(30)
    assert row.emptied_ms == pytest.approx(400)
    words = ["gateway", "4", "2", "4", "2", "200.0", "298.0", "30.0", "49.6", "400"]
    assert line_of(row).split() == words
    with pytest.raises(DaemonError, match="give more --seconds"):
        load_of(CONTROL, [made(CONTROL, Visits())])


@pytest.mark.slow
def test_a_few_clients_on_real_daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecd.lab.gateway.ANSWERS", 4)
    # So that some leave within so short a slice.
    monkeypatch.setattr("ecd.lab.errands.STAYS_S", 0.1)
    out = tmp_path / "out.json"
    options = ["--clients", "4", "--seconds", "2", "--slice", "1", "--step-ms", "10", "--draft-ms", "3"]
    result = CliRunner().invoke(gateway, [*options, "--json", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert [row["way"] for row in report["results"]] == [GATEWAY, CONTROL]
    for row in report["results"]:
        assert row["answers"] > 4
        assert row["left"] > 0
        assert 10 < row["ttft_ms"]["p50"] < 1000
        assert row["itl_ms"]["p50"] > 2
    for delay in report["delays"]:
        assert 0 < delay["first_ms"]["p50"] < 50
    first, *_, last = report["footprints"]
    assert last["edge"]["usage"]["fds"] == first["edge"]["usage"]["fds"]
    assert "nothing is left behind" in result.output
