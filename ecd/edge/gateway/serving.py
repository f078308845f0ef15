"""One HTTP request's answers, from their start until the client has them all or is gone.

Owns server-sent events and what becomes of answers whose client goes away: they are cancelled, at the edge
and in the cloud. Knows no paths and no parameters.
"""

import asyncio
import contextlib
import json
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from ecd.edge.answer import Answer, Chunk
from ecd.edge.answering import answering, arrivals
from ecd.edge.gateway.asking import Choice
from ecd.edge.gateway.errors import error_payload
from ecd.edge.gateway.replies import Head, Reply, Spelling, summary, timeline_told, tokens_told, usage
from ecd.edge.results import result_of
from ecd.edge.service import EdgeService
from ecd.errors import EcdError
from ecd.prompt import Tokenizer
from ecd.wire.messages import Finish

EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # For nginx, which would collect events before it hands them on.
    (b"x-accel-buffering", b"no"),
]

T = TypeVar("T")


@dataclass(slots=True)
class Answering:
    """The response to a request for `choices`, the same number for each of `prompts`; an ASGI application.

    An EcdError before the first byte is raised, for whoever knows its status; one that comes later is told in
    the stream.
    """

    service: EdgeService
    tokenizer: Tokenizer
    head: Head
    choices: Sequence[Choice]
    prompts: int
    stream: bool
    include_usage: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starts the answers and sends what comes of them."""
        with contextlib.ExitStack() as running:
            asked = [
                (
                    running.enter_context(answering(self.service, choice.request)),
                    Reply(self.head.dialect, index, Spelling(self.tokenizer), choice.echo),
                )
                for index, choice in enumerate(self.choices)
            ]
            if self.stream:
                await _unless_gone(receive, self._events(asked, Events(send)))
                return
            whole = await _unless_gone(receive, self._whole(asked))
            if whole is not None:
                await JSONResponse(whole)(scope, receive, send)

    async def _whole(self, asked: list[tuple[Answer, Reply]]) -> dict[str, Any]:
        finishes = await _all_of([_finish(answer) for answer, _ in asked])
        results = [self._result(answer, finish) for (answer, _), finish in zip(asked, finishes, strict=True)]
        choices = []
        for (answer, reply), result in zip(asked, results, strict=True):
            told = None if answer.generation.request.logprobs is None else answer.generation.logprobs
            choices.append(reply.whole(result, told))
        return self.head.whole(choices, results, self.prompts)

    async def _events(self, asked: list[tuple[Answer, Reply]], events: "Events") -> None:
        try:
            results = await _all_of([self._tell(answer, reply, events) for answer, reply in asked])
            if self.include_usage:
                ecd = summary(results, tokens=False)
                await events.send(self.head.chunk([], usage=usage(results, self.prompts), ecd=ecd))
        except EcdError as e:
            if not events.begun:
                raise
            await events.send(error_payload(e))
        await events.end()

    async def _tell(self, answer: Answer, reply: Reply, events: "Events") -> dict[str, Any]:
        """Sends one answer's chunks; its result."""
        # OpenAI's chunks have an empty place for the usage that follows.
        more: dict[str, Any] = {"usage": None} if self.include_usage else {}
        finish = Finish.NONE
        async for arrival in arrivals(answer):
            match arrival:
                case Chunk():
                    ecd = tokens_told(arrival) | _timeline(answer)
                    await events.send(self.head.chunk([reply.piece(arrival)], ecd=ecd, **more))
                case Finish():
                    finish = arrival
        result = self._result(answer, finish)
        ecd = summary([result], tokens=False) | _timeline(answer)
        await events.send(self.head.chunk([reply.end(result["finish_reason"])], ecd=ecd, **more))
        return result

    def _result(self, answer: Answer, finish: Finish) -> dict[str, Any]:
        return result_of(answer, finish, self.service.cloud_model)


@dataclass(slots=True)
class Events:
    """Server-sent events; the headers go with the first one, so that what fails before has a status."""

    _send: Send
    begun: bool = False

    async def send(self, payload: dict[str, Any]) -> None:
        """One event."""
        await self._write(json.dumps(payload, ensure_ascii=False, separators=(",", ":")))

    async def end(self) -> None:
        """The mark behind the last event, and the end of the response."""
        await self._write("[DONE]")
        await self._send({"type": "http.response.body", "body": b""})

    async def _write(self, data: str) -> None:
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
        body = b"data: " + data.encode() + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


def _timeline(answer: Answer) -> dict[str, Any]:
    return {} if answer.timeline is None else timeline_told(answer.timeline.drain(), answer.live())


async def _finish(answer: Answer) -> Finish:
    """Why the answer ended, when it has; its chunks are passed over. Raises what it failed with."""
    finish = Finish.NONE
    async for arrival in arrivals(answer):
        if isinstance(arrival, Finish):
            finish = arrival
    return finish


async def _all_of(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of them return. The first that fails ends the others; its EcdError is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
    except* EcdError as failures:
        failure = failures.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise failure


async def _unless_gone(receive: Receive, job: Coroutine[Any, Any, T]) -> T | None:
    """What the job returns; None when the client went away before, and the job was cancelled."""
    working, gone = asyncio.create_task(job), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
