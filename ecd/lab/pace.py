"""How long a step of a target takes by what is in its batch: a straight line, or a measured curve.

Owns the profile files, interpolation, measuring a llama.cpp model on this machine, and keeping time while
pretending. It must not know sessions, hints or traces.
"""

import itertools
import json
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
from pydantic import TypeAdapter, ValidationError

from ecd.errors import BadRequest
from ecd.lab.host import describe_machine, versions
from ecd.lab.options import FILE, THREADS
from ecd.lab.shipped import find_file
from ecd.options import json_map

# llama.cpp is imported by what measures it: a replay does without.
if TYPE_CHECKING:
    from ecd.engine.llama import LlamaModel

# What each further line in a forward of a draft model costs, as a share of the first: measured on a CPU.
DRAFT_LINE_COST = 0.3
# A sleep ends up to 0.1 ms late; more is the machine being busy, which must not be made up for.
MAX_MADE_UP_S = 1e-3


@dataclass(frozen=True, slots=True)
class Line:
    """`ms` with one token for each session, and a share `slope` of it more for every further token."""

    ms: float
    slope: float

    def step_ms(self, sessions: int, tokens: int) -> float:
        """Milliseconds of a step with `tokens` in all for `sessions`."""
        return self.ms * (1 + self.slope * (tokens - sessions))


@dataclass(frozen=True, slots=True)
class Point:
    """A measured step: `sessions` with `tokens_per_session` each took `ms`."""

    sessions: int
    tokens_per_session: int
    ms: float


@dataclass(frozen=True, slots=True)
class Profile:
    """A pace as it is filed: where it was measured, and the points, in any order."""

    provenance: dict[str, Any]
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """Measured step times on a grid: `ms[i][j]` for `sessions[i]` with `tokens[j]` each, both ascending."""

    sessions: tuple[int, ...]
    tokens: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, points: Sequence[Point]) -> "Curve":
        """The curve through `points`. Raises BadRequest when they are no full grid of positive times."""
        if any(p.sessions < 1 or p.tokens_per_session < 1 or not 0 < p.ms < math.inf for p in points):
            raise BadRequest("a pace needs sessions and tokens_per_session from 1 on, and finite ms above 0")
        ms = {(p.sessions, p.tokens_per_session): p.ms for p in points}
        sessions = tuple(sorted({p.sessions for p in points}))
        tokens = tuple(sorted({p.tokens_per_session for p in points}))
        grid = list(itertools.product(sessions, tokens))
        if not points or len(ms) != len(points) or any(place not in ms for place in grid):
            raise BadRequest(
                "a pace needs every number of sessions with every number of tokens_per_session, each once"
            )
        return cls(sessions, tokens, tuple(tuple(ms[s, t] for t in tokens) for s in sessions))

    def step_ms(self, sessions: int, tokens: int) -> float:
        """Milliseconds of a step with `tokens` in all for `sessions`, which share them evenly.

        Bilinear between the points; below the smallest as there, above the largest straight on.
        """
        each = [_along(self.tokens, row, tokens / sessions) for row in self.ms]
        return _along(self.sessions, each, sessions)


def _along(xs: Sequence[int], ys: Sequence[float], x: float) -> float:
    """Linear interpolation, constant to the left of the points; to the right it goes on and never falls."""
    if x <= xs[0] or len(xs) == 1:
        return ys[0]
    i = min(bisect_right(xs, x), len(xs) - 1)
    slope = (ys[i] - ys[i - 1]) / (xs[i] - xs[i - 1])
    if x > xs[-1]:
        return ys[-1] + max(0.0, slope) * (x - xs[-1])
    return ys[i - 1] + slope * (x - xs[i - 1])


StepTime = Line | Curve

_PROFILE = TypeAdapter(Profile)


def load_curve(path: Path) -> Curve:
    """The curve of a profile file. Raises BadRequest that says what is wrong."""
    try:
        return Curve.of(_PROFILE.validate_json(path.read_bytes()).points)
    except OSError as e:
        raise BadRequest(f"cannot read the pace {path}: {e.strerror}") from None
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadRequest(f"{path} is no pace profile: {where}: {first['msg']}") from None
    except BadRequest as e:
        raise BadRequest(f"{path}: {e}") from None


def save_profile(path: Path, profile: Profile) -> None:
    """Writes a profile as JSON for people, a point a line."""
    points = ",\n  ".join(json.dumps(asdict(point)) for point in profile.points)
    path.write_text(f'{{"provenance": {json.dumps(profile.provenance)},\n "points": [\n  {points}\n]}}\n')


def measure_pace(
    model: "LlamaModel",
    *,
    sessions: Sequence[int] = (1, 2, 4, 8),
    tokens: Sequence[int] = (1, 2, 3, 5, 9),
    context_tokens: int = 256,
    repeats: int = 5,
    threads: int = 1,
    on_point: Callable[[Point], None] = lambda point: None,
) -> tuple[Point, ...]:
    """Step times of a llama.cpp model here, medians of `repeats`, behind texts of `context_tokens`."""
    from ecd.engine.llama import LlamaContext, Segment
    from ecd.engine.packing import PROMPT_CHUNK_TOKENS

    points = []
    most = max(tokens)
    # What the text says does not change the time; ids that every vocabulary has do.
    text = [1 + i % 100 for i in range(context_tokens + most)]
    for n in sessions:
        n_batch = max(n * most, PROMPT_CHUNK_TOKENS)
        context = LlamaContext(model, n_ctx=context_tokens + most, n_seq=n, n_batch=n_batch, threads=threads)
        try:
            for sequence, start in itertools.product(range(n), range(0, context_tokens, PROMPT_CHUNK_TOKENS)):
                piece = text[start : min(start + PROMPT_CHUNK_TOKENS, context_tokens)]
                context.decode([Segment(sequence, start, piece, 0)])
            for each in tokens:
                piece = text[context_tokens : context_tokens + each]
                step = [Segment(sequence, context_tokens, piece, each) for sequence in range(n)]
                times = []
                # The first, not counted, warms the caches.
                for _ in range(repeats + 1):
                    started = time.perf_counter()
                    context.decode(step)
                    times.append(time.perf_counter() - started)
                points.append(Point(n, each, round(median(times[1:]) * 1000, 3)))
                on_point(points[-1])
        finally:
            context.close()
    return tuple(points)


class Hold:
    """Makes a piece of work take as long as it is said to. What one sleep is late the next is shorter."""

    def __init__(self) -> None:
        self._late = 0.0

    def until(self, started: float, ms: float) -> None:
        """Returns `ms` after `started`, a time of `time.perf_counter`."""
        due = started + ms / 1000 - self._late
        pause = due - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        self._late = min(max(0.0, time.perf_counter() - due), MAX_MADE_UP_S)


def _on_llama(
    model: str, threads: int, tell: Callable[[Point], None]
) -> tuple[tuple[Point, ...], dict[str, Any]]:
    """The points, and what they were measured with."""
    from ecd.engine.llama import LlamaModel
    from ecd.models.fetch import resolve

    points = measure_pace(LlamaModel(resolve(model)), threads=threads, on_point=tell)
    return points, {"model": model, "threads": threads}


def _on_vllm(
    shape: str, engine_args: dict[str, Any], tell: Callable[[Point], None]
) -> tuple[tuple[Point, ...], dict[str, Any]]:
    """Likewise."""
    from ecd.lab import shape_pace

    file = find_file("shapes", shape)
    n_vocab = shape_pace.vocabulary_of(file)
    most, repeats = max(shape_pace.TOKENS), 5
    with shape_pace.running_shape(
        file,
        engine_args,
        sessions=max(shape_pace.SESSIONS),
        context_tokens=shape_pace.longest_text(shape_pace.TOKENS, repeats),
        max_verify=most - 1,
    ) as verifier:
        points = shape_pace.measure_steps(verifier, n_vocab, repeats=repeats, on_point=tell)
    told = {"shape": shape, "weights": "random", "device": shape_pace.device(), "engine_args": engine_args}
    return points, {**told, "context_tokens": shape_pace.CONTEXT_TOKENS}


@click.command()
@click.option("--model", help="On llama.cpp: path of a GGUF file, or a name from `ecd models list`.")
@click.option(
    "--shape",
    help="On vLLM, with random weights: path of a model's config.json, or one of ecd's: qwen3-8b, -32b.",
)
@click.option("--engine-args", metavar="JSON", callback=json_map, help="Arguments of vLLM's engine, by name.")
@click.option("--threads", type=THREADS, help="Of llama.cpp.  [default: 1]")
@click.option("--json", "out", required=True, type=FILE, help="The profile to write.")
def pace(
    model: str | None, shape: str | None, engine_args: dict[str, Any] | None, threads: int | None, out: Path
) -> None:
    """Measure a model's step times on this machine, for `--pace PROFILE`.

    A shape has no weights: random ones take as long. So what a large model takes on an accelerator can be
    measured without fetching it; a step then is one of the cloud's own engine on vLLM.
    """
    if (model is None) == (shape is None):
        raise click.UsageError("give --model, which llama.cpp runs, or --shape, which vLLM runs")
    if shape is not None and threads is not None:
        raise click.UsageError("--threads is for --model; vLLM has its own --engine-args")
    if model is not None and engine_args is not None:
        raise click.UsageError("--engine-args is for --shape, which vLLM runs")

    def tell(point: Point) -> None:
        click.echo(f"{point.sessions:3} sessions x {point.tokens_per_session} tokens: {point.ms:.1f} ms")

    if model is not None:
        points, of_engine = _on_llama(model, threads or 1, tell)
    else:
        assert shape is not None
        points, of_engine = _on_vllm(shape, engine_args or {}, tell)
    provenance = {
        **of_engine,
        "machine": describe_machine(),
        "versions": versions(),
        "date": date.today().isoformat(),
    }
    save_profile(out, Profile(provenance, points))
