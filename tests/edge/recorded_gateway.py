"""A stand-in for the gateway that plays one made-up answer: the page meets every origin and every event.

What it streams has the shape of the gateway's: the events are the edge's own, told by `Timeline`.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ecd.edge.commands import Emit, Send
from ecd.edge.drafter import Context, DraftTask
from ecd.edge.playground import page
from ecd.edge.timeline import Timeline, as_map
from ecd.sampling import Guess, Sampling
from ecd.wire.messages import Draft, Origin, Tokens

WORDS = (
    "A palindrome reads the same both ways . Here is a function that says whether a word is one : \n\n"
    " def is_palindrome ( word ): \n     return word == word [::-1] \n\n It compares the word with its mirror"
    " image . Nothing else has to be looked at , and the empty word counts as one too ."
)
PROMPT_TOKENS = 20
# From here on the answer to "never end" says no more.
NEVER_ENDS_AT_S = 0.4
RTT_S, STEP_S, DRAFT_S = 0.04, 0.03, 0.006
# Of each forward: hints accepted, and those verified. An origin instead: a token without a forward.
STEPS: tuple[tuple[int, int] | Origin, ...] = (
    *((0, 0), (0, 0), (3, 3), (4, 4), (2, 5), (0, 0), (4, 4), (5, 5), (1, 4), (0, 0), (3, 3), (4, 6)),
    *(Origin.EDGE_CONFIDENT,) * 3,
    *((2, 2), (4, 4), (0, 0), (3, 4)),
    *(Origin.EDGE_OFFLINE,) * 3,
    *((4, 4), (5, 5), (2, 4), (3, 3)),
)


def pieces() -> list[str]:
    """The answer's tokens."""
    return [word if word.startswith(" ") else " " + word for word in WORDS.replace(" \n", "\n").split(" ")]


def chunks(draft: bool) -> Iterator[tuple[float, dict[str, Any]]]:
    """What is streamed: when, in seconds since the start, and the `ecd` object of the chunk."""
    words, done, at = pieces(), 0, RTT_S
    timeline, tally = Timeline(0.0, PROMPT_TOKENS), {"verified": 0, "accepted": 0, "target_forwards": 0}
    up = down = 0
    drafted_until = 0.02
    for step in STEPS if draft else ((0, 0),) * len(words):
        if done >= len(words):
            break
        asks = not isinstance(step, Origin)
        at += STEP_S if asks else DRAFT_S
        accepted, verified = step if isinstance(step, tuple) else (0, 0)
        base = PROMPT_TOKENS + done
        count = min(accepted + 1, len(words) - done)
        guesses = [Guess(done + i if i < accepted else -1, 1.0, "model") for i in range(verified)]
        if draft:
            for index in range(int((at - drafted_until) / DRAFT_S)):
                task = DraftTask(0, 0, Context([0] * base, base, (0,) * index), 0, base, Sampling(), 1, True)
                end = drafted_until + DRAFT_S
                timeline.drafted([task], [[Guess(0, 1.0, "model")]], drafted_until, end)
                drafted_until = end
                if index % 2:
                    hints = Draft(1, base, base + index - 1, (0, 0))
                    timeline.performed([Send(hints)], end)
                    up += 24
        ids = tuple(range(done, done + count))
        if isinstance(step, Origin):
            origins: tuple[Origin, ...] = (step,)
        else:
            accepted = min(accepted, count)
            origins = (Origin.DRAFT_ACCEPTED,) * accepted + (Origin.TARGET,) * (count - accepted)
            timeline.arrived(Tokens(1, base, ids, accepted, verified, int(STEP_S * 1e6)), guesses, RTT_S, at)
            tally["target_forwards"] += 1
            tally["verified"] += verified
            tally["accepted"] += accepted
            down += 30
        timeline.performed([Emit(ids, origins)], at)
        done += count
        yield (
            at,
            {
                "ids": ids,
                "origins": [origin.label for origin in origins],
                "pieces": words[done - count : done],
                "timeline": [as_map(event) for event in timeline.drain()],
                "live": tally
                | {
                    "ahead": 4 if draft else 0,
                    "wire_bytes_up": up,
                    "wire_bytes_down": down,
                    "rtt_ms": RTT_S * 1000,
                },
            },
        )


class _Handler(BaseHTTPRequestHandler):
    """`requests`: the bodies that came in."""

    requests: list[dict[str, Any]]

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        html, policy = page()
        match self.path:
            case "/":
                self._answer(html, "text/html; charset=utf-8", {"Content-Security-Policy": policy})
            case "/v1/models":
                self._json({"object": "list", "data": [{"id": "recorded", "object": "model"}]})
            case "/ecd/stats":
                link = {"state": "connected", "cloud": "192.0.2.7:9700", "rtt_ms": 40.0, "reason": None}
                told = {"link": link, "target_model": {"name": "target-7b"}, "draft_model": "draft-0.5b"}
                self._json({"status": told, "stats": {}})
            case _:
                self.send_error(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(body)
        asked = body["messages"][0]["content"]
        if asked == "refuse":
            self._json({"error": {"message": "the cloud refuses this edge", "type": "server_error"}}, 503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        began = time.monotonic()
        try:
            for at, ecd in chunks(body["ecd"]["draft"]):
                if asked == "never end" and at > NEVER_ENDS_AT_S:
                    self.connection.recv(1)  # until the client leaves
                    return
                time.sleep(max(0.0, began + at - time.monotonic()))
                self._event(
                    {"choices": [{"index": 0, "delta": {"content": "".join(ecd["pieces"])}}], "ecd": ecd}
                )
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "ecd": {"seed": 1}})
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _event(self, content: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")
        self.wfile.flush()

    def _json(self, content: dict[str, Any], status: int = 200) -> None:
        self._answer(json.dumps(content).encode(), "application/json", {}, status)

    def _answer(self, content: bytes, kind: str, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def recorded_gateway() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its address, and the requests that came in."""
    handler = type("Handler", (_Handler,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.requests  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
