"""Recording with the small pair: the target's own text, the draft's guesses, and going on later."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ecd.engine.llama import LlamaModel
from ecd.errors import BadRequest
from ecd.lab.record import record, record_trace
from ecd.lab.trace import Prompt, Provenance, load_trace
from ecd.oracle import check, generate
from ecd.prompt import prompt_tokens
from ecd.sampling import Sampling

PROMPTS = (Prompt("chat", "Name three colours."), Prompt("code", "def add(a, b):"))
PROVENANCE = Provenance("target", "draft", 8, {}, "here", "2026-01-01")


@pytest.mark.parametrize("sampling", [Sampling(), Sampling.of(temperature=0.8, seed=7)])
def test_the_target_alone_and_the_draft_along_it(
    tmp_path: Path, target: LlamaModel, draft: LlamaModel, sampling: Sampling
) -> None:
    out = tmp_path / "trace.json.gz"
    trace = record_trace(target, draft, PROMPTS, sampling, PROVENANCE, out, threads=1)
    assert load_trace(out) == trace
    for prompt, recording in zip(PROMPTS, trace.recordings, strict=True):
        ids = prompt_tokens(target, prompt.text, chat=True)
        alone = generate(target, ids, sampling, max_tokens=8, stop=(), threads=1)
        assert (recording.prompt_ids, recording.target_ids) == (ids, alone.token_ids)
        assert b"".join(trace.pieces[token] for token in alone.token_ids).decode() == alone.text
        # Each guess is the draft's own choice with the target's tokens before it.
        for at, guess in enumerate(recording.guesses):
            run = {
                "prompt_token_ids": [*ids, *alone.token_ids[:at]],
                "token_ids": [guess.token],
                "sampling": sampling.to_map(),
            }
            assert check(draft, run, tolerance=0.25, threads=1).wrong == 0
            assert 0 < guess.confidence <= 1
            assert guess.second != guess.token
    assert target.eog == set(trace.eog)


def test_an_interrupted_recording_goes_on(tmp_path: Path, target: LlamaModel, draft: LlamaModel) -> None:
    out = tmp_path / "trace.json"
    first = record_trace(target, draft, PROMPTS[:1], Sampling(), PROVENANCE, out, threads=1)
    progress: list[int] = []
    both = record_trace(
        target, draft, PROMPTS, Sampling(), PROVENANCE, out, threads=1, on_progress=progress.append
    )
    assert progress == [1, 2]
    # Times differ from run to run, so that this tells it was not recorded again.
    assert both.recordings[0] == first.recordings[0]
    assert [recording.kind for recording in both.recordings] == ["chat", "code"]
    with pytest.raises(BadRequest, match="choose another --out"):
        record_trace(target, draft, PROMPTS, Sampling.of(temperature=1.0), PROVENANCE, out, threads=1)


def test_the_command(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "trace.json"
    prompts.write_text('{"class": "chat", "prompt": "Hello"}\n')
    pair = ["--target", "smollm2-135m", "--draft", "smollm2-135m-draft"]
    result = CliRunner().invoke(
        record, [*pair, "--prompts", str(prompts), "--max-tokens", "4", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "1 of 1 prompts" in result.output
    provenance = load_trace(out).provenance
    assert (provenance.target, provenance.draft, provenance.max_tokens) == (pair[1], pair[3], 4)
    assert {"ecd", "llama-cpp-python"} <= provenance.versions.keys()


def test_listing_and_replaying_need_no_llama_cpp() -> None:
    code = "import sys, ecd.lab.record, ecd.lab.replay; sys.exit('llama_cpp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
