"""Recorded answers: what a target said and what a draft would have guessed at every place of it.

Owns the file and its checks. A trace needs no model to be read: it has the bytes of every token in it. It
knows no engine and no pace.
"""

import gzip
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ecd.errors import BadRequest
from ecd.sampling import Guess, Rule, Sampling


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a trace comes from: models as they were named, what ran them, machine and ISO date."""

    target: str
    draft: str
    max_tokens: int
    versions: dict[str, str]
    machine: str
    date: str


@dataclass(frozen=True, slots=True)
class Recording:
    """One prompt, the target's answer, and per token of it the draft's guess with all before it given.

    `kind` is the prompt's class. step_ms, draft_ms: medians of one token of the target and of the draft while
    this was recorded. Raises BadRequest for an answer that could not have been recorded.
    """

    kind: str
    prompt: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    target_ids: tuple[int, ...]
    guesses: tuple[Guess, ...]
    step_ms: float
    draft_ms: float

    def __post_init__(self) -> None:
        if not self.prompt_ids or not self.target_ids:
            raise BadRequest(f"prompt {self.name}: it or its answer has no tokens")
        if len(self.guesses) != len(self.target_ids):
            raise BadRequest(
                f"prompt {self.name}: {len(self.guesses)} guesses for {len(self.target_ids)} tokens; "
                "each token needs one"
            )
        if self.sampling.rule is Rule.REJECTION:
            raise BadRequest(
                f"prompt {self.name}: under the rejection rule an answer depends on the hints and cannot be "
                "replayed; record with greedy or coupled sampling"
            )
        if not (0 < self.step_ms < math.inf and 0 < self.draft_ms < math.inf):
            raise BadRequest(f"prompt {self.name}: step_ms and draft_ms must be finite and more than 0")

    @property
    def name(self) -> str:
        """The prompt's beginning, for messages."""
        return repr(self.prompt if len(self.prompt) <= 40 else self.prompt[:37] + "...")


@dataclass(frozen=True, slots=True)
class Trace:
    """Recordings of one pair of models. `pieces` has the bytes of every token of the answers.

    Raises BadRequest for recordings that contradict the vocabulary or one another.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        ser_json_bytes="base64", val_json_bytes="base64", extra="forbid"
    )

    provenance: Provenance
    n_vocab: int
    eog: tuple[int, ...]
    pieces: dict[int, bytes]
    recordings: tuple[Recording, ...]

    def __post_init__(self) -> None:
        prompts: dict[str | tuple[int, ...], str] = {}
        for recording in self.recordings:
            guessed = [t for guess in recording.guesses for t in (guess.token, guess.second) if t is not None]
            for token in (*recording.prompt_ids, *recording.target_ids, *guessed, *self.eog):
                if not 0 <= token < self.n_vocab:
                    raise BadRequest(
                        f"prompt {recording.name}: token id {token} is not among the {self.n_vocab}"
                    )
            missing = set(recording.target_ids) - self.pieces.keys()
            if missing:
                raise BadRequest(f"prompt {recording.name}: token id {min(missing)} has no piece")
            for key in (recording.prompt, recording.prompt_ids):
                if key in prompts:
                    raise BadRequest(f"prompt {recording.name} is there twice; record it once")
                prompts[key] = recording.name
        if not self.eog:
            raise BadRequest("no token ends a text: `eog` is empty")

    @property
    def step_ms(self) -> float:
        """The target's time for one token, the median over prompts."""
        return median(recording.step_ms for recording in self.recordings)

    @property
    def draft_ms(self) -> float:
        """The draft's time for one guess, the median over prompts."""
        return median(recording.draft_ms for recording in self.recordings)

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hex."""
        return hashlib.sha256(_TRACE.dump_json(self, exclude_defaults=True)).hexdigest()


_TRACE = TypeAdapter(Trace)


def load_trace(path: Path) -> Trace:
    """Reads and checks a trace; `.gz` in the name means gzip. Raises BadRequest that says what is wrong."""
    try:
        data = path.read_bytes()
        trace = _TRACE.validate_json(gzip.decompress(data) if path.suffix == ".gz" else data)
    except OSError as e:
        raise BadRequest(f"cannot read the trace {path}: {e.strerror or e}") from None
    except EOFError:
        raise BadRequest(f"the trace {path} ends in the middle; record it again") from None
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadRequest(f"{path} is not a trace of `ecd bench record`: {where}: {first['msg']}") from None
    except BadRequest as e:
        raise BadRequest(f"the trace {path} is damaged: {e}") from None
    if not trace.recordings:
        raise BadRequest(f"the trace {path} has no recordings; record it again")
    return trace


def save_trace(path: Path, trace: Trace) -> None:
    """Writes a trace in one go: a crash leaves the file that was there."""
    data = _TRACE.dump_json(trace, exclude_defaults=True)
    fresh = path.with_name(path.name + ".part")
    # Without a time stamp, so that equal traces are equal files.
    fresh.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    os.replace(fresh, path)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A line of a prompts file."""

    kind: str
    text: str


def load_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a JSONL file of {"class", "prompt"}. Raises BadRequest that names the line."""
    prompts = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise BadRequest(f"cannot read prompts from {path}: {e}") from None
    for number, line in enumerate(lines, 1):
        try:
            given: Any = json.loads(line)
            prompt = Prompt(given["class"], given["prompt"])
        except (ValueError, KeyError, TypeError):
            raise BadRequest(f'{path}, line {number}: expected {{"class": ..., "prompt": ...}}') from None
        if not (isinstance(prompt.kind, str) and isinstance(prompt.text, str) and prompt.text):
            raise BadRequest(f"{path}, line {number}: class and prompt must be texts")
        prompts.append(prompt)
    if not prompts:
        raise BadRequest(f"{path} has no prompts")
    return tuple(prompts)
