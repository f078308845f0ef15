"""Which kept text serves another one, and which texts are kept: pure, no model anywhere."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ecd.engine.packing import PROMPT_CHUNK_TOKENS, whole_chunks
from ecd.engine.prefix_cache import EMPTY, WORTH_TOKENS, PrefixCache, Saved, Text, Wanted

# Two kinds of tokens, so that texts often begin alike.
IDS = st.lists(st.integers(0, 1), max_size=200)


def text(ids: list[int], prompt_len: int = 0, solid: int | None = None) -> Text:
    return Text(np.asarray(ids, np.int32), prompt_len, len(ids) if solid is None else solid)


def wanted(ids: list[int], prompt_len: int | None = None, chunk: int = 1) -> Wanted:
    return Wanted(np.asarray(ids, np.int32), len(ids) if prompt_len is None else prompt_len, chunk)


def saved(ids: list[int], state_bytes: int = 1000) -> Saved:
    return Saved(text(ids), np.zeros(state_bytes, np.uint8))


def numbers(start: int, length: int) -> list[int]:
    return list(range(start, start + length))


class TestHeldBy:
    @given(IDS, IDS.filter(bool))
    def test_it_is_the_longest_common_beginning_but_for_the_last_token(
        self, held: list[int], ids: list[int]
    ) -> None:
        common = 0
        while common < min(len(held), len(ids)) and held[common] == ids[common]:
            common += 1
        assert wanted(ids).common(text(held)) == common
        assert wanted(ids).held_by(text(held)) == min(common, len(ids) - 1)

    def test_nothing_is_held_by_an_empty_text(self) -> None:
        assert wanted([1, 2, 3]).held_by(EMPTY) == 0

    def test_in_chunks_it_is_whole_ones_of_what_serves_any_text(self) -> None:
        ids = numbers(0, 300)
        another = wanted([*ids[:290], 7, 7, 7], 293, chunk=64)
        assert another.held_by(text(ids, 300, solid=192)) == 192
        assert another.held_by(text(ids, 300, solid=256)) == 256
        assert another.held_by(text(ids, 300, solid=300)) == 256
        assert wanted([*ids[:250], 7, 7], 252, chunk=64).held_by(text(ids, 300, solid=256)) == 192

    def test_the_last_chunk_of_a_prompt_is_always_evaluated(self) -> None:
        ids = numbers(0, 128)
        assert wanted(ids, 128, chunk=64).held_by(text(ids, 128)) == 64
        assert wanted(ids[:64], 64, chunk=64).held_by(text(ids, 128)) == 0

    def test_an_answer_that_goes_on_behind_the_same_prompt_has_all_of_it(self) -> None:
        ids = numbers(0, 180)
        over = text(ids[:170], prompt_len=150, solid=64)
        assert wanted(ids, 150, chunk=64).held_by(over) == 170
        assert wanted(ids[:160], 150, chunk=64).held_by(over) == 159
        assert wanted(ids[:151], 150, chunk=64).held_by(over) == 150

    def test_cut_elsewhere_an_answer_serves_nobody(self) -> None:
        """The next turn, and a prompt that ends inside this one."""
        ids = numbers(0, 180)
        over = text(ids[:170], prompt_len=150, solid=64)
        assert wanted(ids, 180, chunk=64).held_by(over) == 64
        assert wanted(ids, 149, chunk=64).held_by(over) == 64
        assert wanted(ids[:150], 150, chunk=64).held_by(over) == 64

    def test_a_text_of_another_tenant_serves_nobody(self) -> None:
        ids = numbers(0, 180)
        theirs = replace(text(ids, prompt_len=180), tenant="paris")
        assert wanted(ids).held_by(theirs) == wanted(ids).common(theirs) == 0
        assert replace(wanted(ids), tenant="berlin").held_by(theirs) == 0
        assert replace(wanted(ids), tenant="paris").held_by(theirs) == 179

    @given(IDS.filter(bool), st.integers(1, 200), IDS.filter(bool), st.integers(1, 200))
    def test_what_is_taken_over_is_common_and_was_cut_into_the_same_pieces(
        self, held: list[int], held_prompt: int, ids: list[int], prompt: int
    ) -> None:
        held_prompt, prompt = min(held_prompt, len(held)), min(prompt, len(ids))
        kept = text(held, held_prompt, whole_chunks(held_prompt, len(held)))
        length = wanted(ids, prompt, PROMPT_CHUNK_TOKENS).held_by(kept)
        assert held[:length] == ids[:length]
        assert length < len(ids)
        in_chunks = length % PROMPT_CHUNK_TOKENS == 0 and length < prompt and length <= kept.solid
        assert in_chunks or (held_prompt == prompt <= length)


class TestCovers:
    def test_a_longer_text_covers_its_beginning(self) -> None:
        assert text([1, 2, 3]).covers(text([1, 2]))
        assert text([1, 2, 3]).covers(text([1, 2, 3]))
        assert not text([1, 2]).covers(text([1, 2, 3]))
        assert not text([1, 2, 3]).covers(text([1, 3]))

    def test_but_not_where_less_of_it_serves_any_text(self) -> None:
        assert not text([1, 2, 3], solid=1).covers(text([1, 2]))

    def test_nor_a_text_of_another_tenant(self) -> None:
        ours, theirs = (replace(text([1, 2, 3]), tenant=tenant) for tenant in ("berlin", "paris"))
        assert not ours.covers(theirs)
        assert ours.covers(replace(text([1, 2]), tenant="berlin"))


class TestCache:
    def test_the_text_that_serves_most_is_found(self) -> None:
        cache = PrefixCache(10_000)
        cache.put(saved(numbers(0, 100)))
        cache.put(saved([*numbers(0, 150), 7]))
        cache.put(saved(numbers(5000, 200)))
        found = cache.find(wanted(numbers(0, 300)), 0)
        assert found is not None
        assert (found[0], len(found[1].text.tokens)) == (150, 151)

    def test_little_more_than_is_there_already_is_not_worth_it(self) -> None:
        cache = PrefixCache(10_000)
        cache.put(saved(numbers(0, 100)))
        ids = wanted(numbers(0, 300))
        assert cache.find(ids, 100 - WORTH_TOKENS) is not None
        assert cache.find(ids, 100 - WORTH_TOKENS + 1) is None
        assert PrefixCache(10_000).find(ids, 0) is None

    def test_the_least_recently_used_go_when_room_is_needed(self) -> None:
        one = saved(numbers(0, 100)).size_bytes
        cache = PrefixCache(3 * one)
        texts = [saved(numbers(1000 * n, 100)) for n in range(4)]
        for each in texts[:3]:
            assert cache.put(each) == []
        assert cache.find(wanted(numbers(0, 200)), 0) is not None
        assert cache.put(texts[3]) == [texts[1]]
        assert list(cache) == [texts[2], texts[0], texts[3]]
        assert cache.size_bytes == 3 * one

    def test_what_a_new_text_covers_goes_without_a_word(self) -> None:
        cache = PrefixCache(10_000)
        cache.put(saved(numbers(0, 100)))
        longer = saved(numbers(0, 120))
        assert cache.put(longer) == []
        assert list(cache) == [longer]
        assert cache.size_bytes == longer.size_bytes

    def test_what_is_covered_counts_as_used(self) -> None:
        cache = PrefixCache(10_000)
        first, second = saved(numbers(0, 100)), saved(numbers(500, 100))
        cache.put(first)
        cache.put(second)
        assert cache.covers(text(numbers(0, 80)))
        assert not cache.covers(text(numbers(1, 80)))
        assert list(cache) == [second, first]

    def test_a_state_too_large_for_it_is_handed_back(self) -> None:
        cache, small = PrefixCache(2000), saved(numbers(0, 10))
        cache.put(small)
        huge = saved(numbers(500, 100), state_bytes=3000)
        assert cache.put(huge) == [huge]
        assert list(cache) == [small]

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(0, 900)), max_size=20))
    def test_it_never_holds_more_than_it_may(self, puts: list[tuple[int, int, int]]) -> None:
        cache = PrefixCache(2000)
        for first, length, state_bytes in puts:
            new = saved(numbers(100 * first, length), state_bytes)
            if not cache.covers(new.text):
                cache.put(new)
            assert cache.size_bytes == sum(each.size_bytes for each in cache) <= 2000
            texts = [each.text for each in cache]
            assert not any(a.covers(b) for a in texts for b in texts if a is not b)


class TestShares:
    """Room is shared by those who want it: what one tenant keeps takes none of another's share."""

    def test_a_tenant_that_keeps_much_loses_its_own(self) -> None:
        cache = PrefixCache(10_000)
        ours = of("berlin", 0)
        cache.put(ours)
        for number in range(1, 30):
            for gone in cache.put(of("guest", number)):
                assert gone.text.tenant == "guest"
        assert ours in list(cache)

    def test_who_had_all_of_it_makes_room_for_another(self) -> None:
        cache = PrefixCache(10_000)
        for number in range(9):
            cache.put(of("guest", number))
        for number in range(4):
            (gone,) = cache.put(of("berlin", 100 + number))
            assert gone.text.tenant == "guest"
        assert [each.text.tenant for each in cache].count("berlin") == 4

    def test_a_state_larger_than_a_share_takes_the_room_of_the_oldest(self) -> None:
        cache = PrefixCache(10_000)
        first, second, large = of("berlin", 1), of("berlin", 2), of("guest", 3, 8000)
        cache.put(first)
        cache.put(second)
        assert cache.put(large) == [first]
        assert list(cache) == [second, large]

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(100, 3000)), max_size=40))
    def test_it_holds_no_more_than_it_may_and_always_the_newest(self, puts: list[tuple[str, int]]) -> None:
        cache = PrefixCache(8000)
        for number, (tenant, size) in enumerate(puts):
            new = of(tenant, number, size)
            cache.put(new)
            assert list(cache)[-1] is new
            assert cache.size_bytes == sum(each.size_bytes for each in cache) <= 8000


def of(tenant: str, number: int, state_bytes: int = 1000) -> Saved:
    """A state of a text that no other begins with."""
    plain = saved([number], state_bytes)
    return replace(plain, text=replace(plain.text, tenant=tenant))
