"""Servers of one target that many clients ask at once: vLLM's own with its OpenAI interface, and ecd.

Owns how vLLM's server is started and how each one's stream is read. Who is asked when, and what comes of it,
is not its business. Answers are greedy, and end where the model ends them.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ecd.client import Client
from ecd.errors import DaemonError
from ecd.lab.contenders import Question, Reply, free_port, running_program
from ecd.lab.events import events_of
from ecd.lab.runs import Reception


class Server(Protocol):
    """Something that answers any number of questions at once."""

    @property
    def name(self) -> str:
        """As the table shows it."""
        ...

    async def answer(self, question: Question, max_tokens: int) -> Reply:
        """Answers greedily. Raises EcdError."""
        ...


@dataclass(frozen=True, slots=True)
class EcdServer:
    """A running edge, with drafts or without; paced as its own settings say."""

    client: Client
    drafts: bool

    @property
    def name(self) -> str:
        """Whether there are drafts."""
        return f"ecd, drafts {'on' if self.drafts else 'off'}"

    async def question(self, kind: str, prompt: str) -> Question:
        """A prompt with the ids that the edge makes of it. Raises EcdError."""
        result = await self.client.call("run", prompt=prompt, max_tokens=1, draft=self.drafts)
        return Question(kind, prompt, tuple(result["prompt_token_ids"]))

    async def answer(self, question: Question, max_tokens: int) -> Reply:
        """Over the control socket. Raises EcdError."""
        reception, ids, started_s = Reception(), tuple[int, ...](), time.perf_counter()
        stream = self.client.stream(question.text, max_tokens=max_tokens, draft=self.drafts)
        async with aclosing(stream) as events:
            async for event in events:
                match event["event"]:
                    case "text":
                        reception.text(time.perf_counter() - started_s, len(event["ids"]))
                    case "done":
                        ids = tuple(event["token_ids"])
        return Reply(ids, reception)


@dataclass(frozen=True, slots=True)
class VllmServer:
    """vLLM's own server, asked over HTTP; see `running_vllm`."""

    port: int
    name: str = "vLLM's server"

    async def answer(self, question: Question, max_tokens: int) -> Reply:
        """A stream of /v1/completions with token ids in and out. Raises DaemonError."""
        body = {
            "prompt": question.ids,
            "max_tokens": max_tokens,
            "temperature": 0,
            # Else what the model's generation_config.json says of it.
            "repetition_penalty": 1,
            "stream": True,
            "return_token_ids": True,
        }
        reception, ids, started_s = Reception(), list[int](), time.perf_counter()
        try:
            async with aclosing(events_of("vLLM's server", self.port, "/v1/completions", body)) as events:
                async for event in events:
                    tokens = tokens_of(event)
                    if tokens:
                        reception.text(time.perf_counter() - started_s, len(tokens))
                        ids += tokens
        except (OSError, EOFError) as e:
            raise DaemonError(f"vLLM's server broke off an answer: {str(e) or type(e).__name__}") from e
        return Reply(tuple(ids), reception)


def tokens_of(event: Mapping[str, Any]) -> list[int]:
    """The token ids in an event of a stream of completions."""
    return [token for choice in event["choices"] for token in choice["token_ids"] or ()]


def engine_flags(engine_args: Mapping[str, Any]) -> list[str]:
    """vLLM's engine arguments, by name, as its command line takes them."""
    flags = []
    for name, value in engine_args.items():
        option = name.replace("_", "-")
        match value:
            case bool():
                flags.append(f"--{option}" if value else f"--no-{option}")
            case str():
                flags += [f"--{option}", value]
            case _:
                flags += [f"--{option}", json.dumps(value)]
    return flags


@contextlib.contextmanager
def running_vllm(folder: Path, model: str, engine_args: Mapping[str, Any]) -> Iterator[VllmServer]:
    """vLLM's server while the context lasts, as it comes but for `engine_args`.

    Raises DaemonError with the log's end if it does not start.
    """
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", "127.0.0.1", "--port", str(port), *engine_flags(engine_args)]
    with running_program("vllm-server", command, port, folder):
        yield VllmServer(port)
