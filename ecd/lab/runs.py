"""What a streaming benchmark asks for and what it keeps of each request.

Owns the modes, the order of the requests and the record of one. Knows no process and no clock; times are
passed in.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, assert_never

from ecd.lab.simulate import WAIT_AHEAD

ALL = "all"  # the class of every prompt
Objective = Literal["latency", "balanced", "cost"]


class Mode(StrEnum):
    """Ways to serve a request, all settings of one system."""

    CLOUD = "cloud"  # plain streaming, no drafts
    ROUNDS = "rounds"  # draft k, wait for the verdict
    WAIT = "wait"  # hints as they come, and a cloud that waits for them
    ECD = "ecd"  # what the edge's controller decides
    ECD_NO_ALTERNATES = "ecd-no-alternates"  # likewise, and no hints for the case that a guess is wrong


OURS = (Mode.ECD, Mode.ECD_NO_ALTERNATES)
USUAL_MODES = (Mode.CLOUD, Mode.ROUNDS, Mode.WAIT, Mode.ECD)


@dataclass(frozen=True, slots=True)
class Variant:
    """A mode, with the number of drafts if it is rounds."""

    mode: Mode
    k: int | None = None

    def arguments(self, objective: Objective, *, kv_cache: bool = False) -> dict[str, Any]:
        """Arguments of `run` on the edge's control socket.

        Without `kv_cache` whoever is asked a prompt first does not read it for the others.
        """
        return {"kv_cache": kv_cache, **self._deciding(objective)}

    def _deciding(self, objective: Objective) -> dict[str, Any]:
        match self.mode:
            case Mode.CLOUD:
                return {"draft": False}
            case Mode.ROUNDS:
                return {"patience_ms": "rounds", "hint_tokens": self.k, "ahead_tokens": self.k}
            case Mode.WAIT:
                return {"patience_ms": "rounds", "hint_tokens": 1, "ahead_tokens": WAIT_AHEAD}
            case Mode.ECD:
                return {"objective": objective}
            case Mode.ECD_NO_ALTERNATES:
                return {"objective": objective, "alternates": False}
            case unreachable:
                assert_never(unreachable)


@dataclass(frozen=True, slots=True)
class Asking:
    """A prompt of a class, and what its answer depends on."""

    kind: str
    prompt: str
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Campaign:
    """What to measure. `ks`: numbers of drafts to try in rounds, none for the one that is predicted best.

    Jitter is added to each way of the link, from 0 to `jitter_ms`; `stalls` stop it now and then. `seed`
    fixes the order and the jitter. `cached`: prompts are in every KV cache before the first counted request,
    else each request reads its prompt anew, so that whoever is asked first does not read it for the others.
    """

    rtts_ms: tuple[float, ...]
    modes: tuple[Mode, ...] = USUAL_MODES
    ks: tuple[int, ...] = ()
    max_tokens: int = 64
    repeats: int = 1
    seed: int = 0
    objective: Objective = "latency"
    jitter_ms: float = 0.0
    stalls: bool = False
    cached: bool = False


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What the requests before the first counted one told: acceptance, and the first edge's conditions."""

    acceptance: float | None
    conditions: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One request to make: `prompt` is an index, `kind` the prompt's class."""

    variant: Variant
    rtt_ms: float
    kind: str
    prompt: int
    repeat: int


@dataclass(frozen=True, slots=True)
class Run:
    """One request that was made; with an `error` the rest is empty.

    `decoded` tokens arrived in `decode_ms`, from the first piece of text to the last; `gaps_ms` lie between
    pieces. `settled` guesses were compared with the target's text at the edge, `right` of them agreed.
    `bytes_up`, `bytes_down`: frames of this answer; `packet_bytes`: all that its edge's connection carried
    meanwhile, both ways, with TCP/IP headers.
    """

    cell: Cell
    error: str | None = None
    ids: tuple[int, ...] = ()
    decoded: int = 0
    decode_ms: float = 0.0
    ttft_ms: float = 0.0
    gaps_ms: tuple[float, ...] = ()
    forwards: int = 0
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    settled: int = 0
    right: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    packet_bytes: int = 0
    cpu_edge_s: float = 0.0
    cpu_cloud_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """The decode rate; 0 when all came at once."""
        return 1000 * self.decoded / self.decode_ms if self.decode_ms else 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """All runs that were made of those `planned`, and each edge's last `conditions` by RTT."""

    runs: tuple[Run, ...]
    planned: int
    interrupted: bool
    conditions: dict[float, dict[str, Any]]


@dataclass(slots=True)
class Reception:
    """Arrivals of one answer's text at the client, in seconds since the request."""

    at_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def text(self, at_s: float, tokens: int) -> None:
        """A piece of text with so many tokens came."""
        self.at_s.append(at_s)
        self.tokens.append(tokens)

    def numbers(self) -> dict[str, Any]:
        """The fields of a Run that are seen at the client; at least one piece came."""
        pairs = zip(self.at_s, self.at_s[1:], strict=False)
        return {
            "decoded": sum(self.tokens[1:]),
            "decode_ms": 1000 * (self.at_s[-1] - self.at_s[0]),
            "ttft_ms": 1000 * self.at_s[0],
            "gaps_ms": tuple(round(1000 * (later - earlier), 3) for earlier, later in pairs),
        }


def schedule(
    variants: Mapping[float, Sequence[Variant]], kinds: Sequence[str], repeats: int, seed: int
) -> list[Cell]:
    """All requests in order: for each repeat and prompt every variant at every RTT, shuffled by `seed`.

    So are the prompts, so that a run that is ended early has seen some of every class. `variants` by RTT,
    `kinds` the class of each prompt.
    """
    rng = random.Random(seed)
    cells = []
    for repeat in range(repeats):
        for prompt, kind in rng.sample(list(enumerate(kinds)), len(kinds)):
            group = [
                Cell(variant, rtt_ms, kind, prompt, repeat)
                for rtt_ms, of_rtt in variants.items()
                for variant in of_rtt
            ]
            rng.shuffle(group)
            cells += group
    return cells
