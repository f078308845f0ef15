"""The engine on vLLM on a CUDA device: CUDA graphs on, worker in a process of its own, rules on the device.

Runs wherever there are both: `pytest -m cuda tests/cloud/test_vllm_cuda.py`, as other files import more than
such an environment need have. Elsewhere it is skipped.
"""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ecd.models.fetch import resolve
from ecd.sampling import DraftDistribution, Hint, Rule, Sampling, choose, verify

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")
if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

from test_vllm_verifier import (  # noqa: E402
    ANSWER,
    ASKED,
    CONTEXT,
    MOST_HINTS,
    SESSIONS,
    SHAPES,
    Asked,
    generate,
    logits_of,
    near,
    oracle_gap,
)

from ecd.cloud.vllm_verifier import VllmVerifier  # noqa: E402
from ecd.engine.hf import HfModel  # noqa: E402
from ecd.engine.torch_sampling import Rows, token_logprobs, verify_rows  # noqa: E402

pytestmark = [pytest.mark.cuda, pytest.mark.slow]

# Of two tokens whose logits, or log(p / E), are nearer than this either may be chosen: the batch decides how
# sums are ordered, and vLLM's attention in float32 multiplies in TF32, which has 11 bits.
NEAR_TIE = 0.1


@pytest.fixture(scope="module")
def folder() -> Path:
    """SmolLM2 as a Hugging Face folder, float32."""
    return resolve("smollm2-135m-hf")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmVerifier]:
    """The engine as a user starts it, but in float32."""
    verifier = VllmVerifier(
        str(folder),
        sessions=SESSIONS,
        context_tokens=CONTEXT,
        max_verify=MOST_HINTS,
        engine_args={"dtype": "float32", "gpu_memory_utilization": 0.3},
    )
    yield verifier
    verifier.close()


def test_the_worker_is_no_fork_of_the_daemon(engine: VllmVerifier) -> None:
    assert {type(child).__name__ for child in multiprocessing.active_children()} == {"SpawnProcess"}


@pytest.mark.parametrize("settings", [{"mode": "greedy"}, {"mode": "coupled", "temperature": 0.9, "seed": 3}])
def test_every_token_is_the_oracles_with_and_without_hints(
    engine: VllmVerifier, folder: Path, settings: dict[str, object]
) -> None:
    model, reference = HfModel(str(folder)), logits_of(folder)
    prompts = [model.tokenize(text, add_bos=False, parse_special=False) for text in ASKED]

    def sessions() -> list[Asked]:
        return [Asked(prompt, Sampling.of(**settings), number) for number, prompt in enumerate(prompts)]

    alone, hinted = sessions(), sessions()
    generate(engine, alone, lambda number, session, rng: [], len(settings), ANSWER)
    generate(engine, hinted, near([s.answer for s in alone], 0.3), 10 + len(settings), ANSWER)
    assert sum(s.accepted for s in hinted) > 0
    for session in (*alone, *hinted):
        rows = enumerate(reference(session.tokens[:-1]), 1)
        prompt_len = len(session.prompt)
        assert max(oracle_gap(row, session, at) for at, row in rows if at >= prompt_len) < NEAR_TIE


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", [Rule.COUPLED, Rule.REJECTION])
def test_the_rules_on_the_device_are_the_oracles(rule: Rule, shape: dict[str, object]) -> None:
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 3, (5, 32_000)).astype(np.float32)
    tokens = rng.integers(0, 32_000, 40).tolist()
    for seed in range(20):
        sampling = Sampling.of(rule, 0.8, seed=seed, **shape)
        right = choose(logits[0], sampling, 40, tokens, 30)
        # Flat enough that the first hint is accepted now and then.
        ids = (right, *(token for token in range(64) if token != right))
        q = DraftDistribution(ids, (1,) * len(ids))
        others = [Hint(int(token)) for token in rng.integers(0, 32_000, 3)]
        hints = [Hint(right, q if rule is Rule.REJECTION else None), *others]
        (found,) = verify_rows(
            torch.from_numpy(logits).cuda(), [Rows(sampling, 40, hints, prompt_len=30, tokens=tokens)]
        )
        # Sums come in another order there: a draw may only differ where float64 ties.
        assert found == verify(logits, hints, sampling, tokens, 30)


def test_log_probabilities_on_the_device_are_those_of_the_cpu() -> None:
    logits = torch.from_numpy(np.random.default_rng(8).normal(0, 3, (5, 32_000)).astype(np.float32))
    tokens = torch.tensor([1, 2, 3, 4, 5])
    here, there = token_logprobs(logits, tokens, 4), token_logprobs(logits.cuda(), tokens.cuda(), 4)
    assert torch.equal(here.ids, there.ids.cpu())
    assert torch.equal(here.ranks, there.ranks.cpu())
    torch.testing.assert_close(here.logprobs, there.logprobs.cpu())
