"""Recorded models: what they say is what was recorded, whatever is asked of them and in which order."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecd.client import BlockingClient
from ecd.cloud.verifier import StepResult, Work
from ecd.edge.drafter import DraftTask
from ecd.errors import BadRequest, EngineError, RemoteError
from ecd.lab.pace import Hold, Line
from ecd.lab.replay import PROMPT_STEP_TOKENS, ReplayDrafter, ReplayModel, ReplayVerifier
from ecd.lab.shipped import find_file
from ecd.lab.system import DaemonProcess, address_of, running_cloud, running_edge
from ecd.lab.trace import Trace, load_trace, save_trace
from ecd.prompt import prompt_tokens
from ecd.sampling import Guess, Hint, Sampling, Verdict

PROMPT = (2, 3, 4)
NO_TIME = Line(1e-6, 0.0)
same_trace = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def verifier_of(trace: Trace) -> ReplayVerifier:
    return ReplayVerifier(trace, sessions=4, context_tokens=1000, step_time=NO_TIME)


def work(answer: tuple[int, ...] = (), hints: tuple[int, ...] = (), key: int = 1, **changes: object) -> Work:
    item = Work(key, [*PROMPT, *answer], 3, Sampling(), [Hint(token) for token in hints])
    return replace(item, **changes)


def verdict(result: StepResult, key: int = 1) -> Verdict:
    assert not result.failed
    return result.judged[key].verdict


def test_a_recorded_prompt_has_its_ids_and_no_other_text_has_any(trace: Trace) -> None:
    model = ReplayModel(trace)
    assert prompt_tokens(model, "first prompt", chat=True) == PROMPT
    assert prompt_tokens(model, "first prompt", chat=False) == PROMPT
    with pytest.raises(BadRequest, match="trace of big has 2 prompts, and not 'third prompt'"):
        prompt_tokens(model, "third prompt", chat=True)
    assert [model.piece(token) for token in (10, 1)] == [b"a", b""]
    with pytest.raises(EngineError, match="token 20"):
        model.piece(20)


def test_only_the_same_trace_fits(trace: Trace) -> None:
    other = replace(trace, recordings=trace.recordings[:1])
    assert not ReplayModel(trace).fingerprint().differences(ReplayModel(trace).fingerprint())
    assert ReplayModel(trace).fingerprint().differences(ReplayModel(other).fingerprint())


@pytest.mark.parametrize(
    ("hints", "tokens", "accepted"),
    [
        ((), (11,), 0),
        ((11,), (11, 12), 1),
        ((11, 30, 13), (11, 12), 1),
        ((30, 12), (11,), 0),
        ((11, 12, 13), (11, 12, 13, 0), 3),
        ((11, 12, 13, 30), (11, 12, 13, 0), 3),
        ((11, 12, 13, 0), (11, 12, 13, 0, 0), 4),
    ],
)
def test_hints_are_judged_by_what_was_recorded(
    trace: Trace, hints: tuple[int, ...], tokens: tuple[int, ...], accepted: int
) -> None:
    verifier = verifier_of(trace)
    assert verdict(verifier.step([work(hints=hints)])) == Verdict((10,), 0)  # the prompt is read first
    result = verifier.step([work((10,), hints)])
    assert verdict(result) == Verdict(tokens, accepted)
    assert result.judged[1].verified == len(hints)
    assert (result.batch_sessions, result.batch_tokens) == (1, 1 + len(hints))


@same_trace
@given(st.lists(st.lists(st.sampled_from([10, 11, 12, 13, 30]), max_size=4), min_size=6, max_size=6))
def test_whatever_the_hints_the_text_is_the_recorded_one(trace: Trace, hints: list[list[int]]) -> None:
    verifier = verifier_of(trace)
    answer: tuple[int, ...] = ()
    for offered in hints:
        if 0 not in answer:
            answer += verdict(verifier.step([work(answer, tuple(offered))])).tokens
    assert answer[:5] == (10, 11, 12, 13, 0)


def test_prompts_share_what_a_step_reads_and_count_as_one_token(trace: Trace) -> None:
    verifier = verifier_of(trace)
    long = Work(2, [2] * 600, 600, Sampling(), [])
    first = verifier.step([long, work()])
    # The long prompt takes all of the step, the short one waits.
    assert (first.judged, first.batch_sessions, first.batch_tokens) == ({}, 1, 1)
    second = verifier.step([long, work()])
    assert PROMPT_STEP_TOKENS < 600
    assert (verdict(second, 2).tokens, verdict(second, 1).tokens) == ((11,), (10,))
    assert (second.batch_sessions, second.batch_tokens) == (2, 2)


def test_a_session_that_comes_again_goes_on_where_it_was(trace: Trace) -> None:
    verifier = verifier_of(trace)
    verifier.step([work()])
    verifier.forget(1)
    verifier.forget(1)
    assert verdict(verifier.step([work((10, 11), (12,), key=2)]), 2) == Verdict((12,), 0)
    assert verdict(verifier.step([work((10, 11, 12), (13,), key=2)]), 2) == Verdict((13, 0), 1)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (work(tokens=[3, 3, 3]), "no prompt with these 3 token ids"),
        (work((11,)), "'first prompt' has left what was recorded"),
        (work(sampling=Sampling.of(temperature=0.5)), "recorded with .*ask for the same"),
        (work(logprobs=0), "has no logprobs; ask without"),
    ],
)
def test_what_was_not_recorded_fails_alone(trace: Trace, item: Work, said: str) -> None:
    result = verifier_of(trace).step([item, work(key=2)])
    assert verdict(replace(result, failed={}), 2).tokens == (10,)
    with pytest.raises((EngineError, BadRequest), match=said):
        raise result.failed[1]


def test_the_seed_matters_only_with_a_temperature(trace: Trace) -> None:
    assert verdict(verifier_of(trace).step([work(sampling=Sampling(seed=99))])).tokens == (10,)


def drafter_of(trace: Trace, wrong: bool = False) -> ReplayDrafter:
    return ReplayDrafter(trace, slots=2, context_tokens=1000, draft_ms=1e-3, wrong=wrong)


def task(*answer: int, slot: int = 0, branch: int = 0, prompt: tuple[int, ...] = PROMPT) -> DraftTask:
    return DraftTask(
        slot=slot,
        branch=branch,
        context=[*prompt, *answer],
        prompt_len=len(prompt),
        committed=len(prompt),
        sampling=Sampling(),
    )


def test_along_the_recorded_text_the_guesses_are_the_recorded_ones(trace: Trace) -> None:
    drafter = drafter_of(trace)
    assert drafter.draft([task(), task(10, branch=1), task(10, 11, slot=1)]) == [
        (Guess(10, 0.9, second=11),),
        (Guess(20, 0.4, second=11),),
        (Guess(12, 0.8, second=21),),
    ]


@same_trace
@given(st.lists(st.sampled_from([10, 11, 12, 13, 20, 30]), max_size=6), st.booleans())
def test_off_the_recorded_text_no_guess_is_right(trace: Trace, answer: list[int], wrong: bool) -> None:
    recorded = trace.recordings[0]
    ((guess,),) = drafter_of(trace, wrong).draft([task(*answer)])
    on_record = len(answer) < 4 and tuple(answer) == recorded.target_ids[: len(answer)]
    assert guess.confidence == recorded.guesses[min(len(answer), 3)].confidence
    if on_record and not wrong:
        assert guess == recorded.guesses[len(answer)]
    else:
        assert not {guess.token, guess.second} & {10, 11, 12, 13, 0, 1, 20}


def test_a_prompt_is_read_in_chunks_and_again_after_release(trace: Trace) -> None:
    drafter, long = drafter_of(trace), task(prompt=trace.recordings[1].prompt_ids)
    for _ in range(2):
        calls = 1
        while drafter.draft([long]) == [()]:
            calls += 1
        assert calls == 10  # 600 tokens, 64 at a time
        drafter.release(0)


@pytest.mark.parametrize(("given", "expected_ms"), [({}, 1.6), ({"line_cost": 0.0}, 1.0)])
def test_each_further_line_costs_a_share_of_the_first(
    trace: Trace, monkeypatch: pytest.MonkeyPatch, given: dict[str, float], expected_ms: float
) -> None:
    held = list[float]()
    monkeypatch.setattr(Hold, "until", lambda self, started, ms: held.append(ms))
    drafter = ReplayDrafter(trace, slots=1, context_tokens=1000, draft_ms=1.0, **given)  # type: ignore[arg-type]
    drafter.draft([task(), task(10, branch=1), task(11, branch=2)])
    assert held == [pytest.approx(expected_ms)]


def test_a_task_without_the_model_costs_nothing_and_gets_nothing(trace: Trace) -> None:
    drafter = ReplayDrafter(trace, slots=1, context_tokens=1000, draft_ms=3_600_000)
    assert drafter.draft([replace(task(), model=False)]) == [()]


def test_an_unknown_prompt_is_an_error(trace: Trace) -> None:
    with pytest.raises(EngineError, match="no prompt with these 3"):
        drafter_of(trace).draft([task(prompt=(9, 9, 9))])


GREEDY = load_trace(find_file("traces", "qwen-coder-greedy"))


@pytest.fixture(scope="module")
def replayed_cloud(folder: Path) -> Iterator[DaemonProcess]:
    with running_cloud(folder, "replay:qwen-coder-greedy", "--step-ms", "3") as cloud:
        yield cloud


@pytest.fixture(scope="module")
def replayed_edge(folder: Path, replayed_cloud: DaemonProcess) -> Iterator[DaemonProcess]:
    cloud = address_of(replayed_cloud)
    with running_edge(folder, "replay:qwen-coder-greedy", cloud, "--draft-ms", "0.5") as edge:
        yield edge


@pytest.mark.parametrize("kind", ["code", "maths", "chat"])
@pytest.mark.parametrize("drafting", [{}, {"draft": False}, {"patience_ms": "rounds", "hint_tokens": 4}])
def test_two_real_daemons_give_the_recorded_text(
    replayed_edge: DaemonProcess, kind: str, drafting: dict[str, object]
) -> None:
    recording = next(r for r in GREEDY.recordings if r.kind == kind)
    with BlockingClient(replayed_edge.socket) as client:
        result = client.call("run", prompt=recording.prompt, max_tokens=len(recording.target_ids), **drafting)
    assert tuple(result["token_ids"]) == recording.target_ids
    assert result["text"].encode() == b"".join(GREEDY.pieces[token] for token in recording.target_ids)
    assert result["model"] == "replay:qwen2.5-coder-1.5b-bf16"
    if "draft" in drafting:
        assert result["stats"]["drafted"] == 0
    if "patience_ms" in drafting:
        assert 0 < result["stats"]["accepted"] <= result["stats"]["verified"]


def test_what_is_not_in_the_trace_is_refused_with_a_reason(replayed_edge: DaemonProcess) -> None:
    with BlockingClient(replayed_edge.socket) as client:
        with pytest.raises(RemoteError, match="24 prompts"):
            client.call("run", prompt="something else")
        with pytest.raises(RemoteError, match="ask for the same"):
            client.call("run", prompt=GREEDY.recordings[0].prompt, temperature=0.3, max_tokens=4)


def test_a_draft_that_is_always_wrong_changes_no_text(tmp_path: Path, replayed_cloud: DaemonProcess) -> None:
    recording = GREEDY.recordings[0]
    flags = ("--draft-ms", "0.5", "--wrong", "--no-lookup")
    with (
        running_edge(tmp_path, "replay:qwen-coder-greedy", address_of(replayed_cloud), *flags) as edge,
        BlockingClient(edge.socket) as client,
    ):
        result = client.call("run", prompt=recording.prompt, max_tokens=64)
    assert tuple(result["token_ids"]) == recording.target_ids
    assert result["stats"]["accepted"] == 0 < result["stats"]["drafted"]


def test_another_trace_is_refused(tmp_path: Path, trace: Trace, replayed_cloud: DaemonProcess) -> None:
    save_trace(tmp_path / "other.json", trace)
    edge = DaemonProcess(
        "edge",
        ["--trace", str(tmp_path / "other.json"), "--cloud", address_of(replayed_cloud)],
        tmp_path,
        module="ecd.lab.replay",
    )
    try:
        edge.start()
        status = edge.wait(lambda status: bool(status["link"]["refused"]))
    finally:
        edge.stop()
    assert "vocabulary" in status["link"]["reason"]
