"""Cells of real contexts: taken, packed, put elsewhere, and what is computed behind them."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from ecd.engine.kv_cells import KvCells
from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.errors import EngineError
from ecd.pages import RUN_TOKENS, Cells, Encoding, pack, unpack

LENGTH, BEHIND = 300, 40


@pytest.fixture(scope="module")
def tokens(draft: LlamaModel) -> list[int]:
    text = "".join(
        f"Item {n} of the list costs {n * 7 % 90} euros and weighs {n % 13} kilograms.\n" for n in range(40)
    )
    return draft.tokenize(text, add_bos=False, parse_special=False)[: LENGTH + BEHIND]


def a_context(model: LlamaModel, *, exact: bool) -> LlamaContext:
    return LlamaContext(model, n_ctx=512, n_seq=3, n_batch=64, threads=1, exact=exact)


@pytest.fixture(scope="module", params=[False, True], ids=["shared", "exact"])
def pair(request: pytest.FixtureRequest, draft: LlamaModel) -> Iterator[tuple[LlamaContext, LlamaContext]]:
    contexts = a_context(draft, exact=request.param), a_context(draft, exact=request.param)
    yield contexts
    for context in contexts:
        context.close()


def read(context: LlamaContext, sequence: int, tokens: list[int]) -> None:
    for start in range(0, len(tokens), 64):
        context.decode([Segment(sequence, start, tokens[start : start + 64], 0)])


def behind(context: LlamaContext, sequence: int, tokens: list[int]) -> NDArray[np.float32]:
    (rows,) = context.decode([Segment(sequence, LENGTH, tokens[LENGTH:], BEHIND)])
    return rows.copy()


def through(cells: KvCells, encoding: Encoding, taken: Cells) -> list[Cells]:
    """As they come over the wire."""
    runs = []
    for first in range(0, len(taken), RUN_TOKENS):
        part = taken[first : first + RUN_TOKENS]
        data = pack(cells.shape, encoding, first, part)
        runs.append(unpack(cells.shape, encoding, first, first + len(part), data))
    return runs


def test_behind_f16_pages_everything_is_the_same(
    draft: LlamaModel, pair: tuple[LlamaContext, LlamaContext], tokens: list[int]
) -> None:
    here, there = pair
    ours, theirs = KvCells(draft, here), KvCells(draft, there)
    assert ours.shape == theirs.shape
    assert (ours.shape.heads, ours.shape.layers) == (3, ((192, 192),) * 30)
    # Cells that are not in the order of their positions, and others' among them.
    read(here, 1, tokens[:100])
    read(here, 0, tokens[:LENGTH])
    here.truncate(1, 0)
    here.truncate(0, 200)
    here.decode([Segment(0, 200, tokens[200:LENGTH][:64], 0)])
    here.decode([Segment(0, 264, tokens[264:LENGTH], 0)])
    taken = ours.take(0, 0, LENGTH)
    theirs.put(2, through(theirs, Encoding.F16, taken))
    np.testing.assert_array_equal(theirs.take(2, 0, LENGTH), taken)
    np.testing.assert_array_equal(theirs.take(2, 100, 164), taken[100:164])
    expected, found = behind(here, 0, tokens), behind(there, 2, tokens)
    # Where cells are shared the sums run over them in another order.
    assert np.abs(found - expected).mean() < 0.2
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.95
    for context in pair:
        for sequence in range(3):
            context.truncate(sequence, 0)


def test_behind_q8_0_pages_nearly_everything_is_the_same(
    draft: LlamaModel, pair: tuple[LlamaContext, LlamaContext], tokens: list[int]
) -> None:
    here, there = pair
    ours, theirs = KvCells(draft, here), KvCells(draft, there)
    read(here, 0, tokens[:LENGTH])
    theirs.put(0, through(theirs, Encoding.Q8_0, ours.take(0, 0, LENGTH)))
    expected, found = behind(here, 0, tokens), behind(there, 0, tokens)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.9
    assert np.abs(found - expected).mean() < 0.2
    for context in pair:
        context.truncate(0, 0)


def test_cells_of_an_exact_context_fit_a_shared_one(draft: LlamaModel, tokens: list[int]) -> None:
    exact, shared = a_context(draft, exact=True), a_context(draft, exact=False)
    ours, theirs = KvCells(draft, exact), KvCells(draft, shared)
    read(exact, 0, tokens[:LENGTH])
    theirs.put(0, [ours.take(0, 0, LENGTH)])
    expected, found = behind(exact, 0, tokens), behind(shared, 0, tokens)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.9
    exact.close()
    shared.close()


def test_a_range_by_way_of_another_sequence(draft: LlamaModel, tokens: list[int]) -> None:
    context = a_context(draft, exact=False)
    cells = KvCells(draft, context)
    read(context, 0, tokens[:200])
    whole = cells.take(0, 0, 200)
    np.testing.assert_array_equal(cells.take_apart(0, 2, 64, 150), whole[64:150])
    # Nothing is left behind, and nothing is lost.
    with pytest.raises(EngineError):
        cells.take(2, 64, 65)
    np.testing.assert_array_equal(cells.take(0, 0, 200), whole)
    with pytest.raises(EngineError, match="does not hold"):
        cells.take(0, 150, 201)
    context.close()


def test_what_does_not_fit_is_refused_and_leaves_nothing(draft: LlamaModel) -> None:
    context = LlamaContext(draft, n_ctx=64, n_seq=2, n_batch=64, threads=1, exact=False)
    cells = KvCells(draft, context)
    with pytest.raises(EngineError, match="raise context_tokens"):
        cells.put(0, [np.zeros((1000, cells.shape.width), np.float16)])
    for bad in (np.zeros((4, 7), np.float16), np.zeros((4, cells.shape.width), np.float32)):
        with pytest.raises(EngineError, match="not those of this model"):
            cells.put(0, [bad])
    assert context.decode([Segment(0, 0, [1, 2, 3], 1)])[0].shape[0] == 1
    context.close()


def test_a_model_has_a_digest_of_its_own(draft: LlamaModel, target: LlamaModel) -> None:
    assert draft.digest() == draft.digest() != target.digest()
    assert len(draft.digest()) == 16
