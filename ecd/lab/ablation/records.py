"""What an ablation keeps of each conversation, and the file of it that a later run goes on from.

Owns the record of an answer, the order in which conversations are had, and which of them are still to come.
Knows no daemon and no statistics.
"""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ecd.errors import BadRequest
from ecd.results_file import append, results_file


@dataclass(frozen=True, slots=True)
class Asked:
    """One conversation to have: `conversation` is an index, `repeat` counts from 0."""

    condition: str
    repeat: int
    conversation: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn's answer; with an `error` the rest is empty.

    Times are the client's, in ms from the request on: `ttft_ms` to the first piece of text, `latency_ms` to
    the result. `decoded` tokens came in `decode_ms`, from the first piece on. `token_ids`: of the answer;
    `forwards` of the target for it, those after its end too. `verified` hints, of which `accepted` came true;
    `drafted` guesses, of which at most `most_ahead` lay beyond the committed text. `wire_bytes`: frames of
    this answer, both ways. Of the prompt, `cached_tokens` were held by the cloud and `prefill_tokens` read;
    likewise the draft's at the edge. `edge_tokens` were committed by the edge; the cloud compared `audited`
    of them, of which `audits_agreed` are its own choice too. `agreed`: tokens that are what the target would
    have said. `right`: whether the answer is right, None where that cannot be told.
    """

    error: str | None = None
    text: str = ""
    finish_reason: str = ""
    token_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0
    latency_ms: float = 0.0
    ttft_ms: float = 0.0
    decoded: int = 0
    decode_ms: float = 0.0
    forwards: int = 0
    drafted: int = 0
    most_ahead: int = 0
    verified: int = 0
    accepted: int = 0
    wire_bytes: int = 0
    prefill_tokens: int = 0
    cached_tokens: int = 0
    draft_prefill_tokens: int = 0
    draft_cached_tokens: int = 0
    edge_tokens: int = 0
    audited: int = 0
    audits_agreed: int = 0
    agreed: int | None = None
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A conversation that was had, with an answer for each of its turns."""

    asked: Asked
    answers: tuple[Answer, ...]


_EXCHANGE = TypeAdapter(Exchange)


def schedule(conditions: Sequence[str], conversations: int, repeat: int, seed: int) -> list[Asked]:
    """All of one repeat in order: each conversation under every condition, one after another.

    Conversations and, within each, conditions are shuffled by `seed`, so that a run that ends early has seen
    some of everything, and what the machine does meanwhile meets all conditions alike.
    """
    rng = random.Random(f"{seed} {repeat}")
    order = []
    for conversation in rng.sample(range(conversations), conversations):
        order += [
            Asked(condition, repeat, conversation) for condition in rng.sample(conditions, len(conditions))
        ]
    return order


def left(order: Iterable[Asked], had: Iterable[Exchange]) -> list[Asked]:
    """What is still to be asked, in its order."""
    done = {exchange.asked for exchange in had}
    return [asked for asked in order if asked not in done]


@dataclass(slots=True)
class Records:
    """The open file, and what it has; `add` puts an exchange into both."""

    file: FileIO
    exchanges: list[Exchange]

    def add(self, exchange: Exchange) -> None:
        """Keeps an exchange, whatever ends the program afterwards. Raises EcdError for a full disk."""
        append(self.file, _EXCHANGE.dump_json(exchange))
        self.exchanges.append(exchange)


@contextmanager
def open_records(path: Path, plan: dict[str, Any]) -> Iterator[Records]:
    """The file of what was had under this `plan`, made if it is not there; a torn last line is gone from it.

    Raises BadRequest when it is another plan's, no such file, or being written now.
    """
    # As the file tells it, so that the two can be compared.
    plan = json.loads(json.dumps(plan))
    with results_file(path, "run", "--out") as file:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        file.truncate(len(whole))
        head, *lines = whole.split(b"\n")[:-1] or [b""]
        if not head:
            append(file, json.dumps(plan).encode())
        elif different := _differences(head, plan):
            raise BadRequest(
                f"{path} has the answers of another run, by {different}; choose another --out, or ask for "
                "the same again to go on with it"
            )
        try:
            exchanges = [_EXCHANGE.validate_json(line) for line in lines]
        except ValidationError as e:
            raise BadRequest(f"{path} is damaged: {e.errors()[0]['msg']}; choose another --out") from None
        yield Records(file, exchanges)


def _differences(head: bytes, plan: dict[str, Any]) -> str:
    """The names of what is not as in the plan."""
    try:
        there = json.loads(head)
    except ValueError:
        there = None
    if not isinstance(there, dict):
        return "its form"
    names = [*plan, *(name for name in there if name not in plan)]
    missing = object()
    return ", ".join(name for name in names if there.get(name, missing) != plan.get(name, missing))
