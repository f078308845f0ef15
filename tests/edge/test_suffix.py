"""The suffix automaton against a search that tries every suffix at every place."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.suffix import Repeat, SuffixAutomaton

# Few different tokens make many repeats.
texts = st.lists(st.integers(0, 2), max_size=40)


def automaton(text: Sequence[int]) -> SuffixAutomaton:
    built = SuffixAutomaton()
    for token in text:
        built.extend(token)
    return built


def searched(text: list[int], further: list[int]) -> Repeat:
    """The longest suffix of text + further that ends earlier and inside the text, at the first such place."""
    whole = text + further
    for length in range(len(whole) - 1, 0, -1):
        for end in range(length, min(len(text), len(whole) - 1) + 1):
            if text[end - length : end] == whole[len(whole) - length :]:
                return Repeat(length, end)
    return Repeat(0, 0)


@given(texts, st.lists(st.integers(0, 3), max_size=8))
def test_finds_what_a_search_finds(text: list[int], further: list[int]) -> None:
    assert automaton(text).repeat(further) == searched(text, further)


@given(texts)
def test_growing_and_asking_in_turn_is_the_same_as_growing_first(text: list[int]) -> None:
    grown = SuffixAutomaton()
    for count, token in enumerate(text, 1):
        grown.extend(token)
        assert len(grown) == count
        assert grown.repeat() == searched(text[:count], [])


@given(texts, texts)
def test_asking_about_further_tokens_adds_none(text: list[int], further: list[int]) -> None:
    asked = automaton(text)
    before = asked.repeat()
    asked.repeat(further)
    assert asked.repeat() == before
    assert len(asked) == len(text)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=200))
def test_memory_is_bounded_by_the_text(text: list[int]) -> None:
    built = automaton(text)
    assert len(built._next) <= 2 * len(text)
    assert sum(map(len, built._next)) <= 3 * len(text)


def test_an_empty_text_repeats_nothing() -> None:
    assert SuffixAutomaton().repeat() == Repeat(0, 0)
    assert SuffixAutomaton().repeat([1, 2, 1, 2]) == Repeat(0, 0)


def test_the_first_of_two_earlier_places_is_told() -> None:
    assert automaton([1, 2, 9, 1, 2, 8, 1, 2]).repeat() == Repeat(2, 2)
