"""Hashes of prompts' beginnings: of whole blocks, each over everything before its end."""

import hashlib
import struct

from hypothesis import given
from hypothesis import strategies as st

from ecd.wire.prefix import BLOCK_TOKENS, blocks, unpack

TOKENS = st.lists(st.integers(0, (1 << 24) - 1), max_size=4 * BLOCK_TOKENS)


def test_the_hash_is_that_of_the_text_of_the_protocol() -> None:
    tokens = list(range(100, 230))
    first = hashlib.sha256(b"".join(struct.pack(">I", token) for token in tokens[:64])).digest()
    second = hashlib.sha256(first + b"".join(struct.pack(">I", token) for token in tokens[64:128])).digest()
    assert [block_hash for block_hash, _ in blocks(tokens)] == [first, second]


@given(TOKENS)
def test_blocks_are_the_tokens(tokens: list[int]) -> None:
    whole = len(tokens) - len(tokens) % BLOCK_TOKENS
    assert [token for _, block in blocks(tokens) for token in unpack(block)] == tokens[:whole]


@given(TOKENS, TOKENS)
def test_texts_share_hashes_as_far_as_they_share_blocks(one: list[int], other: list[int]) -> None:
    common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    shared = min(len(one), len(other)) if common is None else common
    mine, theirs = ([block_hash for block_hash, _ in blocks(text)] for text in (one, other))
    same = sum(a == b for a, b in zip(mine, theirs, strict=False))
    assert same == shared // BLOCK_TOKENS
    assert mine[:same] == theirs[:same]
