"""What goes into one batch: everyone's next token first, then hints, then one chunk of somebody's prompt.

Pure arithmetic, shared by the target's and the draft's batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """One sequence's wish: `pending` tokens not evaluated yet (at least 1), and `hints` to evaluate behind
    them.
    """

    pending: int
    hints: int = 0


@dataclass(frozen=True, slots=True)
class Portion:
    """What it gets in this batch; hints only where a single token is pending."""

    pending: int
    hints: int = 0


def pack(demands: Sequence[Demand], *, batch_tokens: int, chunk_tokens: int) -> list[Portion]:
    """Portions of one batch, in the order of `demands`; a demand may get Portion(0).

    Sequences with one pending token always advance. Longer ones, prompts mostly, share `chunk_tokens`, first
    come first served, so that a long prompt delays the others by one chunk at most. Hints are dealt out
    evenly from what is left.
    """
    granted = [0] * len(demands)
    room = batch_tokens
    chunk = chunk_tokens
    for index, demand in enumerate(demands):
        if demand.pending == 1 and room:
            granted[index] = 1
            room -= 1
    for index, demand in enumerate(demands):
        if demand.pending > 1:
            granted[index] = min(demand.pending, chunk, room)
            chunk -= granted[index]
            room -= granted[index]
    hints = [0] * len(demands)
    wanting = [i for i, d in enumerate(demands) if granted[i] == d.pending == 1 and d.hints]
    while room and wanting:
        for index in wanting[:room]:
            hints[index] += 1
            room -= 1
        wanting = [i for i in wanting if hints[i] < demands[i].hints]
    return [Portion(pending, n) for pending, n in zip(granted, hints, strict=True)]


def chunk_end(start: int, prompt_len: int, chunk_tokens: int) -> int:
    """Where the prompt chunk that starts at `start` ends when chunks are cut at fixed positions.

    Fixed cuts make a prompt's batches the same whoever evaluates it; the stable setting and the oracle use
    them.
    """
    return min(prompt_len, (start // chunk_tokens + 1) * chunk_tokens)
