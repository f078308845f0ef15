"""Whatever sessions take over, in whichever order: their cells are those of a text read alone.

No model: cells note the token and the piece that they were evaluated in, which is all that their numbers
depend on (docs/LOG.md), and for which tenant that was, which must be the one that they serve.
"""

import pickle
import random
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ecd.cloud.llama_places import Places
from ecd.cloud.verifier import Work
from ecd.config import KvCache
from ecd.engine.llama import Segment
from ecd.engine.packing import PROMPT_CHUNK_TOKENS, next_piece
from ecd.engine.prefix_cache import State
from ecd.sampling import Sampling

PLACES = 3
# A token, the piece of at least 64 tokens that it was evaluated in (smaller ones all round alike), and the
# tenant.
Cell = tuple[int, tuple[int, int] | None, str]


class Cells:
    """Stands in for a LlamaContext."""

    def __init__(self) -> None:
        self.of: dict[int, list[Cell]] = {number: [] for number in range(PLACES)}
        # Whose text is or was last in a sequence.
        self.whose = [""] * PLACES

    def decode(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            start, end = segment.start, segment.start + len(segment.tokens)
            assert start <= len(self.of[segment.sequence]), "a gap"
            piece = (start, end) if end - start >= PROMPT_CHUNK_TOKENS else None
            self.truncate(segment.sequence, start)
            whose = self.whose[segment.sequence]
            self.of[segment.sequence] += [(token, piece, whose) for token in segment.tokens]

    def decode_unless(self, stop: Callable[[], bool], segment: Segment) -> bool:
        self.truncate(segment.sequence, segment.start)
        if stop():
            return False
        self.decode([segment])
        return True

    def truncate(self, sequence: int, length: int) -> None:
        del self.of[sequence][length:]

    def holds(self, sequence: int, length: int) -> bool:
        return 0 < len(self.of[sequence]) >= length

    def fingerprint(self) -> bytes:
        return b"cells"

    def save(self, sequence: int) -> State:
        return np.frombuffer(pickle.dumps(self.of[sequence]), np.uint8)

    def load(self, sequence: int, state: State) -> bool:
        self.of[sequence] = pickle.loads(state.tobytes())
        return True


def alone(tokens: Sequence[int], prompt_len: int, cached: int, tenant: str) -> list[Cell]:
    """The first cells of a text that takes over nothing."""
    cells, done = Cells(), 0
    cells.whose[0] = tenant
    while done < cached:
        start, end = next_piece(done, prompt_len, len(tokens))
        cells.decode([Segment(0, start, tokens[start:end], 0)])
        done = end
    return cells.of[0][:cached]


class Talk:
    """Sessions on three places, and texts for the next ones to begin like."""

    def __init__(self, rng: random.Random, max_bytes: int) -> None:
        self.rng = rng
        self.cells = Cells()
        self.places = Places(cast(Any, self.cells), PLACES, KvCache(max_bytes=max_bytes))
        self.running: dict[int, tuple[list[int], int]] = {}
        self.texts: list[list[int]] = [[]]
        self.prompts: list[tuple[list[int], int]] = []
        self.key = 0
        self.taken_over = 0

    def begin(self) -> None:
        if len(self.running) == PLACES:
            return
        self.key += 1
        if self.prompts and self.rng.random() < 0.3:
            # Cut off, and opened again; the prompt is cut as it was.
            tokens, prompt_len = self.rng.choice(self.prompts)
            tokens = tokens[: self.rng.randint(prompt_len, len(tokens))]
        else:
            before = self.rng.choice(self.texts)
            before = before[: self.rng.choice((len(before), self.rng.randrange(len(before) + 1)))]
            tokens = [*before, *self.some(self.rng.choice((1, 20, 64, 130)))]
            prompt_len = len(tokens)
        tokens = list(tokens)
        self.running[self.key] = tokens, prompt_len
        tenant, fresh = self.rng.choice(("berlin", "berlin", "paris")), self.rng.random() < 0.1
        self.places.begin(Work(self.key, tokens, prompt_len, Sampling(), [], None, fresh, tenant))
        self.cells.whose[self.places[self.key].number] = tenant
        self.taken_over += self.places[self.key].reused
        self.check()

    def some(self, count: int) -> list[int]:
        # Few kinds, so that texts also begin alike by chance.
        return [self.rng.randrange(2) for _ in range(count)]

    def step(self) -> None:
        """One session's next piece, hints behind it, and what was committed of them."""
        if not self.running:
            return
        key = self.rng.choice(list(self.running))
        (tokens, prompt_len), place = self.running[key], self.places[key]
        if place.cached < len(tokens):
            start, end = next_piece(place.cached, prompt_len, len(tokens))
            hints = self.some(self.rng.randrange(5)) if end - start == 1 else []
            self.cells.decode([Segment(place.number, start, [*tokens[start:end], *hints], 0)])
            self.places.read(key, end)
            if end < len(tokens):
                return
            accepted = self.rng.randint(0, len(hints))
            tokens += hints[:accepted]
            place.cached += accepted
        tokens += self.some(1)
        self.check()

    def end(self) -> None:
        if self.running:
            key = self.rng.choice(list(self.running))
            tokens, prompt_len = self.running.pop(key)
            self.places.end(key)
            self.texts = [*self.texts[-5:], tokens]
            self.prompts = [*self.prompts[-3:], (tokens, prompt_len)]

    def prepare(self) -> None:
        self.places.prepare(lambda: self.rng.random() < 0.3)

    def check(self) -> None:
        for key, (tokens, prompt_len) in self.running.items():
            place = self.places[key]
            held = self.cells.of[place.number][: place.cached]
            assert held == alone(tokens, prompt_len, place.cached, place.tenant)
            assert place.cached <= len(tokens)


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([0, 20_000, 1 << 20]))
def test_cells_are_those_of_the_text_alone(rng: random.Random, max_bytes: int) -> None:
    talk = Talk(rng, max_bytes)
    for _ in range(60):
        rng.choice((talk.begin, talk.step, talk.step, talk.step, talk.end, talk.prepare))()


def test_and_much_is_taken_over() -> None:
    talk = Talk(random.Random(1), 1 << 20)
    for _ in range(600):
        talk.rng.choice((talk.begin, talk.step, talk.step, talk.step, talk.end, talk.prepare))()
    stats = talk.places.stats()
    assert stats["cached_tokens"] == talk.taken_over
    assert stats["cached_tokens"] > stats["prefill_tokens"] / 4 > 0
    assert stats["hits"] > 20
    assert stats["prepared_tokens"] > 0
