"""What pure state machines were told and what they answered: one ring of events for a whole daemon.

Owns the ring, how a machine's methods are noted in it, and the form in which entries leave. A machine stays
pure: an entry refers to values that do not change, and is put into words when somebody asks. Where a machine
looks at what it shares with others, what it heard there is noted too (`hear`), so that it can be told the
same again without them; `replay` does.
"""

import functools
import inspect
import json
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from types import GenericAlias
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from ecd.errors import BadRequest, EcdError

# Events kept for all sessions of a daemon, about 20 MB. One with token ids counts once more for so many of
# them, which take as much memory.
RING_EVENTS, IDS_PER_EVENT = 1 << 15, 16
BEGIN = "beginning"
# In the metadata of a field that is not put into words: it only refers to what other events tell.
UNTOLD = {"untold": True}
IN_BASE64 = ConfigDict(val_json_bytes="base64")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


# Arguments as they were given: names of those by position, "" for one that is not told; these; those by name.
Given = tuple[Sequence[str], tuple[Any, ...], Mapping[str, Any]]


class Entry(NamedTuple):
    """An event of a session at `at` (seconds): its arguments, what was heard in it, what came of it."""

    session: int
    at: float
    event: str
    given: Given
    heard: Sequence[Any]
    outcome: Any
    weight: int

    def to_map(self) -> dict[str, Any]:
        """In JSON's types."""
        names, args, kwargs = self.given
        told = {name: value for name, value in zip(names, args, strict=False) if name} | dict(kwargs)
        return {
            "at": self.at,
            "event": self.event,
            "args": {name: _plain(value) for name, value in told.items()},
            "heard": list(self.heard),
            "outcome": words(self.outcome),
        }


class Ring:
    """The newest events of all sessions, weighing `size` in all; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float], size: int = RING_EVENTS):
        self._clock = clock
        self._size = size
        self._weight = 0
        # Entries as plain tuples, which are made faster: there are several for each token.
        self._entries: deque[tuple[Any, ...]] = deque()

    def add(
        self,
        session: int,
        event: str,
        given: Given,
        heard: Sequence[Any],
        outcome: Any,
        ids: int,
    ) -> None:
        """One more event, that holds so many token ids; the oldest give way to it."""
        weight = 1 + ids // IDS_PER_EVENT
        self._entries.append((session, self._clock(), event, given, heard, outcome, weight))
        self._weight += weight
        while self._weight > self._size:
            self._weight -= self._entries.popleft()[-1]

    def entries(self, session: int) -> list[Entry]:
        """What is still there of a session, oldest first; it is whole if it starts with BEGIN."""
        return [Entry(*entry) for entry in self._entries if entry[0] == session]


class Hearing(Protocol):
    """Where a machine's events go. `inside`: an event is under way."""

    inside: bool

    def hear(self, value: T) -> T:
        """What was heard of shared state: `value`, or what it was when this was noted."""
        ...

    def note(self, event: str, given: Given, outcome: Any, ids: int) -> None:
        """An event is over, that holds so many token ids."""
        ...

    def over(self) -> None:
        """An event is over, noted or not."""
        ...


class Journal:
    """Notes one session's events in a ring."""

    def __init__(self, ring: Ring, session: int):
        self.inside = False
        self._ring = ring
        self._session = session
        self._heard: list[Any] = []

    def hear(self, value: T) -> T:
        """Notes it; what is looked at between events decides nothing."""
        if self.inside:
            self._heard.append(value)
        return value

    def note(self, event: str, given: Given, outcome: Any, ids: int) -> None:
        """Notes an event and what was heard in it."""
        self._ring.add(self._session, event, given, tuple(self._heard), outcome, ids)

    def begin(self, told: Mapping[str, Any], ids: int) -> None:
        """Notes what a machine begins with, before its events."""
        self.note(BEGIN, ((), (), told), None, ids)

    def over(self) -> None:
        """Forgets what was heard."""
        self.inside = False
        if self._heard:
            self._heard.clear()


class _Journaled(Protocol):
    journal: Hearing | None


M = TypeVar("M", bound=_Journaled)


def stimulus(
    *,
    polled: bool = False,
    untold: Mapping[str, str] | None = None,
    ids: Callable[..., int] | None = None,
) -> Callable[[Callable[Concatenate[M, P], R]], Callable[Concatenate[M, P], R]]:
    """A method of a state machine that is noted in the machine's `journal`, if it has one.

    What it calls is not noted. `polled`: asked again and again, and noted only when it has an answer, since
    without one it changes nothing. `untold`: a parameter, given by position, that is what another event last
    brought, and which.
    `ids`: how many token ids an event holds, where that may be many.
    """
    left_out = untold or {}

    def decorate(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
        event = method.__name__
        parameters = tuple(inspect.signature(method).parameters)[1:]
        names = tuple("" if name in left_out else name for name in parameters)

        @functools.wraps(method)
        def noted(self: M, /, *args: P.args, **kwargs: P.kwargs) -> R:
            journal = self.journal
            if journal is None or journal.inside:
                return method(self, *args, **kwargs)
            journal.inside = True
            held = ids(self, *args, **kwargs) if ids else 0
            try:
                outcome = method(self, *args, **kwargs)
                if outcome or not polled:
                    journal.note(event, (names, args, kwargs), outcome, held)
            except EcdError as e:
                journal.note(event, (names, args, kwargs), e, held)
                raise
            finally:
                journal.over()
            return outcome

        noted.untold = left_out  # type: ignore[attr-defined]
        return noted

    return decorate


# -- in words


def _plain(value: Any) -> Any:
    """As `arguments` reads it."""
    return to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="constants")


def words(value: Any) -> Any:
    """An outcome in JSON's types, for comparing and for reading: with the names of classes and of members."""
    match value:
        case EcdError():
            return {"error": value.code.name, "message": str(value)}
        case Enum():
            return value.name
        case bytes():
            return b64encode(value).decode()
        case list() | tuple() | frozenset():
            return [words(each) for each in value]
        case dict():
            return {str(key): words(each) for key, each in value.items()}
        case _ if is_dataclass(value):
            told = [each.name for each in fields(value) if "untold" not in each.metadata]
            return {type(value).__name__: {name: words(getattr(value, name)) for name in told}}
        case _:
            return value


def arguments(method: Callable[..., Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What `Entry.to_map` told, as a method takes it. Raises BadRequest for what it does not take."""
    hints = get_type_hints(method)
    hints.pop("return", None)
    if set(told) - set(hints):
        raise BadRequest(f"{method.__name__} takes no {', '.join(sorted(set(told) - set(hints)))}")
    taken = {}
    for name, value in told.items():
        # In a tuple, since a dataclass by itself would not heed the settings.
        wrapped: Any = GenericAlias(tuple, (hints[name],))
        adapter = TypeAdapter(wrapped, config=IN_BASE64)
        try:
            (taken[name],) = adapter.validate_json(json.dumps([value]))
        except ValidationError as e:
            raise BadRequest(f"{name} of {method.__name__} is not what it takes: {e}") from None
    return taken


# -- again


@dataclass(frozen=True, slots=True)
class Difference:
    """The first event, counted from 0, whose outcome is not the one in the trace."""

    number: int
    event: str
    recorded: Any
    replayed: Any


class Retelling:
    """In a journal's place: says again what was heard in each event."""

    def __init__(self) -> None:
        self.inside = False
        self.heard: deque[Any] = deque()

    def hear(self, value: T) -> T:
        """What was heard then. Raises BadRequest when less was."""
        if not self.inside:
            return value
        if not self.heard:
            raise BadRequest("it asked for more than it had asked for then")
        heard: T = self.heard.popleft()
        return heard

    def note(self, event: str, given: Given, outcome: Any, ids: int) -> None:
        """Its caller compares."""

    def over(self) -> None:
        """The next event may follow."""
        self.inside = False


def replay(machine: Any, retelling: Retelling, entries: Iterable[Mapping[str, Any]]) -> Difference | None:
    """Tells a machine, just begun, the events behind BEGIN; where it first answers otherwise, None: nowhere.

    Raises BadRequest for what is no trace of this machine.
    """
    brought: dict[str, Any] = {}
    for number, entry in enumerate(entries, 1):
        event = str(entry.get("event"))
        method = getattr(type(machine), event, None)
        if method is None or not hasattr(method, "untold"):
            raise BadRequest(f"event {number}: {event!r:.40} is none of {type(machine).__name__}'s")
        try:
            given = arguments(method, entry["args"])
            given |= {name: brought[other] for name, other in method.untold.items()}
            retelling.heard = deque(entry["heard"])
            recorded = entry["outcome"]
        except (KeyError, TypeError) as e:
            raise BadRequest(f"event {number} is no entry of a trace: {e}") from None
        try:
            brought[event] = method(machine, **given)
            replayed = words(brought[event])
        except EcdError as e:
            replayed = words(e)
        except Exception as e:
            # What was noted cannot have done that: the machine, or the trace, is another.
            replayed = {"raised": repr(e)}
        if replayed != recorded or retelling.heard:
            return Difference(number, event, recorded, replayed)
    return None
