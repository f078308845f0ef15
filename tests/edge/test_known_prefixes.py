"""What the edge takes the cloud to know."""

from ecd.edge.known_prefixes import CloudPrefixes, KnownPrefixes
from ecd.wire.prefix import BLOCK_TOKENS, blocks

PROMPT = list(range(1000, 1000 + 4 * BLOCK_TOKENS))


def found(known: KnownPrefixes, prompt: list[int]) -> int:
    """Length of the longest prefix that is known; its hash is that of the prompt's own beginning."""
    longest = known.longest(prompt)
    if longest is None:
        return 0
    block_hash, length = longest
    assert list(blocks(prompt[:length]))[-1][0] == block_hash
    return length


def test_nothing_is_known_at_first() -> None:
    assert found(KnownPrefixes(), PROMPT) == 0


def test_the_longest_common_beginning_is_found() -> None:
    known = KnownPrefixes()
    known.add([*PROMPT[:150], *([7] * 100)])
    assert found(known, PROMPT) == 128
    known.add(PROMPT)
    assert found(known, [*PROMPT, 1, 2, 3]) == len(PROMPT)
    assert found(known, [5, *PROMPT]) == 0


def test_at_least_one_token_is_left_to_send() -> None:
    known = KnownPrefixes()
    known.add(PROMPT)
    assert found(known, PROMPT) == len(PROMPT) - BLOCK_TOKENS
    assert found(known, PROMPT[:65]) == 64
    assert found(known, PROMPT[:64]) == 0


def test_what_the_cloud_lost_is_forgotten() -> None:
    known = KnownPrefixes()
    known.add(PROMPT)
    known.forget()
    assert found(known, PROMPT) == 0


def test_the_ends_of_old_texts_go_first() -> None:
    known = KnownPrefixes(max_hashes=4)
    known.add(PROMPT)
    known.add([7] * BLOCK_TOKENS)
    assert found(known, [*PROMPT, 1]) == 3 * BLOCK_TOKENS
    assert found(known, [7] * 100) == BLOCK_TOKENS


class Cloud:
    """Some cloud."""


def test_each_cloud_has_what_it_was_sent_itself() -> None:
    here, there = Cloud(), Cloud()
    prefixes: CloudPrefixes[Cloud] = CloudPrefixes()
    prefixes.at(here).add(PROMPT[:130])
    assert prefixes.at(there).longest(PROMPT) is None
    assert prefixes.shares(PROMPT) == {here: 0.5}
    prefixes.at(there).add(PROMPT)
    assert prefixes.shares(PROMPT) == {here: 0.5, there: 0.75}, "a token is left behind it"
    assert prefixes.shares([5, *PROMPT]) == {}
    prefixes.at(here).forget()
    assert prefixes.shares(PROMPT) == {there: 0.75}
