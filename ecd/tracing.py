"""Traces: a session's events as they leave a daemon, as a file of lines, and told again.

Owns the call of the control socket and the form of the file. What the events mean is the machines'.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ecd import __version__
from ecd.control import Notify
from ecd.errors import BadRequest
from ecd.journal import BEGIN, Difference, Ring

# The machines that there are traces of: an edge's and a cloud's.
GENERATION, SESSION = "generation", "session"


async def tell_trace(ring: Ring, machine: str, args: Mapping[str, Any], emit: Notify) -> dict[str, Any]:
    """The call `trace`: an event for each that is still there of session `id`. Raises BadRequest for none."""
    number = args.get("id")
    if type(number) is not int:
        raise BadRequest("trace needs the session's number as `id`")
    entries = ring.entries(number)
    if not entries:
        raise BadRequest(
            f"nothing is kept of session {number}; the log and `ecdctl sessions` have numbers, and only the "
            "newest events are kept"
        )
    for entry in entries:
        await emit(entry.to_map())
        # A long trace is not to hold up who talks with the daemon.
        await asyncio.sleep(0)
    whole = entries[0].event == BEGIN
    return {"machine": machine, "id": number, "ecd": __version__, "whole": whole, "events": len(entries)}


def lines(head: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A trace as a file: what the call returned, and then a line for each event."""
    return [json.dumps(each, ensure_ascii=False) for each in (head, *entries)]


def retrace(text: str) -> tuple[int, Difference | None]:
    """How many events a trace has, and where the machine, told them again, first answers otherwise.

    Raises BadRequest for what is no trace, or lacks its beginning.
    """
    try:
        head, *entries = [json.loads(line) for line in text.splitlines() if line.strip()]
        machine, whole, events = head["machine"], head["whole"], head["events"]
        beginning = entries[0]["args"], entries[0]["heard"], entries[0]["event"]
    except (ValueError, KeyError, TypeError, IndexError) as e:
        raise BadRequest(f"this is no trace of `ecdctl trace --json`: {e!r}") from None
    if not whole or beginning[2] != BEGIN:
        raise BadRequest("the beginning of this session was no longer kept; it cannot be told again without")
    if events != len(entries):
        raise BadRequest(f"the trace says that it has {events} events, and has {len(entries)}")
    # Not above: a machine imports this module's neighbours.
    match machine:
        case "generation":
            from ecd.edge.overheard import retrace as again
        case "session":
            from ecd.cloud.overheard import retrace as again
        case _:
            raise BadRequest(f"there is no machine {machine!r:.40}; is the trace of another release?")
    return events, again(entries)
