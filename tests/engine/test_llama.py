"""llama.cpp as ecd uses it: what a sequence computes depends on its own tokens and on nothing else."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.engine.packing import PROMPT_CHUNK_TOKENS
from ecd.errors import EngineError, ModelError
from ecd.models.fetch import resolve

TEXT = (
    "The history of computing is longer than most people think: counting boards, gears, relays, transistors. "
)


@pytest.fixture(scope="module")
def tokens(target: LlamaModel) -> list[int]:
    return target.tokenize(TEXT * 8, add_bos=True, parse_special=False)[:160]


@pytest.fixture
def context(target: LlamaModel) -> Iterator[LlamaContext]:
    context = LlamaContext(target, n_ctx=256, n_seq=4, n_batch=256, threads=1)
    yield context
    context.close()


def test_a_vocabulary_without_its_model_is_the_same_vocabulary(target: LlamaModel) -> None:
    alone = LlamaModel(target.path, vocab_only=True)
    assert alone.fingerprint() == target.fingerprint()
    assert (alone.eog, alone.digest()) == (target.eog, target.digest())
    assert target.kv_heads > 0


def one_by_one(context: LlamaContext, sequence: int, tokens: list[int]) -> NDArray[np.float32]:
    rows = [context.decode([Segment(sequence, at, [token], 1)])[0].copy() for at, token in enumerate(tokens)]
    return np.concatenate(rows)


def test_logits_do_not_depend_on_batches_neighbours_or_roll_backs(
    target: LlamaModel, context: LlamaContext, tokens: list[int]
) -> None:
    texts = [tokens[shift : shift + 100] for shift in (0, 11, 23, 37)]
    alone = LlamaContext(target, n_ctx=256, n_seq=1, n_batch=64, threads=1)
    expected = []
    for text in texts:
        alone.truncate(0, 0)
        expected.append(one_by_one(alone, 0, text))
    alone.close()
    rng = random.Random(1)
    done = [0] * len(texts)
    while any(at < 100 for at in done):
        segments = []
        for sequence, text in enumerate(texts):
            if done[sequence] < 100 and rng.random() < 0.8:
                piece = text[done[sequence] :][: rng.choice((1, 1, 1, 3, 6, PROMPT_CHUNK_TOKENS - 1))]
                segments.append(Segment(sequence, done[sequence], piece, len(piece)))
        for segment, rows in zip(segments, context.decode(segments) if segments else [], strict=True):
            end = segment.start + len(segment.tokens)
            np.testing.assert_array_equal(rows, expected[segment.sequence][segment.start : end])
            done[segment.sequence] = segment.start + rng.randrange(1, len(segment.tokens) + 1)
            context.truncate(segment.sequence, done[segment.sequence])


def test_a_prompts_chunk_is_not_changed_by_its_neighbours(context: LlamaContext, tokens: list[int]) -> None:
    chunk = tokens[:PROMPT_CHUNK_TOKENS]
    (alone,) = context.decode([Segment(0, 0, chunk, 1)])
    expected = alone.copy()
    context.decode([Segment(n, 0, tokens[:20], 0) for n in (1, 2)])
    short, beside, shorter = context.decode(
        [Segment(1, 20, tokens[20:23], 3), Segment(3, 0, chunk, 1), Segment(2, 20, tokens[20:21], 1)]
    )
    np.testing.assert_array_equal(beside, expected)
    assert (short.shape[0], shorter.shape[0]) == (3, 1)
    np.testing.assert_array_equal(short[0], shorter[0])


@pytest.fixture
def shared(target: LlamaModel) -> Iterator[LlamaContext]:
    context = LlamaContext(target, n_ctx=64, n_seq=4, n_batch=256, threads=1, exact=False)
    yield context
    context.close()


def test_a_copy_goes_on_as_the_original_would(shared: LlamaContext, tokens: list[int]) -> None:
    """Nearly: that nothing at all depends on the batch is what `exact` is for."""
    (rows,) = shared.decode([Segment(2, 0, tokens[:52], 52)])
    expected = rows.copy()
    shared.truncate(2, 0)
    shared.decode([Segment(0, 0, tokens[:50], 0)])
    shared.decode([Segment(1, 0, tokens[90:100], 0)])
    shared.copy(0, 1, 40)
    branch, main = shared.decode([Segment(1, 40, tokens[40:42], 2), Segment(0, 50, tokens[50:52], 2)])
    for rows, at in ((branch, 40), (main, 50)):
        assert np.abs(rows - expected[at : at + 2]).mean() < 0.2
        assert list(rows.argmax(axis=1)) == list(expected[at : at + 2].argmax(axis=1))


def test_a_copy_outlives_what_it_was_made_from(
    context: LlamaContext, shared: LlamaContext, tokens: list[int]
) -> None:
    expected = one_by_one(context, 0, tokens[:41])
    shared.decode([Segment(0, 0, tokens[:50], 0)])
    shared.copy(0, 1, 40)
    shared.truncate(0, 0)
    (rows,) = shared.decode([Segment(1, 40, tokens[40:41], 1)])
    assert rows[0].argmax() == expected[40].argmax()


def test_copies_take_no_cells(shared: LlamaContext, tokens: list[int]) -> None:
    """256 cells for all: three copies of 150 tokens would not fit."""
    for start in (0, 75):
        shared.decode([Segment(0, start, tokens[start : start + 75], 0)])
    for sequence in (1, 2, 3):
        shared.copy(0, sequence, 150)
    shared.decode([Segment(sequence, 150, tokens[:20], 1) for sequence in range(4)])
    with pytest.raises(EngineError, match="the KV cache is full"):
        shared.decode([Segment(sequence, 170, tokens[:20], 1) for sequence in range(4)])


def test_logits_come_only_where_wanted(context: LlamaContext, tokens: list[int]) -> None:
    none, two = context.decode([Segment(0, 0, tokens[:5], 0), Segment(1, 0, tokens[:5], 2)])
    assert none.shape == (0, 49152)
    assert two.shape == (2, 49152)


def test_what_does_not_fit_is_an_engine_error(context: LlamaContext, tokens: list[int]) -> None:
    for start in range(0, 256, 32):
        context.decode([Segment(0, start, tokens[:32], 1)])
    with pytest.raises(EngineError, match="failed"):
        context.decode([Segment(0, 256, tokens[:1], 1)])
    context.truncate(0, 0)
    assert context.decode([Segment(0, 0, tokens[:5], 1)])[0].shape == (1, 49152)


def test_the_pair_shares_a_fingerprint_and_another_family_does_not(
    target: LlamaModel, draft: LlamaModel
) -> None:
    assert target.fingerprint().differences(draft.fingerprint()) == []
    assert target.fingerprint().tokenizer == "gpt2/smollm"


def test_pieces_make_up_the_text(target: LlamaModel) -> None:
    text = "naïve 人工智能 🙂 — def f(x): return x ** 2"
    ids = target.tokenize(text, add_bos=False, parse_special=False)
    assert b"".join(target.piece(token) for token in ids).decode() == text
    assert all(target.piece(token) == b"" for token in target.eog)
    assert target.piece(target.eos, control=True) == b"<|im_end|>"


def test_an_id_that_the_model_lacks_has_no_piece_and_ends_nothing(target: LlamaModel) -> None:
    for token in (-1, target.n_vocab):
        with pytest.raises(EngineError, match=f"{token} is not in the vocabulary"):
            target.piece(token)


def test_a_file_that_is_no_model_is_said() -> None:
    with pytest.raises(ModelError, match="cannot load"):
        LlamaModel(resolve(__file__))


def behind(context: LlamaContext, sequence: int, tokens: list[int], at: int) -> NDArray[np.float32]:
    """Logits behind the tokens from `at` on, one by one."""
    rows = [
        context.decode([Segment(sequence, place, [tokens[place]], 1)])[0].copy()
        for place in range(at, len(tokens))
    ]
    return np.concatenate(rows)


def assert_alike(one: NDArray[np.float32], other: NDArray[np.float32], *, exact: bool) -> None:
    """In shared cells, sums depend on where the cells lie."""
    if exact:
        np.testing.assert_array_equal(one, other)
    else:
        assert all(np.corrcoef(a, b)[0, 1] > 0.98 for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("exact", [True, False], ids=["own cells", "shared cells"])
def test_what_was_saved_computes_the_same_in_another_sequence(
    target: LlamaModel, tokens: list[int], exact: bool
) -> None:
    context = LlamaContext(target, n_ctx=256, n_seq=3, n_batch=256, threads=1, exact=exact)
    context.decode([Segment(0, 0, tokens[:64], 0)])
    context.decode([Segment(0, 64, tokens[64:100], 0)])
    state = context.save(0)
    expected = behind(context, 0, tokens[:110], 100)
    context.decode([Segment(2, 0, tokens[30:70], 0)])
    assert context.load(2, state)
    assert_alike(behind(context, 2, tokens[:110], 100), expected, exact=exact)
    # And as far as it is wanted only.
    context.truncate(2, 64)
    other = [*tokens[:64], *tokens[20:30]]
    again = behind(context, 2, other, 64)
    context.truncate(0, 64)
    assert_alike(behind(context, 0, other, 64), again, exact=exact)
    context.close()


def test_it_survives_the_context(target: LlamaModel, tokens: list[int]) -> None:
    contexts = [LlamaContext(target, n_ctx=256, n_seq=2, n_batch=64, threads=1) for _ in range(2)]
    contexts[0].decode([Segment(0, 0, tokens[:64], 0)])
    state = contexts[0].save(0)
    expected = behind(contexts[0], 0, tokens[:70], 64)
    assert contexts[1].load(1, state)
    np.testing.assert_array_equal(behind(contexts[1], 1, tokens[:70], 64), expected)
    assert contexts[0].fingerprint() == contexts[1].fingerprint()
    for context in contexts:
        context.close()


def test_a_state_of_another_shape_is_refused_and_leaves_nothing(
    target: LlamaModel, context: LlamaContext, tokens: list[int]
) -> None:
    other = LlamaContext(target, n_ctx=256, n_seq=2, n_batch=64, threads=1)
    other.decode([Segment(0, 0, tokens[:64], 0)])
    state = other.save(0)
    assert other.fingerprint() != context.fingerprint()
    other.close()
    context.decode([Segment(1, 0, tokens[:20], 0)])
    assert not context.load(1, state)
    assert not context.holds(1, 1)
    np.testing.assert_array_equal(behind(context, 1, tokens[:5], 0), one_by_one(context, 0, tokens[:5]))


def test_it_knows_what_a_sequence_holds(context: LlamaContext, tokens: list[int]) -> None:
    assert not context.holds(0, 1)
    context.decode([Segment(0, 0, tokens[:40], 0)])
    assert context.holds(0, 40)
    assert not context.holds(0, 41)
    context.truncate(0, 30)
    assert context.holds(0, 30)
    assert not context.holds(0, 31)


def test_an_evaluation_can_be_given_up(context: LlamaContext, tokens: list[int]) -> None:
    expected = behind(context, 0, tokens[:80], 0)[-16:]
    chunk = Segment(1, 0, tokens[:64], 0)
    assert not context.decode_unless(lambda: True, chunk)
    assert not context.holds(1, 1)
    context.decode([Segment(1, 0, tokens[:10], 0)])
    assert not context.decode_unless(lambda: True, Segment(1, 5, tokens[5:69], 0))
    assert context.holds(1, 5)
    assert not context.holds(1, 6)
    # What comes next is not stopped, and is none the worse.
    assert context.decode_unless(lambda: False, Segment(1, 0, tokens[:20], 0))
    np.testing.assert_array_equal(behind(context, 1, tokens[:80], 20)[-16:], expected)
