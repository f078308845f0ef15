"""`ecdctl batch`: a file of prompts, answered many at a time, with results in the order of the prompts.

Owns both files' forms and how a run goes on where an earlier one stopped. What a prompt may ask for is the
edge's to say.

The prompts: one JSON value a line, a text or an object of arguments of `run` (docs/PROTOCOL.md, section 11),
with at least `prompt`. The results: one object a line, `line` (the prompt's line, from 1), `request` (the
arguments as they were sent), and `result` or `error` (`code`, `message`).
"""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click

from ecd.client import Client
from ecd.control import ControlType
from ecd.errors import BadRequest, Code, EcdError, ProtocolError, RemoteError
from ecd.results_file import append, results_file
from ecd.wire.frames import encode_frame

# Failures of this moment and not of the prompt: they end the batch, and the prompt is asked again next time.
PASSING = frozenset({Code.BUSY, Code.DRAINING, Code.TIMEOUT, Code.CANCELLED, Code.UNAVAILABLE})

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of the file: the number of its line, and the arguments of `run`."""

    line: int
    request: dict[str, Any]


def read_prompts(text: str, defaults: Mapping[str, Any]) -> list[Prompt]:
    """The prompts of a file; empty lines are skipped. A line's arguments go over `defaults`.

    Raises BadRequest that names the line.
    """
    prompts = []
    # Not splitlines: JSON may hold other line ends of Unicode as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            given = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as e:
            raise BadRequest(f"line {number} is not JSON: {e}") from None
        match given:
            case str():
                given = {"prompt": given}
            case {"prompt": str() | list()}:
                pass
            case _:
                raise BadRequest(f"line {number} is neither a text nor an object with a `prompt`")
        # As a results file tells it, so that the two can be compared.
        request = json.loads(json.dumps({**defaults, **given}))
        try:
            encode_frame([ControlType.CALL, number, "run", request])
        except (ProtocolError, ValueError) as e:
            raise BadRequest(f"line {number} cannot be sent: {e}") from None
        prompts.append(Prompt(number, request))
    return prompts


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a results file has: results, how many of them are errors, and the bytes that all of them take."""

    results: int = 0
    refused: int = 0
    length: int = 0


def kept(data: bytes, prompts: Sequence[Prompt]) -> Kept:
    """What a results file keeps: all but a torn last line.

    Raises BadRequest when these are results of other prompts or settings.
    """
    length = data.rfind(b"\n") + 1
    lines = data[:length].split(b"\n")[:-1]
    refused = 0
    for number, (line, prompt) in enumerate(zip_longest(lines, prompts[: len(lines)]), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            raise BadRequest(f"line {number} is not JSON, so this is not a file of results") from None
        match record:
            case {"line": at, "request": request} if prompt == Prompt(at, request):
                refused += "error" in record
            case _:
                raise BadRequest(
                    f"line {number} is not the result of prompt {number} with these options; use those of "
                    "the first run, or another --output"
                )
    return Kept(len(lines), refused, length)


@dataclass(slots=True)
class InOrder:
    """Puts what comes in any order into the order of its numbers, from `due` on."""

    due: int = 0
    _early: dict[int, Record] = field(default_factory=dict)

    def add(self, number: int, record: Record) -> Iterator[Record]:
        """Takes a record; gives those whose turn it is now."""
        self._early[number] = record
        while self.due in self._early:
            yield self._early.pop(self.due)
            self.due += 1


def run_batch(socket: Path, prompts: Sequence[Prompt], path: Path, concurrency: int) -> int:
    """Answers the prompts whose results are not in `path` yet; how many of all were refused.

    A bar on stderr shows how far it is. Raises EcdError or KeyboardInterrupt, with the results so far in the
    file.
    """
    with _results_file(path, prompts) as (file, before):
        order, refused = InOrder(), before.refused
        left = prompts[before.results :]
        label = f"{before.results} of {len(prompts)} there already" if before.results else "answering"

        def on_record(index: int, record: Record) -> None:
            nonlocal refused
            for due in order.add(index, record):
                append(file, json.dumps(due, ensure_ascii=False).encode())
                refused += "error" in due
            bar.update(1)

        try:
            with click.progressbar(length=len(left), label=label, show_pos=True, file=sys.stderr) as bar:
                asyncio.run(answer_all(socket, left, concurrency, on_record))
        finally:
            there = before.results + order.due
            if there < len(prompts):
                note = f"{there} of {len(prompts)} results are in {path}; the same command goes on from there"
                click.echo(note, err=True)
    return refused


@contextmanager
def _results_file(path: Path, prompts: Sequence[Prompt]) -> Iterator[tuple[FileIO, Kept]]:
    """The file to append results to, and what it has; a torn last line is gone from it.

    Raises BadRequest when it cannot be opened, is another batch's, or is being written by one.
    """
    with results_file(path, "batch", "--output") as file:
        try:
            before = kept(path.read_bytes(), prompts)
        except BadRequest as e:
            raise BadRequest(f"{path}: {e}") from None
        file.truncate(before.length)
        yield file, before


async def answer_all(
    socket: Path, prompts: Sequence[Prompt], concurrency: int, on_record: Callable[[int, Record], None]
) -> None:
    """Asks all prompts, `concurrency` at a time; `on_record` gets each one's index and record.

    Raises EcdError, and ends what runs, when it is the daemon that cannot go on.
    """
    waiting = iter(enumerate(prompts))
    failure: EcdError | None = None
    async with Client(socket) as client:

        async def work() -> None:
            for index, prompt in waiting:
                on_record(index, await _record(client, prompt))

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(concurrency, len(prompts))):
                    workers.create_task(work())
        except* EcdError as errors:
            (failure, *_) = (e for e in errors.exceptions if isinstance(e, EcdError))
    if failure is not None:
        raise failure


async def _record(client: Client, prompt: Prompt) -> Record:
    told = {"line": prompt.line, "request": prompt.request}
    try:
        return {**told, "result": await client.call("run", **prompt.request)}
    except RemoteError as e:
        if e.code in PASSING:
            raise
        return {**told, "error": {"code": e.code.name.lower(), "message": str(e)}}
