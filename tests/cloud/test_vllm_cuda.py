"""The engine on vLLM on a CUDA device: CUDA graphs on, worker in a process of its own, rules on the device.

Runs wherever there are both: `pytest -m cuda`. Elsewhere it is skipped.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ecd.models.fetch import resolve
from ecd.sampling import Hint, Sampling, choose, verify

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")
if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

from test_vllm_verifier import ASKED, CONTEXT, MOST_HINTS, SESSIONS, SHAPES, Asked, generate, near  # noqa: E402

from ecd.cloud.vllm_verifier import VllmVerifier  # noqa: E402
from ecd.engine.hf import HfModel  # noqa: E402
from ecd.engine.torch_sampling import Rows, verify_rows  # noqa: E402

pytestmark = [pytest.mark.cuda, pytest.mark.slow]


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


@pytest.mark.parametrize("settings", [{"mode": "greedy"}, {"mode": "coupled", "temperature": 0.9, "seed": 3}])
def test_hints_change_nothing(engine: VllmVerifier, folder: Path, settings: dict[str, object]) -> None:
    model = HfModel(str(folder))
    prompts = [model.tokenize(text, add_bos=False, parse_special=False) for text in ASKED]

    def sessions() -> list[Asked]:
        return [Asked(prompt, Sampling.of(**settings), number) for number, prompt in enumerate(prompts)]

    alone, hinted = sessions(), sessions()
    generate(engine, alone, lambda number, session, rng: [], seed=len(settings))
    generate(engine, hinted, near([s.answer for s in alone], 0.3), seed=10 + len(settings))
    same = sum(a.answer == b.answer for a, b in zip(alone, hinted, strict=True))
    # CUDA kernels are not bit-identical across batch shapes: near ties may part an answer, rarely in float32.
    assert same >= len(prompts) - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rules_on_the_device_are_the_oracles(shape: dict[str, object]) -> None:
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 3, (5, 32_000)).astype(np.float32)
    tokens = rng.integers(0, 32_000, 40).tolist()
    differing = 0
    for seed in range(20):
        sampling = Sampling.of("coupled", 0.8, seed=seed, **shape)
        right = choose(logits[0], sampling, 40, tokens, 30)
        hints = [Hint(right), *(Hint(int(token)) for token in rng.integers(0, 32_000, 3))]
        expected = verify(logits, hints, sampling, tokens, 30)
        (found,) = verify_rows(
            torch.from_numpy(logits).cuda(), [Rows(sampling, 40, hints, prompt_len=30, tokens=tokens)]
        )
        differing += found != expected
    # Sums come in another order there: a draw may differ where float64 ties.
    assert differing == 0
