"""Step times of a target that has a shape but no weights, on vLLM, as `ecd cloud` would run it.

Owns the sessions that are made up for that and what is timed: whole steps of a verifier, with its scheduler,
the forward and the sampling rules. Knows no profile files. vLLM is imported by what starts it.
"""

import itertools
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from ecd.cloud.verifier import StepResult, Work
from ecd.errors import BadRequest, EngineError
from ecd.lab.pace import Point
from ecd.sampling import Hint, Sampling

# Sessions in a step, and tokens of each.
SESSIONS = (1, 2, 4, 8, 16, 32)
TOKENS = (1, 2, 3, 5, 9, 16)
CONTEXT_TOKENS = 512
# Steps in which a prompt must have been read: more of them than there can be pieces.
MOST_READS = 1000


class Steps(Protocol):
    """What is needed of a `Verifier`."""

    def step(self, work: Sequence[Work]) -> StepResult:
        """As `Verifier.step`."""
        ...

    def forget(self, key: int) -> None:
        """As `Verifier.forget`."""
        ...


@dataclass(slots=True)
class _Text:
    """A made-up session: greedy, nobody else's cache may serve it."""

    key: int
    tokens: list[int]
    prompt_len: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_len = len(self.tokens)

    def work(self, hints: Sequence[Hint]) -> Work:
        return Work(self.key, self.tokens, self.prompt_len, Sampling(), hints, fresh=True)


def measure_steps(
    verifier: Steps,
    n_vocab: int,
    *,
    sessions: Sequence[int] = SESSIONS,
    tokens: Sequence[int] = TOKENS,
    context_tokens: int = CONTEXT_TOKENS,
    repeats: int = 5,
    on_point: Callable[[Point], None] = lambda point: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Point, ...]:
    """Wall times of steps in milliseconds, medians of `repeats`, behind prompts of `context_tokens`.

    With `tokens` of each session: its own and one less of hints. Raises EngineError when a session fails or
    fewer hints are verified than were given.
    """
    rng, keys = random.Random(0), itertools.count(1)
    points = []
    for count in sessions:
        texts = [
            _Text(next(keys), [rng.randrange(n_vocab) for _ in range(context_tokens)]) for _ in range(count)
        ]
        _read(verifier, texts)
        for each in tokens:
            times = []
            # The first, not counted, warms up: graphs are captured, kernels chosen.
            for _ in range(repeats + 1):
                work = [text.work([Hint(rng.randrange(n_vocab)) for _ in range(each - 1)]) for text in texts]
                started = clock()
                result = verifier.step(work)
                times.append(clock() - started)
                _take(result, texts, each - 1)
            points.append(Point(count, each, round(median(times[1:]) * 1000, 3)))
            on_point(points[-1])
        for text in texts:
            verifier.forget(text.key)
    return tuple(points)


def _read(verifier: Steps, texts: Sequence[_Text]) -> None:
    """Steps until every prompt has been read; those that have go on alone no more."""
    unread = list(texts)
    for _ in range(MOST_READS):
        if not unread:
            return
        result = verifier.step([text.work([]) for text in unread])
        _fail(result)
        for text in unread:
            if text.key in result.judged:
                text.tokens.extend(result.judged[text.key].verdict.tokens)
        unread = [text for text in unread if text.key not in result.judged]
    raise EngineError(f"{len(unread)} of {len(texts)} prompts were not read in {MOST_READS} steps")


def _take(result: StepResult, texts: Sequence[_Text], hints: int) -> None:
    _fail(result)
    for text in texts:
        judged = result.judged.get(text.key)
        if judged is None or judged.verified != hints:
            verified = "no verdict" if judged is None else f"{judged.verified} of {hints} hints verified"
            raise EngineError(f"a step with {len(texts)} sessions was not whole: {verified}")
        text.tokens.extend(judged.verdict.tokens)


def _fail(result: StepResult) -> None:
    for error in result.failed.values():
        raise error


def vocabulary_of(shape: Path) -> int:
    """Raises BadRequest for what is no configuration of a model."""
    try:
        given = json.loads(shape.read_text())
        return int(given["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise BadRequest(f"{shape} is no config.json of a model with a vocab_size: {e}") from None


@contextmanager
def running_shape(
    shape: Path, engine_args: Mapping[str, Any], *, sessions: int, context_tokens: int, max_verify: int
) -> Iterator[Steps]:
    """vLLM with random weights of a shape, a config.json, while the context lasts.

    `context_tokens`: prompt and answer of a session. Raises ModelError.
    """
    from ecd.cloud.vllm_verifier import VllmVerifier

    with tempfile.TemporaryDirectory(prefix="ecd-shape-") as folder:
        shutil.copy(shape, Path(folder) / "config.json")
        verifier = VllmVerifier(
            folder,
            sessions=sessions,
            context_tokens=context_tokens,
            max_verify=max_verify,
            engine_args={"load_format": "dummy", "skip_tokenizer_init": True} | dict(engine_args),
        )
        try:
            yield verifier
        finally:
            verifier.close()


def longest_text(tokens: Sequence[int], repeats: int, context_tokens: int = CONTEXT_TOKENS) -> int:
    """Tokens that a session of `measure_steps` comes to, were every hint right, with room for a step more."""
    return context_tokens + 1 + (repeats + 1) * sum(tokens) + max(tokens)


def device() -> str:
    """What vLLM computes on here."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
