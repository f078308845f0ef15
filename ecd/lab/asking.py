"""Asking a running edge, and reading the clock when its text arrives.

Owns one request from a client's side. Knows neither what is asked nor what is made of the times.
"""

import time
from pathlib import Path
from typing import Any

from ecd.client import BlockingClient
from ecd.errors import DaemonError
from ecd.lab.runs import Reception


def ask(socket: Path, prompt: str, **settings: Any) -> tuple[Reception, dict[str, Any]]:
    """When the answer came, at least one piece of it, and its `done`; `settings` are those of `run`.

    Raises EcdError or OSError when there is no answer.
    """
    reception, result = Reception(), dict[str, Any]()
    with BlockingClient(socket) as client:
        started_s = time.perf_counter()
        for event in client.stream(prompt, **settings):
            match event["event"]:
                case "text":
                    reception.text(time.perf_counter() - started_s, len(event["ids"]))
                case "done":
                    result = event
    if not reception.at_s:
        raise DaemonError("the answer had no text")
    return reception, result
