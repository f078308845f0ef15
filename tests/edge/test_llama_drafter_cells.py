"""Whatever slots take over, in whichever order: guesses are those of the text alone, and there is room.

No model: logits are a hash of the tokens in a sequence's cells, which sequences may share as in llama.cpp.
"""

import itertools
import pickle
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ecd.config import KvCache
from ecd.edge import llama_drafter
from ecd.edge.drafter import Context, DraftTask
from ecd.edge.llama_drafter import ALTERNATE_TOKENS, LlamaDrafter
from ecd.engine.llama import Segment
from ecd.engine.prefix_cache import State
from ecd.sampling import Sampling, guess

SLOTS, SLOT_TOKENS, VOCABULARY = 3, 400, 8
Cell = tuple[int, int]


def logits(tokens: Sequence[int]) -> NDArray[np.float32]:
    """What a model might say behind these tokens."""
    return np.random.default_rng([*tokens, len(tokens)]).normal(size=VOCABULARY).astype(np.float32)


class Cells:
    """Stands in for a LlamaContext with shared cells: each has a number of its own, and a token."""

    def __init__(self, model: object, *, n_ctx: int, n_seq: int, **others: object) -> None:
        self.room = n_ctx * n_seq
        self.of: list[list[Cell]] = [[] for _ in range(n_seq)]
        self._numbers = itertools.count()

    def decode(self, segments: Sequence[Segment]) -> list[NDArray[np.float32]]:
        rows = []
        for segment in segments:
            cells = self.of[segment.sequence]
            assert segment.start <= len(cells), "a gap"
            del cells[segment.start :]
            self._add(segment.sequence, segment.tokens)
            told = [logits([token for _, token in cells])] * segment.rows
            rows.append(np.array(told, np.float32).reshape(segment.rows, VOCABULARY))
        return rows

    def _add(self, sequence: int, tokens: Sequence[int]) -> None:
        self.of[sequence] += [(next(self._numbers), token) for token in tokens]
        assert len({number for cells in self.of for number, _ in cells}) <= self.room, "the KV cache is full"

    def truncate(self, sequence: int, length: int) -> None:
        del self.of[sequence][length:]

    def copy(self, source: int, sequence: int, length: int) -> None:
        assert source != sequence
        self.of[sequence] = self.of[source][:length]

    def holds(self, sequence: int, length: int) -> bool:
        return 0 < len(self.of[sequence]) >= length

    def save(self, sequence: int) -> State:
        return np.frombuffer(pickle.dumps([token for _, token in self.of[sequence]]), np.uint8)

    def load(self, sequence: int, state: State) -> bool:
        self.of[sequence] = []
        self._add(sequence, pickle.loads(state.tobytes()))
        return True

    def fingerprint(self) -> bytes:
        return b"cells"


Make = Callable[[int], LlamaDrafter]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """A drafter with so many bytes for saved texts."""
    monkeypatch.setattr(llama_drafter, "LlamaContext", Cells)
    model = cast(Any, SimpleNamespace(context_train=SLOT_TOKENS))
    return lambda max_bytes: LlamaDrafter(
        model, slots=SLOTS, context_tokens=SLOT_TOKENS, threads=1, kv_cache=KvCache(max_bytes=max_bytes)
    )


class Talk:
    """Texts in slots, guesses for them, and texts that are over for the next ones to begin like."""

    def __init__(self, rng: random.Random, drafter: LlamaDrafter) -> None:
        self.rng = rng
        self.drafter = drafter
        self.running: dict[int, list[int]] = {}
        self.texts: list[list[int]] = [[]]
        self.taken_over = 0

    def some(self, count: int) -> list[int]:
        return [self.rng.randrange(2) for _ in range(count)]

    def begin(self) -> None:
        free = [slot for slot in range(SLOTS) if slot not in self.running]
        if free:
            before = self.rng.choice(self.texts)
            before = before[: self.rng.choice((len(before), self.rng.randrange(len(before) + 1)))]
            text = [*before, *self.some(self.rng.choice((1, 30, 70, 150)))]
            self.running[self.rng.choice(free)] = text[: SLOT_TOKENS // 2]

    def draft(self) -> None:
        """Main lines of some slots with guesses ahead, and alternates that leave them."""
        tasks = []
        for slot, text in self.running.items():
            if self.rng.random() < 0.3:
                continue
            known, ahead = len(text), self.some(self.rng.randrange(8))
            tasks.append(self.task(slot, 0, text, known, ahead))
            for branch in range(1, self.rng.choice((1, 1, 2, 3))):
                leaves = self.rng.randrange(len(ahead) + 1)
                tasks.append(self.task(slot, branch, text, known, [*ahead[:leaves], *self.some(2)]))
        for task, made in zip(tasks, self.drafter.draft(tasks), strict=True):
            context = list(task.context[:])
            for told in made:
                expected = guess(logits(context), task.sampling, len(context), context, task.prompt_len)
                assert told == expected

    def task(self, slot: int, branch: int, text: list[int], known: int, ahead: list[int]) -> DraftTask:
        fresh = self.rng.random() < 0.1
        context = Context(text, known, tuple(ahead))
        return DraftTask(slot, branch, context, 1, known, Sampling(), 1, True, fresh)

    def commit(self) -> None:
        for text in self.running.values():
            if len(text) < SLOT_TOKENS - ALTERNATE_TOKENS:
                text += self.some(self.rng.randrange(4))

    def end(self) -> None:
        if self.running:
            slot = self.rng.choice(list(self.running))
            self.texts = [*self.texts[-4:], self.running.pop(slot)]
            self.taken_over += self.drafter.prefill(slot).cached
            self.drafter.release(slot)

    def go(self, turns: int) -> None:
        moves = (self.begin, self.draft, self.draft, self.draft, self.draft, self.commit, self.end)
        for _ in range(turns):
            self.rng.choice(moves)()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False), max_bytes=st.sampled_from([0, 3000, 1 << 20]))
def test_guesses_are_those_of_the_text_alone(make: Make, rng: random.Random, max_bytes: int) -> None:
    Talk(rng, make(max_bytes)).go(80)


def test_and_much_is_taken_over(make: Make) -> None:
    talk = Talk(random.Random(1), make(1 << 20))
    talk.go(1500)
    assert talk.taken_over > 2000
    assert talk.drafter.stats()["saved_texts"] > 3
