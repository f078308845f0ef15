"""What a drafter is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.drafter import Context

INDEX = st.none() | st.integers(-12, 12)
TOKENS = st.lists(st.integers(0, 9), max_size=6)


@given(TOKENS, TOKENS, TOKENS, INDEX, INDEX)
def test_a_context_reads_like_a_list_of_its_own(
    text: list[int], later: list[int], guesses: list[int], start: int | None, stop: int | None
) -> None:
    """Whatever is appended to the text after it was made."""
    context = Context(text, len(text), tuple(guesses))
    whole = [*text, *guesses]
    text.extend(later)
    assert len(context) == len(whole)
    assert list(context) == whole
    assert context[start:stop] == whole[start:stop]
    assert [context[i] for i in range(-len(whole), len(whole))] == [*whole, *whole]


@pytest.mark.parametrize("index", [3, -4])
def test_outside_there_is_nothing(index: int) -> None:
    with pytest.raises(IndexError):
        Context([1, 2, 3, 4], 2, (3,))[index]


def test_a_context_has_no_steps() -> None:
    with pytest.raises(ValueError, match="steps"):
        Context([1, 2], 2)[::2]
