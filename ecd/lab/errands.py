"""A mixed load of clients that stream answers, some of which leave before the end.

Owns what each of them asks, how long it stays, and the two ways to ask it: through the HTTP gateway and on
the control socket. What is made of the times is not its business.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from ecd.client import Client
from ecd.errors import DaemonError
from ecd.lab.events import events_of
from ecd.lab.runs import Reception
from ecd.lab.trace import Recording, Trace

# Share of the clients that leave early, and the longest that one of them stays.
LEAVING = 0.25
STAYS_S = 2.0
# Shares of conversations, the others being completions of token ids, and of answers with drafts.
CHATS = 0.5
DRAFTED = 0.75


@dataclass(frozen=True, slots=True)
class Errand:
    """A recorded answer to ask for, its first `max_tokens`; `stays_s`: how long to wait, None to the end."""

    recording: Recording
    max_tokens: int
    chat: bool
    draft: bool
    stays_s: float | None


def errands(trace: Trace, rng: random.Random, leaving: float = LEAVING) -> Iterator[Errand]:
    """Errands without end, equal for equal seeds; `leaving` is the share of clients that leave early."""
    while True:
        recording = rng.choice(trace.recordings)
        yield Errand(
            recording,
            max_tokens=rng.randint(1, len(recording.target_ids)),
            chat=rng.random() < CHATS,
            draft=rng.random() < DRAFTED,
            stays_s=rng.uniform(0, STAYS_S) if rng.random() < leaving else None,
        )


class Way(Protocol):
    """How a client reaches the edge."""

    def pieces(self, errand: Errand) -> AsyncGenerator[int]:
        """The number of tokens in each piece of the answer, when it comes; ending it early cancels.

        Raises EcdError, OSError or EOFError.
        """
        ...


@dataclass(frozen=True, slots=True)
class ThroughGateway:
    """Over HTTP, a new connection for each answer."""

    port: int

    async def pieces(self, errand: Errand) -> AsyncGenerator[int]:
        """Tokens in each server-sent event that has any."""
        recording = errand.recording
        path, prompt = (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": recording.prompt}]})
            if errand.chat
            else ("/v1/completions", {"prompt": recording.prompt_ids})
        )
        body = {
            **prompt,
            "temperature": recording.sampling.temperature,
            "seed": recording.sampling.seed,
            "max_tokens": errand.max_tokens,
            "stream": True,
            "ecd": {"draft": errand.draft},
        }
        async with aclosing(events_of("the gateway", self.port, path, body)) as events:
            async for event in events:
                if ids := event["ecd"]["ids"]:
                    yield len(ids)


@dataclass(frozen=True, slots=True)
class OnControlSocket:
    """With a client of the control socket, whose one connection stays."""

    client: Client

    async def pieces(self, errand: Errand) -> AsyncGenerator[int]:
        """Tokens in each event `text`."""
        recording = errand.recording
        arguments = {
            "temperature": recording.sampling.temperature,
            "seed": recording.sampling.seed,
            "max_tokens": errand.max_tokens,
            "draft": errand.draft,
        }
        prompt = recording.prompt if errand.chat else recording.prompt_ids
        async with aclosing(self.client.stream(prompt, **arguments)) as events:
            async for event in events:
                if event["event"] == "text":
                    yield len(event["ids"])


@dataclass(slots=True)
class Visits:
    """What clients saw: arrivals of each answer that began, and how many were complete or left behind."""

    receptions: list[Reception] = field(default_factory=list)
    complete: int = 0
    left: int = 0


async def run_errands(ways: Sequence[Way], each: Sequence[Iterator[Errand]], seconds: float) -> Visits:
    """A client on each way does one of its errands after the other, all for so many seconds.

    Then they leave whatever they are at. Raises EcdError when an answer fails.
    """
    visits = Visits()

    async def client(way: Way, own: Iterator[Errand]) -> None:
        for errand in own:
            await _visit(way, errand, visits)

    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for way, own in zip(ways, each, strict=True):
                group.create_task(client(way, own))
    except TimeoutError:
        pass
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return visits


async def _visit(way: Way, errand: Errand, visits: Visits) -> None:
    reception, started_s = Reception(), time.perf_counter()
    try:
        async with asyncio.timeout(errand.stays_s), aclosing(way.pieces(errand)) as pieces:
            async for tokens in pieces:
                if not reception.at_s:
                    visits.receptions.append(reception)
                reception.text(time.perf_counter() - started_s, tokens)
        visits.complete += 1
    except TimeoutError:
        visits.left += 1
    except (OSError, EOFError) as e:
        raise DaemonError(f"the edge broke off an answer: {str(e) or type(e).__name__}") from e
