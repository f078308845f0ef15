"""The draft board as a conversation: what arrives, what is committed, what may be verified next."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from ecd.cloud.board import MAX_ALTERNATES, Board
from ecd.sampling import Hint


@dataclass
class Talk:
    """A board and the text it belongs to: a prompt of four tokens and what was committed since."""

    tokens: list[int] = field(default_factory=lambda: [90, 91, 92, 93])
    max_ahead: int = 8

    def __post_init__(self) -> None:
        self.board = Board(len(self.tokens), self.max_ahead)

    def offer(self, seen: int, base: int, *ids: int) -> "Talk":
        self.board.offer(seen, base, [Hint(i) for i in ids], self.tokens)
        return self

    def branch(self, seen: int, position: int, *ids: int) -> "Talk":
        self.board.offer_alternate(seen, position, [Hint(i) for i in ids], self.tokens)
        return self

    def commit(self, *ids: int) -> "Talk":
        self.tokens.extend(ids)
        self.board.advance(ids)
        assert self.board.length == len(self.tokens)
        return self

    def line(self, at_most: int = 99) -> list[int]:
        return [hint.token for hint in self.board.take(at_most)]


def test_hints_are_taken_in_order_and_stay_until_settled() -> None:
    talk = Talk().offer(4, 4, 1, 2).offer(4, 6, 3)
    assert talk.line(2) == [1, 2]
    assert talk.line() == [1, 2, 3]
    assert talk.line(0) == talk.line(-1) == []
    assert talk.commit(1, 2).line() == [3]
    assert talk.board.dropped == 0


def test_a_wrong_hint_takes_the_rest_with_it() -> None:
    talk = Talk().offer(4, 4, 1, 2, 3).commit(1, 7)
    assert talk.line() == []
    assert talk.board.dropped == 2
    assert talk.board.fork == 5


def test_hints_drafted_before_the_fork_was_known_are_stale() -> None:
    talk = Talk().offer(4, 4, 1, 2).commit(1, 7)
    assert talk.offer(4, 6, 3).offer(5, 6, 3).line() == []
    assert talk.offer(6, 6, 4, 5).line() == [4, 5], "drafted in sight of the fork"


def test_a_redraft_after_a_fork_is_taken_although_it_comes_late() -> None:
    talk = Talk().offer(4, 4, 1, 2).commit(7).commit(8)
    assert talk.offer(5, 5, 8, 9, 10).line() == [9, 10]


def test_late_hints_count_from_where_they_still_matter() -> None:
    talk = Talk().commit(1, 2)
    assert talk.offer(4, 4, 1, 2, 3, 4).line() == [3, 4]
    assert talk.board.dropped == 0
    assert Talk().commit(1, 2, 3).offer(4, 4, 1).line() == []


def test_a_late_hint_that_was_wrong_is_a_fork_for_what_follows_it() -> None:
    talk = Talk().commit(1, 2)
    assert talk.offer(4, 4, 1, 7, 3, 4).line() == []
    assert (talk.board.fork, talk.board.dropped) == (5, 4)
    assert talk.offer(4, 8, 5).line() == []
    assert talk.offer(5, 6, 5).line() == []
    assert talk.offer(6, 6, 5).line() == [5]


def test_duplicates_change_nothing() -> None:
    talk = Talk().offer(4, 4, 1, 2).offer(4, 6, 3).offer(4, 6, 3)
    assert talk.line() == [1, 2, 3]
    talk.commit(1, 2, 3, 4)
    assert talk.offer(4, 4, 1, 2).offer(4, 6, 3).line() == []
    assert talk.board.fork == -1


def test_reordered_hints_leave_a_gap_that_nothing_fills() -> None:
    talk = Talk().offer(4, 6, 3)
    assert talk.line() == []
    assert talk.board.dropped == 1
    assert talk.offer(4, 4, 1, 2).line() == [1, 2]
    assert talk.offer(4, 6, 3).line() == [1, 2, 3]


def test_contradicting_hints_the_last_word_counts() -> None:
    talk = Talk().offer(4, 4, 1, 2, 3).offer(4, 5, 7)
    assert talk.line() == [1, 7]


def test_hints_from_the_future_are_refused() -> None:
    talk = Talk().offer(5, 5, 1).offer(9, 4, 1).offer(1 << 31, 1 << 31, 1)
    assert talk.line() == []
    assert talk.board.dropped == 3


def test_hints_for_what_the_edge_knew_already_are_refused() -> None:
    talk = Talk().commit(1, 2)
    assert talk.offer(6, 4, 1, 2, 3).line() == []
    assert talk.board.dropped == 3


def test_the_board_holds_no_more_than_max_ahead() -> None:
    talk = Talk(max_ahead=3).offer(4, 4, 1, 2, 3, 4, 5)
    assert talk.line() == [1, 2, 3]
    assert talk.board.dropped == 2
    for _ in range(100):
        talk.offer(4, 4, *range(1, 200)).offer(4, 7, 4)
    assert talk.line() == [1, 2, 3]
    assert talk.commit(1).offer(4, 7, 4, 5).line() == [2, 3, 4]
    assert Talk(max_ahead=3).commit(1, 2).offer(4, 4, 1, 2, 3, 4, 5, 6).line() == [3, 4, 5]


def test_no_hints_at_all_means_that_none_will_come() -> None:
    talk = Talk()
    assert not talk.board.exhausted
    assert talk.offer(4, 4).board.exhausted
    assert not talk.offer(4, 4, 1).board.exhausted
    assert not Talk().offer(9, 9).board.exhausted, "a refused DRAFT says nothing"
    forked = Talk().offer(4, 4, 1).commit(2)
    assert not forked.offer(4, 4).board.exhausted, "nor does a stale one"
    assert forked.offer(5, 5).board.exhausted


# --- alternates


def test_a_branch_becomes_the_line_when_the_text_goes_its_way() -> None:
    talk = Talk().offer(4, 4, 1, 2, 3).branch(4, 5, 7, 8, 9).commit(1, 7)
    assert talk.line() == [8, 9]
    assert (talk.board.fork, talk.board.alternates_used, talk.board.dropped) == (5, 1, 2)
    assert talk.commit(8, 5).line() == []
    assert talk.board.fork == 7


def test_a_branch_stands_where_there_is_no_line() -> None:
    assert Talk().branch(4, 4, 7, 8).commit(7).line() == [8]
    assert Talk().offer(4, 4, 1).branch(4, 5, 7, 8).commit(1, 7).line() == [8]


def test_a_branch_that_the_text_passed_is_forgotten() -> None:
    talk = Talk().offer(4, 4, 1, 2, 3).branch(4, 4, 7, 8).branch(4, 5, 7, 8)
    assert talk.commit(1).line() == [2, 3]
    assert list(talk.board.alternates) == [(5, 7)]
    assert talk.commit(6).line() == []
    assert not talk.board.alternates


def test_a_fork_before_a_branch_makes_it_void() -> None:
    talk = Talk().offer(4, 4, 1, 2, 3).branch(4, 6, 7, 8).commit(1, 5, 7)
    assert talk.line() == []
    assert talk.branch(4, 6, 7, 8, 9).line() == [], "sent before the fork was known"


def test_several_branches_at_one_position() -> None:
    talk = Talk().offer(4, 4, 1).branch(4, 4, 7, 8).branch(4, 4, 6, 5)
    assert talk.commit(6).line() == [5]


def test_the_newer_of_two_equal_branches_counts() -> None:
    talk = Talk().offer(4, 4, 1).branch(4, 4, 7, 8).branch(4, 4, 7, 9)
    assert talk.commit(7).line() == [9]


def test_the_oldest_branch_goes_when_there_are_too_many() -> None:
    talk = Talk()
    for first in range(MAX_ALTERNATES + 1):
        talk.branch(4, 4, first, 9)
    assert [first for _, first in talk.board.alternates] == list(range(1, MAX_ALTERNATES + 1))


def test_a_branch_needs_the_line_that_it_leaves() -> None:
    talk = Talk().offer(4, 4, 1).branch(4, 6, 7, 8)
    assert not talk.board.alternates
    talk.branch(4, 5, 7, 8)
    assert list(talk.board.alternates) == [(5, 7)]


def test_a_line_that_changes_leaves_the_branches_before_the_change() -> None:
    talk = Talk().offer(4, 4, 1, 2, 3).branch(4, 4, 7, 8).branch(4, 5, 7, 8).branch(4, 6, 7, 8)
    assert list(talk.offer(4, 5, 2, 3, 4).board.alternates) == [(4, 7), (5, 7), (6, 7)]
    assert list(talk.offer(4, 5, 6, 3, 4).board.alternates) == [(4, 7), (5, 7)]
    assert list(talk.offer(4, 4, 1).board.alternates) == [(4, 7), (5, 7)]
    assert list(talk.offer(4, 4, 2).board.alternates) == [(4, 7)]


def test_what_continues_the_old_line_stays_stale_after_a_switch() -> None:
    talk = Talk().offer(4, 4, 1, 2).branch(4, 4, 7, 8, 9).commit(7)
    assert talk.offer(4, 6, 3).offer(4, 4, 1, 2, 3).line() == [8, 9]
    assert talk.branch(4, 6, 3, 3).board.alternates == {}
    assert talk.offer(5, 7, 3).line() == [8, 9, 3], "it has heard and draws the branch out"
    assert talk.offer(5, 5, 8, 9, 3, 2).line() == [8, 9, 3, 2], "or sends it again"


def test_a_branch_may_come_after_its_fork() -> None:
    talk = Talk().offer(4, 4, 1, 2).commit(7, 8)
    assert talk.branch(4, 4, 7, 8, 9, 3).line() == [9, 3]
    assert (talk.board.fork, talk.board.alternates_used) == (4, 1)


def test_a_branch_may_come_where_the_line_never_arrived() -> None:
    talk = Talk().commit(7, 8).branch(4, 4, 7, 8, 9)
    assert talk.line() == [9]
    assert talk.offer(4, 4, 1, 2).line() == [9], "the line that it left"


def test_a_late_branch_is_refused_where_it_is_wrong_or_used_up_or_not_the_newest() -> None:
    assert Talk().offer(4, 4, 1).commit(7, 8).branch(4, 4, 7, 5, 9).line() == []
    assert Talk().offer(4, 4, 1).commit(7, 8).branch(4, 4, 7, 8).line() == []
    assert Talk().offer(4, 4, 1).commit(7, 8).offer(6, 6, 3).branch(4, 4, 7, 8, 9).line() == [3]


def test_a_late_branch_is_void_when_its_line_had_forked_before() -> None:
    talk = Talk().offer(4, 4, 1, 2, 3).commit(5).offer(5, 5, 6, 6).commit(7, 8)
    assert (talk.board.fork_before, talk.board.fork) == (4, 5)
    assert talk.branch(4, 5, 7, 8, 9).line() == []
    assert talk.branch(5, 5, 7, 8, 9).line() == [9]


def test_branches_from_the_future_or_the_known_past_are_refused() -> None:
    talk = Talk().commit(1, 2)
    for seen, position in ((7, 7), (6, 5), (1 << 31, 1 << 31), (4, 1 << 31)):
        talk.branch(seen, position, 2, 7)
    assert (talk.line(), talk.board.alternates) == ([], {})


def test_a_branch_holds_no_more_than_the_board() -> None:
    talk = Talk(max_ahead=3).offer(4, 4, 1).branch(4, 4, 7, *range(20))
    assert talk.commit(7).line() == [0, 1, 2]
    late = Talk(max_ahead=3).commit(7).branch(4, 4, 7, *range(20))
    assert late.line() == [0, 1, 2]


@dataclass
class Frame:
    seen: int
    base: int
    hints: list[Hint]
    branch: tuple[int, list[Hint]] | None = None


class Model:
    """A truthful edge that drafts ahead, a link that keeps order, and a cloud whose text is fixed."""

    def __init__(self, ahead: int, max_ahead: int, first: int) -> None:
        self.truth = [n * n % 5 for n in range(400)]
        self.known = self.length = first
        self.ahead = ahead
        self.guesses: list[int] = []
        self.unsent: list[Hint] = []
        self.drafted_in: dict[int, tuple[int, ...]] = {}
        self.kept: list[Hint] = []
        self.branches: dict[tuple[int, int], list[Hint]] = {}
        self.up: deque[Frame] = deque()
        self.down: deque[int] = deque()
        self.board = Board(first, max_ahead)

    def edge_text(self) -> list[int]:
        return [*self.truth[: self.known], *self.guesses]

    def draft(self, *, right: bool) -> None:
        if len(self.guesses) >= self.ahead:
            return
        text = self.edge_text()
        hint = Hint(self.truth[len(text)] if right else 9)
        self.kept.append(hint)
        self.drafted_in[id(hint)] = tuple(text)
        self.guesses.append(hint.token)
        self.unsent.append(hint)

    def send(self) -> None:
        if self.unsent:
            self.up.append(Frame(self.known, len(self.edge_text()) - len(self.unsent), self.unsent))
            self.unsent = []

    def branch_off(self, offset: int, length: int) -> None:
        """A second choice beside a guess, right where the guess is wrong, and what would follow it."""
        if not self.guesses:
            return
        self.send()
        text = self.edge_text()
        position = self.known + offset % len(self.guesses)
        first = self.truth[position] if text[position] == 9 else 8
        ids = [first, *self.truth[position + 1 : position + 1 + length], 7]
        branch = [Hint(i) for i in ids]
        self.kept += branch
        for index, hint in enumerate(branch):
            self.drafted_in[id(hint)] = (*text[:position], *ids[:index])
        self.branches.pop((position, first), None)
        self.branches[position, first] = branch
        self.up.append(Frame(self.known, position, [], (position, branch)))

    def edge_hears(self) -> None:
        for _ in range(self.down.popleft() if self.down else 0):
            token = self.truth[self.known]
            self.known += 1
            if self.guesses and self.guesses[0] == token:
                self.guesses.pop(0)
                self.unsent = self.unsent[-len(self.guesses) :] if self.guesses else []
            else:
                branch = self.branches.get((self.known - 1, token)) if self.guesses else None
                self.guesses, self.unsent, self.branches = [], [], {}
                if branch is not None:
                    self.guesses, self.unsent = [hint.token for hint in branch[1:]], branch[1:]
                    self.send()

    def cloud_hears(self) -> None:
        if self.up:
            frame = self.up.popleft()
            committed = self.truth[: self.length]
            if frame.branch is None:
                self.board.offer(frame.seen, frame.base, frame.hints, committed)
            else:
                self.board.offer_alternate(frame.seen, *frame.branch, committed)

    def step(self, at_most: int) -> None:
        taken = self.board.take(at_most)
        accepted = 0
        while accepted < len(taken) and taken[accepted].token == self.truth[self.length + accepted]:
            accepted += 1
        self.board.advance(self.truth[self.length : self.length + accepted + 1])
        self.length += accepted + 1
        self.down.append(accepted + 1)

    def check(self) -> None:
        assert self.board.length == self.length
        line = self.board.take(10_000)
        assert len(line) <= self.board.max_ahead
        for index, hint in enumerate(line):
            context = [*self.truth[: self.length], *(h.token for h in line[:index])]
            assert list(self.drafted_in[id(hint)]) == context, (
                "drafted in another text than the one it continues"
            )
        for (position, first), branch in self.board.alternates.items():
            assert self.length <= position <= self.length + len(line)
            assert branch[0].token == first
            before = [*self.truth[: self.length], *(h.token for h in line[: position - self.length])]
            for index, hint in enumerate(branch):
                assert list(self.drafted_in[id(hint)]) == [*before, *(h.token for h in branch[:index])]
        text = self.edge_text()
        sent = text[: len(text) - len(self.unsent)]
        if not self.up and sent[: self.length] == self.truth[: min(self.length, len(sent))]:
            assert [h.token for h in line] == sent[self.length :], "a useful hint was lost"
            useful = {key for key in self.branches if key[0] >= self.length}
            kept = set(self.board.alternates)
            assert useful <= kept or len(self.branches) > MAX_ALTERNATES, "a useful branch was lost"


EVENTS = st.sampled_from(
    ["right", "right", "right", "wrong", "send", "send", "branch", "branch", "edge", "cloud", "cloud", "step"]
)


@settings(max_examples=400, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(0, 4),
    st.integers(1, 5),
    st.lists(st.tuples(EVENTS, st.integers(0, 5)), max_size=120),
)
def test_every_useful_hint_is_kept_and_no_other(
    ahead: int, spare: int, first: int, events: Sequence[tuple[str, int]]
) -> None:
    model = Model(ahead, ahead + spare, first)
    for event, number in events:
        match event:
            case "right" | "wrong":
                model.draft(right=event == "right")
            case "send":
                model.send()
            case "branch":
                model.branch_off(number, number % 3)
            case "edge":
                model.edge_hears()
            case "cloud":
                model.cloud_hears()
            case "step" if model.length < 300:
                model.step(number)
        model.check()
    # Once everything has arrived, a right line of full length is there to the last hint.
    model.send()
    while model.up or model.down:
        model.cloud_hears()
        model.edge_hears()
    model.guesses, model.unsent, model.branches = [], [], {}
    model.step(0)
    model.edge_hears()
    for _ in range(ahead):
        model.draft(right=True)
    model.send()
    model.cloud_hears()
    model.check()
    assert len(model.board.take(99)) == ahead


NUMBER = st.one_of(st.integers(0, 30), st.sampled_from([(1 << 32) - 1, 1 << 31]))


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(
        st.one_of(
            st.tuples(NUMBER, NUMBER, st.lists(st.integers(0, 3), max_size=20)),
            st.tuples(st.just("branch"), NUMBER, NUMBER, st.lists(st.integers(0, 3), max_size=20)),
            st.lists(st.integers(0, 3), min_size=1, max_size=4),
        ),
        max_size=60,
    ),
)
def test_garbage_never_raises_and_never_piles_up(max_ahead: int, events: Sequence[object]) -> None:
    talk = Talk([1, 2], max_ahead)
    offered = 0
    for event in events:
        if isinstance(event, tuple) and len(event) == 4:
            talk.branch(event[1], event[2], *event[3])
            offered += len(event[3])
        elif isinstance(event, tuple):
            talk.offer(event[0], event[1], *event[2])
            offered += len(event[2])
        else:
            assert isinstance(event, list)
            talk.commit(*event)
        assert len(talk.board.line) <= max_ahead
        assert len(talk.board.take(99)) <= max_ahead
        assert -1 <= talk.board.fork_before <= talk.board.fork < talk.board.length
        assert len(talk.board.alternates) <= MAX_ALTERNATES
        assert all(len(branch) <= max_ahead + 1 for branch in talk.board.alternates.values())
        assert all(
            talk.board.length <= position <= talk.board.length + len(talk.board.line)
            for position, _ in talk.board.alternates
        )
        assert talk.board.dropped <= offered
