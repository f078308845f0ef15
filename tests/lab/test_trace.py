"""The trace file: what is written is read, and what is damaged is named."""

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ecd.errors import BadRequest
from ecd.lab.shipped import find_file
from ecd.lab.trace import Prompt, Trace, load_prompts, load_trace, save_trace
from ecd.sampling import Rule, Sampling


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_a_trace_comes_back_as_it_was(tmp_path: Path, trace: Trace, name: str) -> None:
    coupled = replace(trace.recordings[0], sampling=Sampling(Rule.COUPLED, 7, 0.8, logit_bias=((3, -1.5),)))
    trace = replace(trace, recordings=(coupled, trace.recordings[1]))
    save_trace(tmp_path / name, trace)
    assert load_trace(tmp_path / name) == trace
    assert load_trace(tmp_path / name).digest == trace.digest
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")


def test_times_are_the_median_over_prompts(trace: Trace) -> None:
    assert (trace.step_ms, trace.draft_ms) == (40, 6)


def test_the_digest_tells_traces_apart(trace: Trace) -> None:
    other = replace(trace.recordings[0], target_ids=(10, 11, 12, 10))
    assert replace(trace, recordings=(other, trace.recordings[1])).digest != trace.digest


def set_at(*path: str | int, value: Any) -> Callable[[Any], None]:
    def damage(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = value

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (set_at("n_vocab", value=15), "token id 20 is not among the 15"),
        (set_at("pieces", value={}), "has no piece"),
        (set_at("eog", value=[]), "`eog` is empty"),
        (set_at("recordings", value=[]), "has no recordings"),
        (set_at("recordings", 1, "prompt", value="first prompt"), "'first prompt' is there twice"),
        (set_at("recordings", 1, "prompt_ids", value=[2, 3, 4]), "'second prompt' is there twice"),
        (set_at("recordings", 0, "guesses", 3, "token", value=-1), "token id -1"),
        (set_at("recordings", 1, "guesses", value=[]), "0 guesses for 2 tokens"),
        (set_at("recordings", 1, "target_ids", value=[]), "has no tokens"),
        (set_at("recordings", 0, "step_ms", value=0), "more than 0"),
        (set_at("recordings", 0, "draft_ms", value=math.inf), "finite"),
        (set_at("recordings", 0, "sampling", "rule", value="rejection"), "rejection rule"),
        (set_at("recordings", 0, "kind", value=3), r"recordings\.0\.kind"),
        (set_at("other", value=3), "other"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, trace: Trace, damage: Callable[[Any], None], said: str
) -> None:
    file = tmp_path / "trace.json"
    save_trace(file, trace)
    data = json.loads(file.read_text())
    damage(data)
    file.write_text(json.dumps(data))
    with pytest.raises(BadRequest, match=said) as raised:
        load_trace(file)
    assert str(file) in str(raised.value)


def test_files_that_are_no_traces(tmp_path: Path, trace: Trace) -> None:
    with pytest.raises(BadRequest, match="No such file"):
        load_trace(tmp_path / "missing.json")
    plain = tmp_path / "plain.json.gz"
    plain.write_text("{}")
    with pytest.raises(BadRequest, match="cannot read"):
        load_trace(plain)
    plain.write_bytes(gzip.compress(b"not json"))
    with pytest.raises(BadRequest, match="not a trace"):
        load_trace(plain)
    save_trace(plain, trace)
    plain.write_bytes(plain.read_bytes()[:-40])
    with pytest.raises(BadRequest, match="ends in the middle"):
        load_trace(plain)


def test_prompts_are_read_by_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"class": "a", "prompt": "x"}\n{"class": "b", "prompt": "y"}\n')
    assert load_prompts(file) == (Prompt("a", "x"), Prompt("b", "y"))


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"prompt": "x"}', '{"class": 1, "prompt": "x"}'])
def test_a_bad_line_of_prompts_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"class": "a", "prompt": "x"}\n' + line)
    with pytest.raises(BadRequest, match="line 2"):
        load_prompts(file)


def test_shipped_data_is_found_by_name_and_is_sound() -> None:
    prompts = load_prompts(find_file("prompts", "mixed"))
    assert [prompt.kind for prompt in prompts] == ["code"] * 8 + ["maths"] * 8 + ["chat"] * 8
    for name, rule in (("qwen-coder-greedy", Rule.GREEDY), ("qwen-coder-coupled", Rule.COUPLED)):
        trace = load_trace(find_file("traces", name))
        assert [Prompt(r.kind, r.prompt) for r in trace.recordings] == list(prompts)
        assert {r.sampling.rule for r in trace.recordings} == {rule}
    with pytest.raises(BadRequest, match="qwen-coder-coupled, qwen-coder-greedy"):
        find_file("traces", "something")
