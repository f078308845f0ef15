"""Steps of a shape, timed: with an engine that only counts, and on vLLM with a tiny one."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from ecd.cloud.verifier import Judged, StepResult, Work
from ecd.errors import BadRequest, EngineError
from ecd.lab.pace import Curve, Line, pace
from ecd.lab.shape_pace import longest_text, measure_steps, running_shape, vocabulary_of
from ecd.lab.shipped import find_file
from ecd.sampling import Verdict

TINY = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


class Engine:
    """Reads prompts in pieces of 100 tokens and takes what a line says; `most` hints are verified at most."""

    def __init__(self, most: int = 99) -> None:
        self.now = 0.0
        self.read: dict[int, int] = {}
        self.steps: list[tuple[int, ...]] = []
        self.forgotten: list[int] = []
        self._most = most

    def step(self, work: Sequence[Work]) -> StepResult:
        judged, tokens = {}, 0
        for part in work:
            assert part.fresh
            self.read[part.key] = min(len(part.tokens), self.read.get(part.key, 0) + 100)
            if self.read[part.key] == len(part.tokens):
                hints = min(len(part.hints), self._most)
                judged[part.key] = Judged(Verdict((1,), 0), hints)
                tokens += 1 + hints
        self.steps.append(tuple(len(part.hints) for part in work))
        self.now += Line(10.0, 0.1).step_ms(len(work), max(tokens, len(work))) / 1000
        return StepResult(judged, {}, tokens, len(work))

    def forget(self, key: int) -> None:
        self.forgotten.append(key)


def test_every_session_has_the_hints_and_whole_steps_are_timed() -> None:
    engine, seen = Engine(), []
    points = measure_steps(
        engine, 50, sessions=(1, 3), tokens=(1, 4), context_tokens=250, repeats=2,
        on_point=seen.append, clock=lambda: engine.now,
    )  # fmt: skip
    assert seen == list(points)
    assert [(p.sessions, p.tokens_per_session, p.ms) for p in points] == [
        (1, 1, 10.0),
        (1, 4, 13.0),
        (3, 1, 10.0),
        (3, 4, 19.0),
    ]
    assert engine.steps.count((3, 3, 3)) == 3, "two counted, and one to warm up"
    assert len(engine.forgotten) == len(set(engine.forgotten)) == 4
    assert max(engine.read.values()) <= longest_text((1, 4), 2, 250)


def test_a_step_that_verifies_less_is_no_measurement() -> None:
    with pytest.raises(EngineError, match="2 of 3 hints verified"):
        measure_steps(Engine(most=2), 50, sessions=(1,), tokens=(4,), context_tokens=10, repeats=1)


@pytest.mark.parametrize(("name", "layers"), [("qwen3-8b", 36), ("qwen3-32b", 64)])
def test_the_shapes_that_come_with_it(name: str, layers: int) -> None:
    shape = find_file("shapes", name)
    assert vocabulary_of(shape) == 151_936
    assert json.loads(shape.read_text())["num_hidden_layers"] == layers


def test_what_is_no_shape_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadRequest, match=r"no config\.json"):
        vocabulary_of(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "give --model"),
        (["--model", "a", "--shape", "b"], "give --model"),
        (["--shape", "qwen3-8b", "--threads", "2"], "--threads is for --model"),
        (["--model", "a", "--engine-args", "{}"], "--engine-args is for --shape"),
        (["--shape", "qwen9"], "none of the shapes"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path: Path, flags: list[str], said: str) -> None:
    result = CliRunner().invoke(pace, [*flags, "--json", str(tmp_path / "out.json")])
    assert result.exit_code
    assert said in result.output + str(result.exception)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_tiny_shape_on_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    # As `ecd cloud` starts it, but for what a CPU needs.
    arguments = {"enforce_eager": True, "block_size": 32}
    with running_shape(
        tmp_path / "tiny.json", arguments, sessions=3, context_tokens=1024, max_verify=3
    ) as verifier:
        points = measure_steps(verifier, 512, sessions=(1, 3), tokens=(1, 4), context_tokens=64, repeats=2)
    assert len(points) == 4
    assert Curve.of(points).step_ms(2, 4) > 0
    assert all(point.ms < 10_000 for point in points)
