"""The modes in virtual time: what comes of a recorded pair, and how it is told."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ecd.edge.pacing import Objective
from ecd.lab.exchange import Circumstances
from ecd.lab.expect import right_guesses
from ecd.lab.runs import Mode, Variant
from ecd.lab.shipped import find_file
from ecd.lab.simulate import Regime, best_rounds
from ecd.lab.trace import Trace, load_trace, save_trace
from ecd.lab.virtual import Spread, answer_all, rows_at, virtual


@pytest.fixture(scope="module")
def recorded() -> Trace:
    """A few of the recorded answers."""
    trace = load_trace(find_file("traces", "qwen-coder-greedy"))
    return Trace(trace.provenance, trace.n_vocab, trace.eog, trace.pieces, trace.recordings[::5])


def test_the_cloud_alone_takes_a_step_a_token_and_commits_what_was_recorded(recorded: Trace) -> None:
    sums = answer_all(recorded, Variant(Mode.CLOUD), Circumstances(step_s=0.03), Objective.LATENCY, 24)
    assert sums.tokens == 24 * len(recorded.recordings)
    assert sums.forwards == sums.tokens
    assert sums.decoded == sums.tokens - len(recorded.recordings)
    assert sums.tokens_per_s == pytest.approx(1 / 0.03)


def test_drafting_pays_and_rounds_lose_to_a_long_link(recorded: Trace) -> None:
    rows = {row.mode: row for row in rows_at(recorded, Circumstances(rtt_s=0.2), Objective.LATENCY, 32, 1)}
    assert list(rows) == list(Mode)
    assert rows[Mode.CLOUD].ratio_to_cloud == Spread(1.0, 1.0, 1.0)
    assert rows[Mode.ROUNDS].ratio_to_cloud.median < 1 < rows[Mode.ECD].ratio_to_cloud.median
    assert rows[Mode.ROUNDS].k is not None
    gain = rows[Mode.ECD].ratio_to_no_alternates
    assert gain is not None
    without = rows[Mode.ECD_NO_ALTERNATES].ratio_to_cloud
    assert gain.median == pytest.approx(rows[Mode.ECD].ratio_to_cloud.median / without.median)


@pytest.mark.parametrize(
    ("step_ms", "draft_ms", "rtt_ms", "most"),
    [
        (30, 5, 0, 1.05), (30, 5, 50, 1.05), (60, 5, 50, 1.05), (60, 5, 200, 1.05), (15, 5, 50, 1.05),
        (30, 12, 50, 1.05),
        # A draft that is slow for its target, behind a long link: docs/PACING.md has the numbers.
        (30, 12, 200, 1.2), (15, 5, 200, 1.2),
    ],
)  # fmt: skip
def test_cost_takes_about_the_forwards_of_the_fastest_rounds_and_is_faster(
    step_ms: float, draft_ms: float, rtt_ms: float, most: float
) -> None:
    trace = load_trace(find_file("traces", "qwen-coder-greedy"))
    around = Circumstances(rtt_s=rtt_ms / 1000, draft_s=draft_ms / 1000, step_s=step_ms / 1000, jitter=0.05)
    regime = Regime(rtt_ms, draft_ms, step_ms, around.slope)
    k = best_rounds([right_guesses(each, 64, False) for each in trace.recordings], regime).setting.gather
    rounds = answer_all(trace, Variant(Mode.ROUNDS, k), around, Objective.LATENCY, 64)
    cost = answer_all(trace, Variant(Mode.ECD), around, Objective.COST, 64)
    assert cost.tokens_per_s > rounds.tokens_per_s
    assert cost.forwards <= most * rounds.forwards


def test_a_seed_is_an_order_and_a_jitter(recorded: Trace) -> None:
    def rate(seed: int, jitter: float) -> float:
        around = Circumstances(jitter=jitter, seed=seed)
        return answer_all(recorded, Variant(Mode.WAIT), around, Objective.LATENCY, 16).tokens_per_s

    assert rate(1, 0.3) == rate(1, 0.3) != rate(2, 0.3)


def test_the_table_has_spreads_and_the_file_says_how_it_was_made(tmp_path: Path, recorded: Trace) -> None:
    save_trace(tmp_path / "trace.json", recorded)
    arguments = [
        "--trace",
        str(tmp_path / "trace.json"),
        "--rtt",
        "0,50",
        "--max-tokens",
        "8",
        "--seeds",
        "2",
    ]
    result = CliRunner().invoke(
        virtual, [*arguments, "--json", str(tmp_path / "out.json")], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert result.output.count("emulated") == 2 * len(Mode)
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["seeds"], report["step_ms"], report["emulated"]) == (2, 30.0, True)
    assert [row["rtt_ms"] for row in report["results"]] == [0.0] * 5 + [50.0] * 5
    spread = report["results"][3]["ratio_to_cloud"]
    assert spread["min"] <= spread["median"] <= spread["max"]
