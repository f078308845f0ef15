"""Copied runs: what is found, what is never remembered."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.drafter import DraftTask
from ecd.edge.lookup_drafter import LookupDrafter, confidence
from ecd.sampling import DraftDistribution, Guess, Rule, Sampling

GREEDY = Sampling()
REJECTION = Sampling(rule=Rule.REJECTION, temperature=1.0)


def drafter() -> LookupDrafter:
    return LookupDrafter(slots=2, branches=2, slot_tokens=4096)


def task(
    context: list[int], committed: int | None = None, *, slot: int = 0, branch: int = 0, at_most: int = 16
) -> DraftTask:
    known = len(context) if committed is None else committed
    return DraftTask(slot, branch, context, 1, known, GREEDY, at_most)


def ids(run: tuple[Guess, ...]) -> list[int]:
    return [guess.token for guess in run]


def drafted(lookup: LookupDrafter, *tasks: DraftTask) -> list[list[int]]:
    return [ids(run) for run in lookup.draft(tasks)]


def test_what_followed_before_is_guessed_again() -> None:
    (run,) = drafter().draft([task([1, 2, 3, 4, 5, 6, 9, 1, 2, 3])])
    assert ids(run) == [4, 5, 6, 9, 1, 2, 3]
    assert {guess.drafter for guess in run} == {"lookup"}
    assert [guess.confidence for guess in run[:2]] == [confidence(3), confidence(4)]


def test_a_repeat_of_two_tokens_is_too_short() -> None:
    assert drafted(drafter(), task([1, 2, 3, 4, 9, 2, 3])) == [[]]


def test_no_more_than_asked_for() -> None:
    assert drafted(drafter(), task([1, 2, 3, 4, 5, 6, 1, 2, 3], at_most=2)) == [[4, 5]]


def test_nothing_is_copied_where_only_the_model_may_guess_and_the_text_is_learned_all_the_same() -> None:
    lookup, first = drafter(), task([1, 2, 3, 4, 5, 6, 1, 2, 3])
    assert drafted(lookup, replace(first, copies=False)) == [[]]
    assert drafted(lookup, first) == [[4, 5, 6, 1, 2, 3]]


def test_guesses_carry_the_match_on() -> None:
    text = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3]
    (run,) = drafter().draft([task([*text, 4, 5], len(text), at_most=1)])
    assert ids(run) == [6]
    assert run[0].confidence == confidence(5)


def test_a_guess_that_came_out_wrong_is_not_remembered() -> None:
    lookup = drafter()
    text = [1, 2, 3, 9]
    lookup.draft([task([*text, 5, 6, 7, 8], len(text))])
    # 5, 6, 7 were never committed, so that a text that says them now says them for the first time.
    assert drafted(lookup, task([*text, 4, 5, 6, 7])) == [[]]


def test_branches_share_the_committed_text_and_nothing_else() -> None:
    text = [1, 2, 3, 4, 9, 5, 6, 7, 8, 0, 3]
    main = task([*text, 1, 2, 3], len(text), at_most=1)
    other = task([*text, 5, 6, 7], len(text), branch=1, at_most=1)
    assert drafted(drafter(), main, other) == [[4], [8]]


def test_slots_know_nothing_of_each_other() -> None:
    assert drafted(drafter(), task([1, 2, 3, 4]), task([0, 1, 2, 3], slot=1)) == [[], []]


@pytest.mark.parametrize("forget", [lambda d: d.release(0), lambda d: d.close()])
def test_a_released_slot_starts_anew(forget: Callable[[LookupDrafter], None]) -> None:
    lookup = drafter()
    lookup.draft([task([1, 2, 3, 4, 5])])
    forget(lookup)
    assert drafted(lookup, task([7, 1, 2, 3])) == [[]]


def test_under_the_rejection_rule_a_copied_token_is_certain() -> None:
    context = [1, 2, 3, 4, 1, 2, 3]
    (run,) = drafter().draft([DraftTask(0, 0, context, 1, len(context), REJECTION)])
    assert run[0].q == DraftDistribution((4,), (255,))
    assert drafter().draft([task(context)])[0][0].q is None


@given(
    text=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    steps=st.lists(st.tuples(st.integers(0, 8), st.lists(st.integers(0, 2), max_size=5)), max_size=12),
)
def test_the_way_to_a_text_makes_no_difference(text: list[int], steps: list[tuple[int, list[int]]]) -> None:
    """However the text grew and whatever was guessed meanwhile, the answer is a new drafter's."""
    lookup, committed = drafter(), 0
    for growth, guesses in [*steps, (len(text), [])]:
        committed = min(len(text), committed + growth)
        asked = task([*text[:committed], *guesses], committed)
        assert lookup.draft([asked]) == drafter().draft([asked])
