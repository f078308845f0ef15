"""The draft model on llama.cpp: one forward guesses the next token of every line that wants one.

Owns which KV cells hold which tokens of which line. Does not know which of them are committed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ecd.edge.confidence import MAX_PROB, Confidence
from ecd.edge.drafter import DraftTask
from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.engine.packing import PROMPT_CHUNK_TOKENS
from ecd.sampling import Guess, guess

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


class LlamaDrafter:
    """`Drafter` on a llama.cpp context with `context_tokens` cells for each of `slots` generations.

    `confidence`: how sure a guess is said to be.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        slots: int,
        context_tokens: int,
        threads: int,
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
        """Frees the slot's cells."""
        for sequence in range(slot * self.branches, (slot + 1) * self.branches):
            self._context.truncate(sequence, 0)
            self._held[sequence] = _Held()

    def close(self) -> None:
        """Frees the KV cache."""
        self._context.close()

    def _sequence(self, task: DraftTask) -> int:
        return task.slot * self.branches + task.branch

    def _start(self, task: DraftTask) -> int:
        """How much of the task's context its sequence holds, with what it takes over from the slot's other
        lines.

        The last token is always evaluated anew: its logits were not kept.
        """
        mine = self._sequence(task)
        first = task.slot * self.branches
        shared = {s: self._held[s].common(task) for s in range(first, first + self.branches)}
        longest = max(shared, key=lambda sequence: shared[sequence])
        if shared[longest] > shared[mine]:
            self._context.copy(longest, mine, shared[longest])
            self._held[mine] = self._held[longest].copy(shared[longest])
        return min(shared[longest], len(task.context) - 1)


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    if held == wanted:
        return len(held)
    for length, (a, b) in enumerate(zip(held, wanted, strict=False)):
        if a != b:
            return length
    return min(len(held), len(wanted))
