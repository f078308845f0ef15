"""Pieces of a sequence: fixed for a prompt, whoever evaluates it and however often it was interrupted."""

from hypothesis import given
from hypothesis import strategies as st

from ecd.engine.packing import PROMPT_CHUNK_TOKENS, SEGMENT_TOKENS, next_piece, whole_chunks


def pieces(prompt_len: int, length: int) -> list[tuple[int, int]]:
    cached, found = 0, []
    while cached < length:
        found.append(next_piece(cached, prompt_len, length))
        cached = found[-1][1]
    return found


@given(st.integers(1, 1000), st.integers(0, 200))
def test_pieces_cover_the_sequence_in_order(prompt_len: int, answer: int) -> None:
    length = prompt_len + answer
    found = pieces(prompt_len, length)
    assert found[-1][1] == length
    for (_, end), (start, next_end) in zip([(0, 0), *found], found, strict=False):
        assert 0 <= start <= end < next_end


@given(st.integers(PROMPT_CHUNK_TOKENS, 1000), st.integers(0, 200))
def test_a_prompt_goes_in_whole_chunks(prompt_len: int, answer: int) -> None:
    in_prompt = [p for p in pieces(prompt_len, prompt_len + answer) if p[0] < prompt_len]
    assert all(end - start == PROMPT_CHUNK_TOKENS for start, end in in_prompt)
    assert all(start % PROMPT_CHUNK_TOKENS == 0 for start, _ in in_prompt[:-1])
    assert in_prompt[-1][1] == prompt_len


@given(st.integers(1, PROMPT_CHUNK_TOKENS - 1), st.integers(0, 200))
def test_a_short_prompt_goes_at_once(prompt_len: int, answer: int) -> None:
    assert pieces(prompt_len, prompt_len + answer)[0] == (0, prompt_len)


@given(st.integers(1, 1000), st.integers(1, 300))
def test_what_follows_the_prompt_never_makes_a_chunk(prompt_len: int, answer: int) -> None:
    for start, end in pieces(prompt_len, prompt_len + answer):
        if start >= prompt_len:
            assert end - start <= SEGMENT_TOKENS < PROMPT_CHUNK_TOKENS


def evaluated_in(prompt_len: int, length: int, *, steps: int) -> list[tuple[int, int]]:
    """Of each token that the cells hold after so many pieces, the piece that it was evaluated in."""
    held: list[tuple[int, int]] = []
    for start, end in pieces(prompt_len, length)[:steps]:
        held[start:] = [(start, end)] * (end - start)
    return held


@given(st.integers(1, 600), st.integers(0, 200), st.integers(0, 20))
def test_whole_chunks_are_those_that_every_longer_prompt_has(
    prompt_len: int, answer: int, steps: int
) -> None:
    held = evaluated_in(prompt_len, prompt_len + answer, steps=steps)
    whole = whole_chunks(prompt_len, len(held))
    longer = evaluated_in(2000, 2000, steps=100)
    assert held[:whole] == longer[:whole]
    assert whole % PROMPT_CHUNK_TOKENS == 0
    # And no chunk more could be taken over.
    assert held[: whole + PROMPT_CHUNK_TOKENS] != longer[: whole + PROMPT_CHUNK_TOKENS]


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 200))
def test_going_on_behind_them_gives_the_pieces_of_a_prompt_read_from_its_start(
    first: int, prompt_len: int, answer: int
) -> None:
    whole = min(whole_chunks(first, first), (prompt_len - 1) // PROMPT_CHUNK_TOKENS * PROMPT_CHUNK_TOKENS)
    length = prompt_len + answer
    cached, found = whole, []
    while cached < length:
        found.append(next_piece(cached, prompt_len, length))
        cached = found[-1][1]
    from_start = pieces(prompt_len, length)
    assert found == from_start[len(from_start) - len(found) :]
