"""The draft model on llama.cpp: one forward guesses the next token of every generation that wants one."""

from collections.abc import Sequence

from ecd.edge.drafter import DraftTask
from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.engine.packing import PROMPT_CHUNK_TOKENS, SEGMENT_TOKENS
from ecd.sampling import Guess, guess


class LlamaDrafter:
    """`Drafter` on a llama.cpp context with `context_tokens` cells for each of `slots` generations."""

    def __init__(self, model: LlamaModel, *, slots: int, context_tokens: int, threads: int):
        self.slots = slots
        self.slot_tokens = min(context_tokens, model.context_train)
        n_batch = slots * SEGMENT_TOKENS + PROMPT_CHUNK_TOKENS
        self._context = LlamaContext(
            model, n_ctx=context_tokens, n_seq=slots, n_batch=n_batch, threads=threads
        )

    def draft(self, tasks: Sequence[DraftTask]) -> list[Guess | None]:
        """One batch for all tasks."""
        segments = [Segment(task.slot, task.keep, task.tokens, int(task.wants_guess)) for task in tasks]
        rows = self._context.decode(segments)
        return [
            guess(row[0], task.sampling, len(task.context), task.context, task.prompt_len)
            if task.wants_guess
            else None
            for task, row in zip(tasks, rows, strict=True)
        ]

    def release(self, slot: int) -> None:
        """Frees the slot's cells."""
        self._context.truncate(slot, 0)

    def close(self) -> None:
        """Frees the KV cache."""
        self._context.close()
