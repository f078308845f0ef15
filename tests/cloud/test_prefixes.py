"""What the cloud remembers of prompts: whole blocks by their hash, the newest, and never a wrong token."""

import hashlib
import random
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.cloud.prefixes import Known, Prefixes
from ecd.errors import BadRequest, UnknownPrefix
from ecd.wire.prefix import BLOCK_TOKENS, blocks

WE, THEY = "berlin", "paris"


def text(seed: int, tokens: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(50_000) for _ in range(tokens)]


def hashes(tokens: list[int]) -> list[bytes]:
    return [block_hash for block_hash, _ in blocks(tokens)]


@given(st.integers(0, 5 * BLOCK_TOKENS))
def test_every_whole_block_of_a_text_can_be_asked_for(tokens: int) -> None:
    prefixes, prompt = Prefixes(), text(1, tokens)
    prefixes.remember(WE, prompt)
    for number, block_hash in enumerate(hashes(prompt), 1):
        length = number * BLOCK_TOKENS
        assert prefixes.resolve(WE, block_hash, length) == tuple(prompt[:length])


def test_what_was_never_told_is_not_known() -> None:
    prefixes = Prefixes()
    prefixes.remember(WE, text(1, 200))
    for unknown in (hashes(text(2, 64))[0], b"", b"x" * 32, None):
        with pytest.raises(UnknownPrefix, match="send the whole prompt"):
            prefixes.resolve(WE, unknown, BLOCK_TOKENS)


@pytest.mark.parametrize("length", [64, 192])
def test_a_hash_with_the_wrong_length_is_not_known(length: int) -> None:
    prefixes, prompt = Prefixes(), text(1, 200)
    prefixes.remember(WE, prompt)
    with pytest.raises(UnknownPrefix):
        prefixes.resolve(WE, hashes(prompt)[1], length)


def test_what_one_tenant_sent_is_not_known_to_another() -> None:
    prefixes, prompt = Prefixes(), text(1, 2 * BLOCK_TOKENS)
    prefixes.remember(WE, prompt)
    with pytest.raises(UnknownPrefix):
        prefixes.resolve(THEY, hashes(prompt)[1], 128)
    prefixes.remember(THEY, prompt[:BLOCK_TOKENS])
    assert prefixes.resolve(THEY, hashes(prompt)[0], 64) == tuple(prompt[:64])
    with pytest.raises(UnknownPrefix):
        prefixes.resolve(THEY, hashes(prompt)[1], 128)
    assert prefixes.resolve(WE, hashes(prompt)[1], 128) == tuple(prompt)


def test_a_length_that_no_prefix_has_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="65 is not a multiple of 64"):
        Prefixes().resolve(WE, b"x" * 32, 65)


def test_texts_share_their_beginning() -> None:
    prefixes, prompt = Prefixes(), text(1, 3 * BLOCK_TOKENS)
    prefixes.remember(WE, [*prompt, *text(2, BLOCK_TOKENS)])
    prefixes.remember(WE, [*prompt, *text(3, BLOCK_TOKENS)])
    assert len(prefixes) == 5


def test_the_ends_of_old_texts_go_first() -> None:
    prefixes = Prefixes(max_blocks=4)
    old, new = text(1, 3 * BLOCK_TOKENS), text(2, 2 * BLOCK_TOKENS)
    prefixes.remember(WE, old)
    prefixes.remember(WE, new)
    assert len(prefixes) == 4
    assert prefixes.resolve(WE, hashes(new)[1], 128) == tuple(new)
    assert prefixes.resolve(WE, hashes(old)[1], 128) == tuple(old[:128])
    with pytest.raises(UnknownPrefix):
        prefixes.resolve(WE, hashes(old)[2], 192)


def test_a_text_that_is_told_again_is_new_again() -> None:
    prefixes = Prefixes(max_blocks=4)
    first, second, third = (text(seed, 2 * BLOCK_TOKENS) for seed in range(3))
    for each in (first, second, first, third):
        prefixes.remember(WE, each)
    assert prefixes.resolve(WE, hashes(first)[1], 128) == tuple(first)
    with pytest.raises(UnknownPrefix):
        prefixes.resolve(WE, hashes(second)[1], 128)


def test_a_text_longer_than_all_there_is_room_for_keeps_its_beginning() -> None:
    prefixes, prompt = Prefixes(max_blocks=2), text(1, 5 * BLOCK_TOKENS)
    prefixes.remember(WE, prompt)
    assert prefixes.resolve(WE, hashes(prompt)[1], 128) == tuple(prompt[:128])


def test_what_is_known_of_a_text_is_not_hashed_again() -> None:
    prefixes, prompt = Prefixes(), text(1, 3 * BLOCK_TOKENS + 9)
    known = prefixes.remember(WE, prompt)
    assert known == Known(3 * BLOCK_TOKENS, hashes(prompt)[-1])
    longer = [*prompt, *text(2, BLOCK_TOKENS)]
    with patch("ecd.wire.prefix.hashlib.sha256", wraps=hashlib.sha256) as hashed:
        assert prefixes.remember(WE, longer, known) == Known(4 * BLOCK_TOKENS, hashes(longer)[-1])
    assert hashed.call_count == 1 + 4  # and those that are compared with
    assert prefixes.resolve(WE, hashes(longer)[-1], 256) == tuple(longer[:256])


def test_what_is_known_and_was_forgotten_meanwhile_is_hashed_again() -> None:
    prefixes, prompt = Prefixes(max_blocks=2), text(1, 2 * BLOCK_TOKENS)
    known = prefixes.remember(WE, prompt)
    prefixes.remember(WE, text(2, 2 * BLOCK_TOKENS))
    assert prefixes.remember(WE, prompt, known) == known
    assert prefixes.resolve(WE, hashes(prompt)[-1], 128) == tuple(prompt)


@pytest.mark.parametrize("again", ["asked for", "remembered"])
def test_what_is_known_counts_as_used_when_it_is_used_again(again: str) -> None:
    prefixes = Prefixes(max_blocks=4)
    first, second, third = (text(seed, 2 * BLOCK_TOKENS) for seed in range(3))
    known = prefixes.remember(WE, first)
    prefixes.remember(WE, second)
    if again == "asked for":
        prefixes.resolve(WE, known.hash, known.length)
    else:
        prefixes.remember(WE, first, known)
    prefixes.remember(WE, third)
    assert prefixes.resolve(WE, hashes(first)[1], 128) == tuple(first)
    with pytest.raises(UnknownPrefix):
        prefixes.resolve(WE, hashes(second)[1], 128)


def test_a_tenant_that_sends_much_forgets_its_own() -> None:
    prefixes = Prefixes(max_blocks=10)
    ours = text(0, 4 * BLOCK_TOKENS)
    prefixes.remember(WE, ours)
    for seed in range(1, 9):
        theirs = text(seed, 3 * BLOCK_TOKENS)
        prefixes.remember(THEY, theirs)
    assert len(prefixes) == 10
    assert prefixes.resolve(WE, hashes(ours)[-1], 256) == tuple(ours)
    assert prefixes.resolve(THEY, hashes(theirs)[-1], 192) == tuple(theirs)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(1, 9)), max_size=30),
    st.integers(3, 12),
)
def test_nobody_loses_a_share_to_others(told: list[tuple[str, int, int]], room: int) -> None:
    """Whoever has had no more than a third of the room has all of it still."""
    prefixes = Prefixes(max_blocks=room)
    had: dict[str, dict[bytes, tuple[int, ...]]] = {name: {} for name in "abc"}
    for name, seed, length in told:
        said = text(seed, length * BLOCK_TOKENS)
        prefixes.remember(name, said)
        for number, each in enumerate(hashes(said), 1):
            had[name][each] = tuple(said[: number * BLOCK_TOKENS])
    assert len(prefixes) <= room
    for name, texts in had.items():
        if len(texts) <= room // 3:
            for each, said in texts.items():
                assert prefixes.resolve(name, each, len(said)) == said
