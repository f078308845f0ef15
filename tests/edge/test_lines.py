"""The main line and its alternates: by example, and against a model that keeps whole texts."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.acceptance import Acceptance
from ecd.edge.lines import ALTERNATE_HINTS, LEAST_CHANCE, Line, Lines
from ecd.sampling import Guess

FIRST = 10


def guesses(*tokens: int, confidence: float = 0.9, second: int | None = None) -> list[Guess]:
    return [Guess(token, confidence, second=second) for token in tokens]


def lines_with(*made: Guess) -> Lines:
    lines = Lines(FIRST, Acceptance())
    lines.main.extend(made, Acceptance())
    return lines


def unsure(token: int, second: int) -> Guess:
    return Guess(token, 0.4, second=second)


def tokens(line: Line) -> list[int]:
    return [guess.token for guess in line.guesses]


def begin_alternates(lines: Lines, limit: int = 2, worth: float = 1.0, remaining: int = 99) -> list[Line]:
    return lines.to_extend(False, limit, worth, remaining)


# --- the main line


def test_a_line_knows_where_it_ends_what_is_unsent_and_how_likely_it_is() -> None:
    line = Line(FIRST)
    assert (line.end, line.unsent, line.reach) == (FIRST, 0, 1.0)
    line.extend([Guess(1, 0.5), Guess(2, 0.9)], Acceptance())
    line.sent = 1
    assert (line.end, line.unsent) == (FIRST + 2, 1)
    assert line.reach == pytest.approx(0.45)


def test_copies_are_those_that_the_line_still_ends_with() -> None:
    acceptance, lines = Acceptance(), Lines(FIRST, Acceptance())
    copies = [Guess(token, 0.8, "lookup") for token in (2, 3, 4)]
    lines.main.extend([*guesses(1), *copies], acceptance)
    assert lines.main.copied == 3
    lines.settle(1)
    lines.settle(2)
    assert lines.main.copied == 2, "what is committed is in the record already"
    lines.unsend(1)
    assert lines.main.copied == 1
    lines.main.extend([Guess(9, 0.8, "lookup")], acceptance)
    assert lines.main.chances[-1] == acceptance.copy_rate(None, 0.8, 1)
    lines.main.extend(guesses(5), acceptance)
    assert lines.main.copied == 0


def test_a_guess_that_is_hardly_reached_is_not_worth_making() -> None:
    line = Line(FIRST)
    while line.worth_going_on(model=True):
        line.extend([Guess(1, 0.5)], Acceptance())
    assert line.reach < LEAST_CHANCE <= line.reach * 2


def test_where_nothing_can_be_copied_only_the_model_goes_on_until_a_token_comes() -> None:
    line = Line(FIRST, dry=True)
    assert line.worth_going_on(model=True)
    assert not line.worth_going_on(model=False)
    line.shift()
    assert line.worth_going_on(model=False)


def test_right_guesses_are_used_up_and_counted_from_the_fork_on() -> None:
    lines = lines_with(*guesses(1, 2, 3))
    lines.main.sent = 2
    settled = [lines.settle(token) for token in (1, 2)]
    assert [(s.place, s.right, s.switched) for s in settled] == [(0, True, False), (1, True, False)]
    assert (lines.main.first, tokens(lines.main), lines.main.sent) == (FIRST + 2, [3], 0)
    assert lines.settle(3).place == 2


def test_a_token_nobody_guessed_begins_to_count_anew() -> None:
    lines = lines_with(*guesses(1))
    lines.settle(1)
    unguessed = lines.settle(5)
    assert (unguessed.guess, unguessed.right) == (None, False)
    lines.main.extend(guesses(6), Acceptance())
    assert lines.settle(6).place == 0


def test_a_wrong_guess_ends_the_line() -> None:
    lines = lines_with(*guesses(1, 2, 3))
    lines.main.sent = 3
    old = lines.main
    lines.settle(1)
    settled = lines.settle(9)
    assert settled.guess == old.guesses[0] == guesses(2)[0]
    assert (settled.place, settled.right, settled.switched) == (1, False, False)
    assert (lines.main.first, lines.main.guesses, lines.main.sent) == (FIRST + 2, [], 0)
    assert not lines.holds(old)
    assert lines.holds(lines.main)


def test_a_new_receiver_has_seen_nothing_and_may_take_less() -> None:
    lines = lines_with(unsure(1, 7), *guesses(2, 3))
    (alternate,) = begin_alternates(lines)
    lines.main.sent = 3
    lines.unsend(2)
    assert (tokens(lines.main), len(lines.main.chances), lines.main.sent) == ([1, 2], 2, 0)
    assert not lines.holds(alternate)


def test_giving_up_leaves_an_empty_line_where_it_was() -> None:
    lines = lines_with(unsure(1, 7), *guesses(2))
    (alternate,) = begin_alternates(lines)
    old = lines.main
    lines.clear()
    assert (lines.main.first, lines.main.guesses) == (FIRST, [])
    assert not lines.holds(old)
    assert not lines.holds(alternate)


# --- alternates


def test_alternates_begin_with_the_runner_up_where_the_draft_was_unsure() -> None:
    lines = lines_with(*guesses(1, second=70), unsure(2, 8), *guesses(3, second=70))
    (alternate,) = begin_alternates(lines)
    assert (alternate.first, alternate.branch, tokens(alternate)) == (FIRST + 1, 1, [8])
    assert alternate.sent == 0
    assert begin_alternates(lines) == [alternate], "the same place has one alternate"


def test_the_most_likely_ones_are_begun_first_and_no_more_than_may_be() -> None:
    lines = lines_with(unsure(1, 7), unsure(2, 8), unsure(3, 9))
    assert [line.first - FIRST for line in begin_alternates(lines, 1)] == [0]
    assert [(line.first - FIRST, line.branch) for line in begin_alternates(lines, 2)] == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("made", "limit", "worth", "remaining"),
    [
        (guesses(1, 2, confidence=0.4), 2, 1.0, 99),
        ([unsure(1, 7)], 0, 1.0, 99),
        ([unsure(1, 7)], 2, 0.0, 99),
        ([unsure(1, 7)], 2, 0.01, 99),
        ([Guess(1, 0.99, second=7)], 2, 1.0, 99),
        ([unsure(1, 7)], 2, 1.0, 2),
    ],
    ids=["no runner-up", "none allowed", "worth nothing", "worth little", "the draft is sure", "at the end"],
)
def test_alternates_are_not_begun_in_vain(
    made: Sequence[Guess], limit: int, worth: float, remaining: int
) -> None:
    assert lines_with(*made).to_extend(False, limit, worth, remaining) == []


def test_what_is_worth_most_is_extended_and_the_rest_waits() -> None:
    lines = lines_with(*guesses(1), unsure(2, 8))
    both = lines.to_extend(True, 2, 1.0, 99)
    assert both[0] is lines.main
    assert [line.first - FIRST for line in both[1:]] == [1]
    sure = lines_with(*guesses(1), Guess(2, 0.8, second=8))
    assert sure.to_extend(True, 2, 1.0, 99) == [sure.main], "0.07 is no good share of 0.7"
    assert [line.first - FIRST for line in sure.to_extend(False, 2, 1.0, 99)] == [1], "unless that is done"


def test_an_alternate_is_extended_up_to_its_hints_or_the_end_of_the_text() -> None:
    lines = lines_with(unsure(1, 7))
    (alternate,) = begin_alternates(lines)
    for token in range(ALTERNATE_HINTS):
        assert begin_alternates(lines) == [alternate]
        alternate.extend(guesses(100 + token), Acceptance())
    assert begin_alternates(lines) == []

    short = lines_with(unsure(1, 7))
    (alternate,) = begin_alternates(short, remaining=4)
    alternate.extend(guesses(101), Acceptance())
    assert begin_alternates(short, remaining=4) == [alternate]
    alternate.extend(guesses(102), Acceptance())
    assert begin_alternates(short, remaining=4) == [], "what follows is the target's own"


def test_alternates_are_sent_with_their_first_hint_and_when_complete() -> None:
    lines = lines_with(unsure(1, 7))
    lines.main.sent = 1
    (alternate,) = begin_alternates(lines)
    assert lines.send_alternates() == []
    assert not lines.unsent(alternates=True)
    sent = []
    for token in range(ALTERNATE_HINTS):
        alternate.extend(guesses(100 + token), Acceptance())
        assert not lines.unsent(alternates=False)
        sent.append(bool(lines.send_alternates()))
        assert not lines.unsent(alternates=True)
    assert sent == [True, False, False, False, False, True]


def test_a_token_that_an_alternate_foretold_makes_it_the_main_line() -> None:
    lines = lines_with(*guesses(1), unsure(2, 8), *guesses(3))
    (alternate,) = begin_alternates(lines)
    alternate.extend(guesses(31, 32), Acceptance())
    lines.send_alternates()
    assert not lines.settle(1).switched
    settled = lines.settle(8)
    assert (settled.place, settled.right, settled.switched) == (1, False, True)
    assert lines.main is alternate
    assert (lines.main.first, tokens(lines.main), lines.main.branch) == (FIRST + 2, [31, 32], 0)
    assert lines.main.sent == 0, "the cloud may have missed it"
    assert lines.settle(31).place == 0


@pytest.mark.parametrize(("token", "kept"), [(1, 1), (9, 0)], ids=["the main line's", "another"])
def test_other_tokens_end_an_alternate(token: int, kept: int) -> None:
    lines = lines_with(unsure(1, 7), unsure(2, 8))
    first, second = begin_alternates(lines)
    lines.settle(token)
    assert not lines.holds(first)
    assert lines.holds(second) == bool(kept)


def test_a_branch_is_free_again_when_its_alternate_has_ended() -> None:
    lines = lines_with(unsure(1, 7), unsure(2, 8), unsure(3, 9))
    begin_alternates(lines)
    lines.settle(1)
    assert [(line.first - FIRST, line.branch) for line in begin_alternates(lines)] == [(1, 2), (2, 1)]


def test_how_often_the_runner_up_is_right_is_learned() -> None:
    rates = []
    for right in (True, False):
        lines = lines_with()
        before = lines.second_rate
        for _ in range(100):
            lines.main.extend([unsure(1, 7)], Acceptance())
            lines.settle(7 if right else 5)
        rates.append(lines.second_rate)
    assert rates[1] < 0.1 < before < 0.9 < rates[0]


def test_a_right_guess_says_nothing_of_the_runner_up() -> None:
    lines = lines_with(unsure(1, 7))
    before = lines.second_rate
    lines.settle(1)
    assert lines.second_rate == before


# --- against whole texts


@st.composite
def operations(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(["grow", "grow", "begin", "settle"]), st.integers(0, 3), st.integers(0, 3)
            ),
            max_size=60,
        )
    )


@given(operations())
def test_lines_are_what_whole_texts_say(script: list[tuple[str, int, int]]) -> None:
    """The model keeps each line as a whole text from position 0 and drops those the committed text leaves."""
    lines, committed = Lines(0, Acceptance()), []
    main: list[int] = []
    branches: list[tuple[Line, list[int]]] = []
    for action, number, other in script:
        match action:
            case "grow" if number == 0 or not branches:
                lines.main.extend([Guess(other, 0.5, second=(other + 1) % 4)], Acceptance())
                main.append(other)
            case "grow":
                line, text = branches[number % len(branches)]
                line.extend(guesses(other), Acceptance())
                text.append(other)
            case "begin":
                known = [line for line, _ in branches]
                for line in lines.to_extend(False, 2, 1.0, 99):
                    if line not in known:
                        branches.append((line, [*main[: line.first], (main[line.first] + 1) % 4]))
            case "settle":
                committed.append(number)
                alive = [(line, text) for line, text in branches if text[: len(committed)] == committed]
                if len(main) >= len(committed) and main[len(committed) - 1] != number:
                    main = alive[0][1] if alive else list(committed)
                    assert lines.settle(number).switched == bool(alive)
                    alive = []
                else:
                    main = main if len(main) >= len(committed) else list(committed)
                    assert not lines.settle(number).switched
                branches = [(line, text) for line, text in alive if line.first >= len(committed)]
        assert [*committed, *tokens(lines.main)] == main
        assert lines.main.first == len(committed)
        assert len(lines.main.guesses) == len(lines.main.chances)
        assert [line for line, _ in branches if not lines.holds(line)] == []
        for line, text in branches:
            assert [*main[: line.first], *tokens(line)] == text
            assert line.end == len(text)
        assert len({line.branch for line, _ in branches}) == len(branches) <= 2
        assert 0 not in {line.branch for line, _ in branches}
