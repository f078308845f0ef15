"""Which KV cells of the target hold which text: those of running sessions, and those of texts that are over.

Owns whose cells a new session gets, and what of its text need not be evaluated because it is held already: in
the cells that it gets, in another session's, in memory or on a disk. Only what is the same bit for bit is
taken over, so a session computes what it would compute alone. Runs in the engine thread.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ecd.cloud.verifier import Work
from ecd.config import KvCache
from ecd.engine.llama import LlamaContext, Segment
from ecd.engine.packing import PROMPT_CHUNK_TOKENS, whole_chunks
from ecd.engine.prefix_cache import EMPTY, WORTH_TOKENS, State, Text, Tokens, Wanted
from ecd.engine.saved_states import SavedStates
from ecd.errors import EngineError

log = logging.getLogger(__name__)

_NOTHING = np.empty(0, np.int32)


@dataclass(slots=True)
class Place:
    """A session's sequence of cells: the first `cached` of its `tokens` are in it, `reused` from the start.

    `prompt`: the same tokens as far as they are prompt. `tenant`: whose they are. `unread`: from where on the
    tokens that it began with have still to be read, and where those end.
    """

    number: int
    tokens: Sequence[int]
    prompt: Tokens
    tenant: str
    reused: int
    cached: int
    unread: tuple[int, int]

    @property
    def read(self) -> Text:
        """What the cells hold of the prompt."""
        prompt_len = len(self.prompt)
        solid = whole_chunks(prompt_len, self.cached)
        return Text(self.prompt[: self.cached], prompt_len, solid, self.tenant)

    def over(self) -> Text:
        """What the cells hold when the session ends."""
        held = np.asarray(self.tokens[: self.cached], np.int32)
        prompt_len = len(self.prompt)
        return Text(held, prompt_len, whole_chunks(prompt_len, min(self.cached, len(held))), self.tenant)


@dataclass(frozen=True, slots=True, eq=False)
class _Free:
    """A sequence that no session has: the text in its cells, and what of the text is no longer in them."""

    text: Text = EMPTY
    behind: Tokens = field(default_factory=lambda: _NOTHING)


@dataclass(slots=True)
class _Counts:
    """Since start; named as in `stats`."""

    cached_tokens: int = 0
    prefill_tokens: int = 0
    hits: int = 0
    prepared_tokens: int = 0


class Places:
    """The sequences of a context. `settings`: None to forget what is over."""

    def __init__(self, context: LlamaContext, count: int, settings: KvCache | None):
        self._context = context
        self._saved = None if settings is None else SavedStates(settings, context.fingerprint)
        self._places: dict[int, Place] = {}
        # The one that has been free for longest first.
        self._free: dict[int, _Free] = {number: _Free() for number in range(count)}
        self._counts = _Counts()

    def __getitem__(self, key: int) -> Place:
        """The place of a session that has begun."""
        return self._places[key]

    def begin(self, work: Work) -> None:
        """Gives a session its place, unless it has one."""
        place = self._places.get(work.key)
        if place is not None:
            # A step that only looks at a part of the text brings a copy of it.
            if len(work.tokens) >= len(place.tokens):
                place.tokens = work.tokens
            return
        tokens = np.asarray(work.tokens, np.int32)
        wanted = Wanted(tokens, work.prompt_len, PROMPT_CHUNK_TOKENS, work.tenant)
        if self._saved is None or work.fresh:
            number, held = self._vacate(next(iter(self._free)), wanted), 0
        else:
            number, held = self._find(wanted, self._saved)
        self._context.truncate(number, held)
        if held and not self._context.holds(number, held):
            self._context.truncate(number, 0)
            held = 0
        prompt = tokens[: work.prompt_len]
        unread = held, len(tokens)
        self._places[work.key] = Place(number, work.tokens, prompt, work.tenant, held, held, unread)
        self._counts.cached_tokens += held
        self._counts.hits += held > 0

    def read(self, key: int, cached: int) -> None:
        """The cells hold the session's first `cached` tokens from here on."""
        place = self._places[key]
        place.cached = cached
        start, end = place.unread
        if (upto := min(cached, end)) > start:
            self._counts.prefill_tokens += upto - start
            place.unread = upto, end

    def end(self, key: int) -> None:
        """The session is over; what its cells hold stays until they are needed."""
        place = self._places.pop(key, None)
        if place is None:
            return
        text = EMPTY if self._saved is None else place.over()
        self._context.truncate(place.number, len(text.tokens))
        if not self._context.holds(place.number, len(text.tokens)):
            self._context.truncate(place.number, 0)
            text = EMPTY
        self._free[place.number] = _Free(text)

    def prepare(self, stop: Callable[[], bool]) -> bool:
        """Evaluates one more chunk of a text that is over as a prompt's; False when none has one left.

        It gives up when `stop` says so.

        The cells of an answer were computed in pieces as it came, which a prompt with that answer in it must
        not use.
        """
        for number, free in reversed(self._free.items()):
            text = free.text
            rest = np.concatenate((text.tokens[text.solid :], free.behind))
            if len(rest) < PROMPT_CHUNK_TOKENS:
                continue
            end = text.solid + PROMPT_CHUNK_TOKENS
            tokens = np.concatenate((text.tokens[: text.solid], rest[:PROMPT_CHUNK_TOKENS]))
            chunk = Segment(number, text.solid, tokens[text.solid :].tolist(), 0)
            try:
                done = self._context.decode_unless(stop, chunk)
            except EngineError as e:
                log.warning("a text that is over could not be read again and is forgotten: %s", e)
                self._context.truncate(number, 0)
                self._free[number] = _Free()
                return True
            if done:
                self._free[number] = _Free(Text(tokens, 0, end, text.tenant), rest[PROMPT_CHUNK_TOKENS:])
                self._counts.prepared_tokens += PROMPT_CHUNK_TOKENS
            else:
                kept = Text(tokens[: text.solid], 0, text.solid, text.tenant)
                self._free[number] = _Free(kept, rest)
            return True
        return False

    def stats(self) -> dict[str, int]:
        """Cells that sessions use, and what was found of texts that are over. Any thread may ask."""
        # A copy, since the engine thread may add to it or take away.
        counts, places = self._counts, list(self._places.values())
        return {
            "kv_tokens": sum(place.cached for place in places),
            "cached_tokens": counts.cached_tokens,
            "prefill_tokens": counts.prefill_tokens,
            "hits": counts.hits,
            "prepared_tokens": counts.prepared_tokens,
            **({} if self._saved is None else self._saved.stats()),
        }

    def close(self) -> None:
        """Saves what is to survive a restart."""
        if self._saved is not None:
            held = ((free.text, partial(self._context.save, number)) for number, free in self._free.items())
            self._saved.close(held)

    def _find(self, wanted: Wanted, saved: SavedStates) -> tuple[int, int]:
        """A free sequence that holds the beginning of it as far as anything does, and how many tokens."""
        number = max(self._free, key=lambda number: wanted.held_by(self._free[number].text))
        held = wanted.held_by(self._free[number].text)
        running = max(self._places.values(), key=lambda place: wanted.held_by(place.read), default=None)
        elsewhere: State | None = None
        if running is not None and (length := wanted.held_by(running.read)) >= held + WORTH_TOKENS:
            elsewhere, held = self._context.save(running.number), length
        if found := saved.find(wanted, held):
            held, elsewhere = found[0], found[1].state
        if elsewhere is None:
            return self._vacate(number, wanted), held
        number = self._vacate(next(iter(self._free)), wanted)
        return number, held if self._context.load(number, elsewhere) else 0

    def _vacate(self, number: int, wanted: Wanted) -> int:
        """Takes a free sequence; its text is saved unless `wanted` goes on from it."""
        text = self._free.pop(number).text
        if self._saved is not None and len(text.tokens) - wanted.common(text) >= WORTH_TOKENS:
            self._saved.put(text, partial(self._context.save, number))
        return number
