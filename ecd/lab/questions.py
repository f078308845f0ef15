"""What a soak asks, in how many ways, and what the answer must be.

Owns requests and expected tokens. Knows no daemons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ecd.lab.shipped import find_file
from ecd.lab.trace import load_prompts, load_trace

# The same text in all of them: drafting as the edge likes, for other objectives, in rounds, without hints.
WAYS: tuple[Mapping[str, Any], ...] = (
    {},
    {"objective": "latency"},
    {"objective": "cost"},
    {"patience_ms": "rounds", "hint_tokens": 4, "ahead_tokens": 4},
    {"alternates": False},
    {"draft": False},
)
REAL_PROMPTS, REAL_TOKENS, REAL_SEED = 6, 48, 5


@dataclass(frozen=True, slots=True)
class Question:
    """Arguments of `run`, the tokens that must come, and the prompt's beginning for messages."""

    name: str
    arguments: Mapping[str, Any]
    expected: tuple[int, ...]


def recorded_questions(trace_name: str) -> Sequence[Question]:
    """Every prompt of a trace in every way. Raises BadRequest."""
    return [
        Question(
            recording.name,
            {
                "prompt": recording.prompt,
                "temperature": recording.sampling.temperature,
                "seed": recording.sampling.seed,
                "max_tokens": len(recording.target_ids),
                **way,
            },
            recording.target_ids,
        )
        for recording, way in product(load_trace(find_file("traces", trace_name)).recordings, WAYS)
    ]


def real_questions(target: str) -> Sequence[Question]:
    """Some of ecd's own prompts, greedily and at temperature 0.8, as the target alone answers them.

    That is computed here and takes a while. Raises EcdError.
    """
    from ecd.engine.llama import LlamaModel
    from ecd.models.forms import gguf_file
    from ecd.oracle import generate
    from ecd.prompt import prompt_tokens
    from ecd.sampling import Sampling

    model = LlamaModel(gguf_file(target))
    found = []
    prompts = load_prompts(find_file("prompts", "mixed"))
    for prompt, temperature in product(prompts[:: len(prompts) // REAL_PROMPTS], (0.0, 0.8)):
        alone = generate(
            model,
            prompt_tokens(model, prompt.text, chat=True),
            Sampling.of("exact", temperature, seed=REAL_SEED),
            max_tokens=REAL_TOKENS,
            stop=(),
            threads=1,
        )
        asked: dict[str, Any] = {
            "prompt": prompt.text,
            "temperature": temperature,
            "seed": REAL_SEED,
            "max_tokens": REAL_TOKENS,
        }
        ids = tuple(alone.token_ids)
        found += [Question(repr(prompt.text[:40]), asked | dict(way), ids) for way in WAYS]
    return found
