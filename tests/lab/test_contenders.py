"""Other programs that answer: started, asked, read and stopped. A script stands in for llama.cpp's server."""

import stat
import sys
from pathlib import Path

import pytest

from ecd.errors import DaemonError
from ecd.lab.contenders import Edge, LlamaServer, Question, find_server, running_server, tokens_of
from ecd.lab.runs import Mode, Variant

SERVER = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

arguments = sys.argv[1:]
checks = 0

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        global checks
        checks += 1
        self.send_response(503 if checks == 1 else 200)
        self.end_headers()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        for token in asked["prompt"][: asked["n_predict"]]:
            self.say({{"tokens": [token + 1], "stop": False}})
        self.say({{"tokens": [999] * ("--model-draft" in arguments), "stop": True}})

    def say(self, event):
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")

    def log_message(self, *args):
        pass

HTTPServer(("127.0.0.1", int(arguments[arguments.index("--port") + 1])), Handler).serve_forever()
"""
BROKEN = """#!{python}
print("no such model")
raise SystemExit(1)
"""
QUESTION = Question("code", "a prompt", (10, 20, 30, 40))


def program(folder: Path, text: str) -> Path:
    path = folder / "llama-server"
    path.write_text(text.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("draft", [None, Path("draft.gguf")])
def test_a_server_is_started_asked_and_stopped(tmp_path: Path, draft: Path | None) -> None:
    server = program(tmp_path, SERVER)
    with running_server(
        server, tmp_path, Path("target.gguf"), draft, threads=1, context_tokens=100, repack=True
    ) as contender:
        assert contender.name == ("llama-server with draft" if draft else "llama-server")
        reply = contender.answer(QUESTION, 3)
        assert reply.ids == (11, 21, 31)
        assert reply.reception.tokens == [1, 1, 1]
        assert reply.reception.at_s == sorted(reply.reception.at_s)
        port = contender.port
    with pytest.raises(OSError, match="refused"):
        LlamaServer("gone", port).answer(QUESTION, 3)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(DaemonError, match="llama-server did not start: no such model"),
        running_server(
            program(tmp_path, BROKEN), tmp_path, Path("t"), None, threads=1, context_tokens=100, repack=True
        ),
    ):
        pass


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        (b'data: {"tokens": [1, 2], "stop": false}\n', [1, 2]),
        (b'data: {"content": "", "stop": false}\n', []),
        (b'data: {"tokens": [3], "stop": true}\n', []),
        (b"data: [DONE]\n", []),
        (b": a comment\n", []),
        (b"\n", []),
    ],
)
def test_lines_of_the_stream(line: bytes, tokens: list[int]) -> None:
    assert tokens_of(line) == tokens


def test_a_server_on_the_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() is None
    assert find_server() != program(tmp_path, SERVER)
    assert find_server() == tmp_path / "llama-server"


def test_a_mode_of_ecd_is_named_by_what_it_does() -> None:
    assert Edge(Path("x"), Variant(Mode.ROUNDS, 4)).name == "ecd, mode rounds of 4"
    assert Edge(Path("x"), Variant(Mode.ECD)).name == "ecd, mode ecd"
