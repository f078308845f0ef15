"""`ecd bench stream`: what is asked and in which order, what survives a failure, a whole run under replay."""

import contextlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ecd.cli import cli
from ecd.errors import BadRequest, DaemonError
from ecd.lab import bench, stream
from ecd.lab.expect import right_guesses
from ecd.lab.pair import RealPair, replayed_pair
from ecd.lab.rig import Daemons, Rig
from ecd.lab.runs import Asking, Campaign, Cell, Mode, Objective, Reception, Run, Variant, WarmUp, schedule
from ecd.lab.stream import measure
from ecd.lab.trace import Provenance, Recording, Trace, save_trace
from ecd.sampling import Guess, Sampling

VOCABULARY = 1000
END = 999


def recording(kind: str, number: int, tokens: int, acceptance: float) -> Recording:
    """An answer without repetitions, which prompt lookup cannot guess, and a draft that is right so often."""
    rng = random.Random(number)
    answer = tuple(rng.sample(range(100, 900), tokens))
    guesses = tuple(
        Guess(token if rng.random() < acceptance else token - 100, 0.8, second=None) for token in answer
    )
    prompt = (10 + number, 11, 12)
    sampling = Sampling.of("exact", 0.0, seed=0)
    return Recording(kind, f"{kind} prompt {number}", prompt, sampling, answer, guesses, 20.0, 2.0)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Three prompts of two classes."""
    recordings = (
        recording("code", 0, 40, 0.95),
        recording("code", 1, 40, 0.95),
        recording("chat", 2, 30, 0.5),
    )
    pieces = {token: f" w{token}".encode() for made in recordings for token in made.target_ids}
    provenance = Provenance("big", "small", 40, {}, "a machine", "2026-11-22")
    file = tmp_path / "tiny.json.gz"
    save_trace(file, Trace(provenance, VOCABULARY, (END,), pieces, recordings))
    return file


def test_variants_ask_for_what_the_modes_are() -> None:
    def asked(variant: Variant, objective: Objective) -> dict[str, Any]:
        arguments = variant.arguments(objective)
        assert arguments.pop("kv_cache") is False, "one must not have read the prompt for the next"
        return arguments

    assert Variant(Mode.CLOUD).arguments("latency", kv_cache=True)["kv_cache"] is True
    assert asked(Variant(Mode.CLOUD), "latency") == {"draft": False}
    assert asked(Variant(Mode.ROUNDS, 4), "latency") == {
        "patience_ms": "rounds", "hint_tokens": 4, "ahead_tokens": 4,
    }  # fmt: skip
    assert asked(Variant(Mode.WAIT), "cost")["hint_tokens"] == 1
    assert asked(Variant(Mode.ECD), "cost") == {"objective": "cost"}
    assert asked(Variant(Mode.ECD_NO_ALTERNATES), "cost") == {"objective": "cost", "alternates": False}


def test_everything_is_asked_once_and_modes_are_interleaved() -> None:
    variants = {rtt_ms: [Variant(Mode.CLOUD), Variant(Mode.ECD)] for rtt_ms in (0.0, 20.0)}
    cells = schedule(variants, ["code", "chat"], repeats=3, seed=5)
    assert set(Counter(cells).values()) == {1}
    assert len(cells) == 2 * 2 * 2 * 3
    groups = [cells[i : i + 4] for i in range(0, len(cells), 4)]
    assert [group[0].repeat for group in groups] == [0, 0, 1, 1, 2, 2]
    assert all(len({(cell.repeat, cell.prompt, cell.kind) for cell in group}) == 1 for group in groups)
    orders = {tuple((cell.variant, cell.rtt_ms) for cell in group) for group in groups}
    assert len(orders) > 1
    assert cells == schedule(variants, ["code", "chat"], repeats=3, seed=5)
    assert cells != schedule(variants, ["code", "chat"], repeats=3, seed=6)


def test_rates_count_from_the_first_piece_of_text() -> None:
    reception = Reception()
    for at_s, tokens in ((0.5, 2), (0.6, 1), (0.9, 3)):
        reception.text(at_s, tokens)
    assert reception.numbers() == {
        "decoded": 4,
        "decode_ms": pytest.approx(400),
        "ttft_ms": 500,
        "gaps_ms": (100.0, 300.0),
    }


def test_right_guesses_of_a_trace_and_of_a_wrong_draft() -> None:
    made = recording("code", 0, 40, 0.5)
    right = right_guesses(made, 30, always_wrong=False)
    assert len(right) == 30
    assert [g.token == t for g, t in zip(made.guesses, made.target_ids, strict=True)][:30] == right
    assert not any(right_guesses(made, 30, always_wrong=True))


def replayed(trace: Path, prompts: Path | None = None, **changes: Any) -> Any:
    given: dict[str, Any] = {
        "max_tokens": 24, "step_ms": None, "step_slope": 0.02, "draft_ms": None, "draft_line_cost": 0.1,
        "pace": None, "always_wrong": False,
    }  # fmt: skip
    return replayed_pair(str(trace), prompts, **given | changes)


def test_a_replayed_pair_goes_by_its_trace(trace: Path) -> None:
    pair = replayed(trace)
    assert [asking.kind for asking in pair.askings] == ["code", "code", "chat"]
    assert (pair.step_ms, pair.draft_ms, pair.slope) == (20.0, 2.0, pytest.approx(0.02))
    assert pair.daemons.edge_flags[-2:] == ("--draft-line-cost", "0.1")
    runs = [Run(Cell(Variant(Mode.CLOUD), 0.0, "chat", prompt, 0)) for prompt in (2, 1, 2)]
    assert pair.expect(0.0, runs, {}).answers == [pair.right[1], pair.right[2]]
    assert pair.expect(0.0, [], {}) is None
    near, far = (pair.best_k(rtt_ms, WarmUp(None, {})) for rtt_ms in (0.0, 200.0))
    assert near < far
    wrong = replayed(trace, always_wrong=True)
    assert "--wrong" in wrong.daemons.edge_flags
    assert pair.best_k(200.0, WarmUp(None, {})) > wrong.best_k(200.0, WarmUp(None, {})) == 1


def test_prompts_that_were_not_recorded_are_named(trace: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"class": "chat", "prompt": "chat prompt 2"}\n{"class": "chat", "prompt": "new"}\n')
    with pytest.raises(BadRequest, match=r"1 of the prompts.*'new'"):
        replayed(trace, prompts)
    prompts.write_text('{"class": "chat", "prompt": "chat prompt 2"}\n')
    assert [asking.prompt for asking in replayed(trace, prompts).askings] == ["chat prompt 2"]


ASKINGS = (Asking("code", "a", 0.0, 0), Asking("chat", "b", 0.0, 0))
REAL = RealPair(Daemons("big", "small"), ASKINGS)
CONDITIONS = {"draft_ms": 5.0, "step_ms": 30.0, "slope": 0.02}


def test_real_rounds_take_their_k_from_the_warm_up() -> None:
    assert REAL.best_k(200.0, WarmUp(0.9, CONDITIONS)) > REAL.best_k(0.0, WarmUp(0.3, CONDITIONS))
    with pytest.raises(DaemonError, match="give --rounds-k"):
        REAL.best_k(0.0, WarmUp(0.9, CONDITIONS | {"slope": None}))
    with pytest.raises(DaemonError, match="give --rounds-k"):
        REAL.best_k(0.0, WarmUp(0.9, {}))


class Daemon:
    """A daemon as the benchmark sees it when nothing is asked of it but `stats`."""

    def call(self, verb: str) -> dict[str, Any]:
        assert verb == "stats"
        return {"conditions": CONDITIONS, "cpu_s": 1.0}


@pytest.fixture
def no_daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def rig(folder: Path, daemons: Daemons, campaign: Campaign) -> Iterator[Any]:
        yield Rig(Daemon(), {rtt_ms: Daemon() for rtt_ms in campaign.rtts_ms})  # type: ignore[arg-type, misc]

    monkeypatch.setattr(stream, "running_rig", rig)


@contextlib.contextmanager
def silent(cells: Sequence[Cell]) -> Iterator[Iterable[Cell]]:
    yield cells


def answers(monkeypatch: pytest.MonkeyPatch, fail_at: int, error: BaseException) -> None:
    """Requests are answered at once, but for the one with number `fail_at`, the warm-up's counted too."""
    asked = 0

    def answered(rig: Rig, cell: Cell, *given: Any, kv_cache: bool) -> Run:
        nonlocal asked
        asked += 1
        if asked == fail_at:
            raise error
        return Run(cell, decoded=10, decode_ms=100.0, settled=10, right=8)

    monkeypatch.setattr(stream, "_answered", answered)


@pytest.mark.usefixtures("no_daemons")
def test_a_request_that_fails_does_not_lose_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, 5, DaemonError("the daemon is gone"))
    measured = measure(REAL, Campaign((0.0,)), silent)
    assert [run.error for run in measured.runs if run.error] == ["the daemon is gone"]
    assert len(measured.runs) == measured.planned == 8
    assert not measured.interrupted
    assert measured.conditions == {0.0: CONDITIONS}


@pytest.mark.usefixtures("no_daemons")
def test_ctrl_c_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, 6, KeyboardInterrupt())
    measured = measure(REAL, Campaign((0.0,)), silent)
    # Two of the five before it were the warm-up, one for each class.
    assert (len(measured.runs), measured.planned, measured.interrupted) == (3, 8, True)


def test_a_warm_up_waits_for_the_cost_of_a_step_and_not_for_what_fixed_paces_never_teach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = [{"step_ms": None}, {"slope": None}, {"acceptance": None}]

    class Edge:
        def call(self, verb: str) -> dict[str, Any]:
            return {"conditions": CONDITIONS | told.pop(0)}

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert stream._settled_conditions(Edge()) == CONDITIONS | {"acceptance": None}  # type: ignore[arg-type]
    assert not told


@pytest.mark.usefixtures("no_daemons")
def test_a_warm_up_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, 1, DaemonError("no"))
    with pytest.raises(DaemonError):
        measure(REAL, Campaign((0.0,)), silent)


@pytest.mark.usefixtures("no_daemons")
def test_every_k_that_was_asked_for_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, 0, DaemonError("never"))
    campaign = Campaign((0.0, 50.0), modes=(Mode.ROUNDS, Mode.CLOUD), ks=(2, 5))
    variants = {run.cell.variant for run in measure(REAL, campaign, silent).runs}
    assert variants == {Variant(Mode.ROUNDS, 2), Variant(Mode.ROUNDS, 5), Variant(Mode.CLOUD)}


@pytest.mark.usefixtures("no_daemons")
def test_prompts_that_are_to_be_cached_are_read_at_every_edge_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, bool, bool]] = []

    def answered(rig: Rig, cell: Cell, asking: Asking, max_tokens: int, *given: Any, kv_cache: bool) -> Run:
        asked.append((cell.rtt_ms, kv_cache, max_tokens == stream.READ_TOKENS))
        return Run(cell, decoded=10, decode_ms=100.0, settled=10, right=8)

    monkeypatch.setattr(stream, "_answered", answered)
    measured = measure(REAL, Campaign((0.0, 50.0), modes=(Mode.CLOUD,), cached=True), silent)
    # The warm-up: one for each class at the first edge, one at the other.
    assert asked[:3] == [(0.0, False, False), (0.0, False, False), (50.0, False, False)]
    for of_prompt in (asked[3:7], asked[7:]):
        assert of_prompt[:2] == [(0.0, True, True), (50.0, True, True)]
        assert sorted(of_prompt[2:]) == [(0.0, True, False), (50.0, True, False)]
    assert len(measured.runs) == 4


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", "stream", *arguments])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--draft", "small"], "--target"),
        (["--target", "big"], "--draft is missing"),
        (
            ["--target", "big", "--draft", "small", "--step-ms", "30", "--pace", "x"],
            "--step-ms, --pace: only",
        ),
        (
            ["--target", "big", "--draft", "small", "--draft-line-cost", "0"],
            "--draft-line-cost: only",
        ),
        (["--target", "replay:x", "--draft", "small"], "the draft is in the trace"),
        (["--target", "replay:x", "--temperature", "0.5"], "--temperature"),
        (["--target", "replay:x", "--pace", "x", "--step-ms", "3"], "--pace says"),
        (
            ["--target", "big", "--modes", "cloud,fast"],
            "the modes are cloud, rounds, wait, ecd, ecd-no-alternates",
        ),
        (["--target", "big", "--rtt", "0,near"], "'0,near' is not a list"),
        (["--target", "big", "--rounds-k", "0"], "0 is not in the range 1<=x<=64"),
        (["--target", "big", "--rounds-k", "2.5"], "'2.5' is not a list"),
        (["--target", "big", "--temperature", "nan"], "'nan' is not a finite number"),
        (["--target", "big", "--jitter-ms", "inf"], "inf is not in the range"),
        (["--target", "big", "--rtt", "0,nan"], "'nan' is not a finite number"),
        (["--target", "big", "--objective", "speed"], "--objective"),
        (["--target", "big", "--max-tokens", "1"], "--max-tokens"),
    ],
)
def test_options_that_make_no_sense(arguments: list[str], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.output


def test_a_trace_that_is_not_there_is_an_error() -> None:
    with pytest.raises(BadRequest, match="nowhere"):
        _raise(run("--target", "replay:nowhere"))


def test_html_without_matplotlib_fails_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, trace: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(bench, "measure", lambda *given: pytest.fail("started"))
    result = run("--target", f"replay:{trace}", "--html", str(tmp_path / "report.html"))
    with pytest.raises(Exception, match=r"pip install 'ecd\[lab\]'"):
        _raise(result)


def _raise(result: Result) -> None:
    assert result.exception is not None
    raise result.exception


@pytest.mark.slow
def test_a_whole_run_under_replay(trace: Path, tmp_path: Path) -> None:
    json_file, html_file = tmp_path / "out.json", tmp_path / "out.html"
    result = run(
        "--target", f"replay:{trace}", "--rtt", "0,60", "--max-tokens", "32", "--rounds-k", "2,4",
        "--step-ms", "20", "--draft-ms", "2", "--repeat", "2", "--jitter-ms", "1",
        "--modes", "cloud,rounds,wait,ecd,ecd-no-alternates", "--objective", "balanced",
        "--json", str(json_file), "--html", str(html_file),
    )  # fmt: skip
    assert result.exit_code == 0, result.output + repr(result.exception)
    report = json.loads(json_file.read_text())
    assert (report["failed"], report["differing"], report["interrupted"]) == (0, 0, False)
    # Five modes, rounds with two k; two RTTs, three prompts, two repeats.
    assert len(report["runs"]) == report["planned"] == 6 * 2 * 3 * 2
    lines = {(line["mode"], line["rtt_ms"], line["class"]): line for line in report["results"]}
    assert len(lines) == 5 * 2 * 3
    assert None not in [line["predicted_ratio"] for line in lines.values()]
    assert all(line["emulated"] for line in lines.values())
    cloud = lines["cloud", 0, "all"]
    assert cloud["forwards_per_token"] == 1
    # A step of 20 ms is the least that a token without hints can take.
    assert cloud["itl_ms"]["p50"] >= 19.5
    assert cloud["predicted_ratio"] == pytest.approx(1)
    # A TCP segment has 40 bytes of headers at least, and a step sends one.
    frames = cloud["bytes_up_per_token"] + cloud["bytes_down_per_token"]
    assert cloud["packet_bytes_per_token"] > frames + 40
    assert lines["ecd", 0, "all"]["ratio_to_no_alternates"]["lo"] > 0
    # With 19 of 20 guesses right and a draft ten times as fast, hints save most of the forwards.
    for mode in ("rounds", "wait", "ecd"):
        assert lines[mode, 0, "code"]["forwards_per_token"] < 0.6
        assert lines[mode, 0, "code"]["ratio_to_cloud"]["lo"] > 1.2
    # TTFT has a round trip in it, and a round of every step.
    assert lines["cloud", 60, "all"]["ttft_ms"] > cloud["ttft_ms"] + 50
    assert lines["rounds", 60, "all"]["itl_ms"]["p50"] > 60
    assert "emulated" in html_file.read_text()
    assert "emulated" in result.output
