"""A session whose events are noted, and one that is told them again.

Owns what a session has from outside, the bytes of tokens, as it hears of them: noted with each event, and
said again in a replay.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ecd.cloud.session import Session, Vocabulary
from ecd.journal import Difference, Hearing, Journal, Retelling, arguments, replay
from ecd.wire.messages import Open


def begun(journal: Journal, message: Open, vocabulary: Vocabulary, max_ahead: int, now: float) -> Session:
    """A session from its OPEN that notes its events. Raises BadRequest as `Session.of`."""
    journal.inside = True
    try:
        session = _session(journal, message, vocabulary, max_ahead, now)
        size, ends = vocabulary.size, vocabulary.end_of_generation
        told = {"message": message, "size": size, "ends": ends, "max_ahead": max_ahead, "now": now}
        journal.begin(told, len(message.prompt) + len(message.committed))
    finally:
        journal.over()
    return session


def _session(journal: Hearing, message: Open, vocabulary: Vocabulary, max_ahead: int, now: float) -> Session:
    overheard = Vocabulary(
        vocabulary.size, vocabulary.end_of_generation, _overheard(journal, vocabulary.piece)
    )
    session = Session.of(message, overheard, max_ahead, now)
    session.journal = journal
    return session


def _overheard(journal: Hearing, piece: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """The same, heard as text: a byte is a character, which JSON can carry."""
    return lambda token: journal.hear(piece(token).decode("latin-1")).encode("latin-1")


def retrace(entries: Sequence[Mapping[str, Any]]) -> Difference | None:
    """Where a session, told these events again, first answers otherwise. Raises BadRequest."""
    retelling = Retelling()

    def begin(message: Open, size: int, ends: frozenset[int], max_ahead: int, now: float) -> Session:
        return _session(retelling, message, Vocabulary(size, ends, lambda token: b""), max_ahead, now)

    retelling.inside = True
    retelling.heard.extend(entries[0]["heard"])
    session = begin(**arguments(begin, entries[0]["args"]))
    retelling.over()
    return replay(session, retelling, entries[1:])
