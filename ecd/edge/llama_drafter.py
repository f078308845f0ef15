"""The draft model on llama.cpp: one forward guesses the next token of every line that wants one.

Owns which KV cells hold which tokens of which line. Does not know which tokens are committed; what is kept of
texts that are over is `prefix_cache`'s.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ecd.config import KvCache
from ecd.edge.confidence import MAX_PROB, Confidence
from ecd.edge.drafter import DraftTask, Prefill
from ecd.edge.prefix_cache import EdgePrefixCache, InCells
from ecd.engine.kv_cells import KvCells
from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.engine.packing import PROMPT_CHUNK_TOKENS
from ecd.engine.prefix_cache import WORTH_TOKENS, Text, Tokens, Wanted
from ecd.errors import EngineError
from ecd.pages import Cells, Shape
from ecd.sampling import Guess, guess

log = logging.getLogger(__name__)

# The main line and two alternates of each generation; llama.cpp bears so many sequences in all.
BRANCHES = 3
MAX_SEQUENCES = 256
# Tokens of one forward, prompts and guesses together: what a guess may have to wait for.
BATCH_TOKENS = 128
# Cells for the tokens in which a slot's alternates differ from its main line.
ALTERNATE_TOKENS = 64


@dataclass(slots=True)
class _Held:
    """What a sequence's cells hold: the first `settled` tokens of its slot's committed text, and `rest`.

    Committed text stays, so what is settled is never compared again, however long it is.
    """

    settled: int = 0
    rest: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.settled + len(self.rest)

    def common(self, task: DraftTask) -> int:
        """How many of the task's tokens are held, from the first on."""
        wanted = task.context[self.settled : self.settled + len(self.rest)]
        same = _common(self.rest, wanted)
        settled = min(same, max(0, task.committed - self.settled))
        del self.rest[:settled]
        self.settled += settled
        return self.settled + same - settled

    def put(self, start: int, tokens: Sequence[int]) -> None:
        """The tokens from position `start` on are these from here on."""
        self.settled = min(self.settled, start)
        self.rest[start - self.settled :] = tokens

    def copy(self, length: int) -> "_Held":
        """The first `length` tokens of it, no fewer than are settled."""
        return _Held(self.settled, self.rest[: length - self.settled])


@dataclass(slots=True)
class _Slot:
    """A running text: its newest context, whose settled tokens stay, and what its beginning took to read.

    The beginning are the `begins_with` tokens that the model was first asked about; 0 while it was not asked.
    """

    context: Sequence[int]
    prefill: Prefill
    begins_with: int = 0

    def read(self, length: int) -> None:
        """The model has read up to there; a token of the beginning counts once."""
        new = min(length, self.begins_with) - self.prefill.cached - self.prefill.read
        if new > 0:
            self.prefill = replace(self.prefill, read=self.prefill.read + new)

    def took(self, length: int) -> None:
        """So many tokens are held without having been read here, but for those that were before."""
        self.prefill = replace(self.prefill, cached=max(self.prefill.cached, length - self.prefill.read))


class LlamaDrafter:
    """`Drafter` on a llama.cpp context with `context_tokens` cells for each of `slots` generations.

    `kv_cache`: what is kept of texts that are over; None for nothing. `confidence`: how sure a guess is said
    to be.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        slots: int,
        context_tokens: int,
        threads: int,
        kv_cache: KvCache | None = None,
        confidence: Confidence = MAX_PROB,
    ):
        self.slots = slots
        self._confidence = confidence
        self.branches = max(1, min(BRANCHES, MAX_SEQUENCES // slots))
        self.slot_tokens = min(context_tokens, model.context_train)
        self._batch_tokens = max(BATCH_TOKENS, slots * self.branches)
        self._context = LlamaContext(
            model,
            # Cells are shared by all sequences, so these are per sequence on average.
            n_ctx=-(-(self.slot_tokens + ALTERNATE_TOKENS) // self.branches),
            n_seq=slots * self.branches,
            n_batch=self._batch_tokens,
            threads=threads,
            exact=False,
        )
        self._held = [_Held() for _ in range(slots * self.branches)]
        self._running: dict[int, _Slot] = {}
        self._cache = None if kv_cache is None else EdgePrefixCache(self._context, kv_cache)
        self._cells: KvCells | None = None
        try:
            self._cells = KvCells(model, self._context)
        except EngineError as e:
            log.info("no pages of the draft model are taken or given: %s", e)

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        """One batch for all tasks that may run the model; those with most to read get what room is left."""
        starts = {index: self._start(task) for index, task in enumerate(tasks) if task.model}
        order = sorted(starts, key=lambda index: len(tasks[index].context) - starts[index])
        room, taken, segments = self._batch_tokens, [], []
        for index in order:
            task, start = tasks[index], starts[index]
            end = min(len(task.context), start + min(room, PROMPT_CHUNK_TOKENS))
            if end > start:
                whole = end == len(task.context)
                segments.append(Segment(self._sequence(task), start, task.context[start:end], int(whole)))
                taken.append(index)
                room -= end - start
        guesses: list[tuple[Guess, ...]] = [() for _ in tasks]
        decoded = self._context.decode(segments) if segments else []
        for index, segment, rows in zip(taken, segments, decoded, strict=True):
            task = tasks[index]
            self._held[segment.sequence].put(segment.start, segment.tokens)
            self._running[task.slot].read(segment.start + len(segment.tokens))
            if len(rows):
                guesses[index] = (
                    guess(
                        rows[0],
                        task.sampling,
                        len(task.context),
                        task.context,
                        task.prompt_len,
                        self._confidence.of,
                    ),
                )
        return guesses

    def release(self, slot: int) -> None:
        """Frees the slot's cells, but for those of its main line if that is to be kept."""
        main, running = slot * self.branches, self._running.pop(slot, None)
        if running is None:
            return
        text = None if self._cache is None else self._text(main, running)
        for sequence in range(main, main + self.branches):
            self._context.truncate(sequence, 0 if sequence > main or text is None else len(text.tokens))
            self._held[sequence] = _Held()
        if self._cache is not None and text is not None:
            self._cache.keep(InCells(main, text))

    def prefill(self, slot: int) -> Prefill:
        """Nothing while the model was not asked."""
        running = self._running.get(slot)
        return Prefill() if running is None else running.prefill

    def stats(self) -> dict[str, int]:
        """What is kept of texts that are over; nothing without a cache."""
        return {} if self._cache is None else self._cache.stats()

    def close(self) -> None:
        """Frees the KV cache; what survives a restart is written before."""
        if self._cache is not None:
            self._cache.close(self._in_cells())
        self._context.close()

    # -- `PageHolder`

    @property
    def shape(self) -> Shape | None:
        """What the cells are like; None where they cannot be taken or given."""
        return None if self._cells is None else self._cells.shape

    def held(self, slot: int) -> int:
        """Positions that the slot's main line holds."""
        return len(self._held[slot * self.branches])

    def take(self, slot: int, tokens: Sequence[int]) -> Cells | None:
        """The cells of as many of the tokens as the slot's main line holds; None for none."""
        held = self._held[slot * self.branches]
        length = held.settled + _common(held.rest, list(tokens[held.settled : len(held)]))
        if self._cells is None or not length:
            return None
        return self._cells.take(slot * self.branches, 0, min(length, len(tokens)))

    def put(self, slot: int, tokens: Sequence[int], parts: Sequence[Cells]) -> None:
        """The slot's main line holds the tokens by these cells. Raises EngineError; it holds nothing then."""
        main = slot * self.branches
        if slot not in self._running and self._cache is not None:
            self._cache.make_way()
        self._held[main] = _Held()
        if self._cells is None:
            raise EngineError("pages of this draft model cannot be taken")
        self._cells.put(main, parts)
        self._held[main].put(0, tokens)
        self._running.setdefault(slot, _Slot(tokens, Prefill())).took(len(tokens))

    def _sequence(self, task: DraftTask) -> int:
        return task.slot * self.branches + task.branch

    def _start(self, task: DraftTask) -> int:
        """How much of the task's context its sequence holds, with what it takes over from the slot's other
        lines.

        The last token is always evaluated anew: its logits were not kept.
        """
        mine = self._sequence(task)
        first = task.slot * self.branches
        if task.slot in self._running:
            self._running[task.slot].context = task.context
        else:
            self._begin(task, first)
        self._running[task.slot].begins_with = self._running[task.slot].begins_with or len(task.context)
        shared = {s: self._held[s].common(task) for s in range(first, first + self.branches)}
        longest = max(shared, key=lambda sequence: shared[sequence])
        if shared[longest] > shared[mine]:
            self._context.copy(longest, mine, shared[longest])
            self._held[mine] = self._held[longest].copy(shared[longest])
        return min(shared[longest], len(task.context) - 1)

    def _begin(self, task: DraftTask, main: int) -> None:
        """The slot's main line takes over what is held of a new text."""
        wanted, held = Wanted(_tokens(task.context), len(task.context), 1), 0
        if self._cache is not None:
            held = self._cache.begin(wanted, main, self._in_cells(), fresh=task.fresh)
        self._context.truncate(main, held)
        if held and not self._context.holds(main, held):
            self._context.truncate(main, 0)
            held = 0
        self._held[main] = _Held(0, wanted.tokens[:held].tolist())
        self._running[task.slot] = _Slot(task.context, Prefill(held))

    def _in_cells(self) -> Iterator[InCells]:
        """Texts that run, as far as their main lines hold them."""
        for slot, running in self._running.items():
            main = slot * self.branches
            if (text := self._text(main, running)) is not None:
                yield InCells(main, text)

    def _text(self, main: int, running: _Slot) -> Text | None:
        """What the cells of a slot's main line hold; None for too little to be worth keeping."""
        held = self._held[main]
        tokens = _tokens([*running.context[: held.settled], *held.rest])
        return Text(tokens, 0, len(tokens)) if len(tokens) >= WORTH_TOKENS else None


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    if held == wanted:
        return len(held)
    for length, (a, b) in enumerate(zip(held, wanted, strict=False)):
        if a != b:
            return length
    return min(len(held), len(wanted))


def _tokens(ids: Sequence[int]) -> Tokens:
    return np.asarray(ids[:], np.int32)
