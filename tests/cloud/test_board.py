"""The draft board as a conversation: what arrives, what is committed, what may be verified next."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from ecd.cloud.board import Board
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


@dataclass
class Frame:
    seen: int
    base: int
    hints: list[Hint]


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

    def edge_hears(self) -> None:
        for _ in range(self.down.popleft() if self.down else 0):
            token = self.truth[self.known]
            self.known += 1
            if self.guesses and self.guesses[0] == token:
                self.guesses.pop(0)
                self.unsent = self.unsent[-len(self.guesses) :] if self.guesses else []
            else:
                self.guesses, self.unsent = [], []

    def cloud_hears(self) -> None:
        if self.up:
            frame = self.up.popleft()
            self.board.offer(frame.seen, frame.base, frame.hints, self.truth[: self.length])

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
        text = self.edge_text()
        sent = text[: len(text) - len(self.unsent)]
        if not self.up and sent[: self.length] == self.truth[: min(self.length, len(sent))]:
            assert [h.token for h in line] == sent[self.length :], "a useful hint was lost"


EVENTS = st.sampled_from(
    ["right", "right", "right", "wrong", "send", "send", "edge", "cloud", "cloud", "step"]
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
    model.guesses, model.unsent = [], []
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
            st.lists(st.integers(0, 3), min_size=1, max_size=4),
        ),
        max_size=60,
    ),
)
def test_garbage_never_raises_and_never_piles_up(max_ahead: int, events: Sequence[object]) -> None:
    talk = Talk([1, 2], max_ahead)
    offered = 0
    for event in events:
        if isinstance(event, tuple):
            talk.offer(event[0], event[1], *event[2])
            offered += len(event[2])
        else:
            assert isinstance(event, list)
            talk.commit(*event)
        assert len(talk.board.line) <= max_ahead
        assert len(talk.board.take(99)) <= max_ahead
        assert -1 <= talk.board.fork < talk.board.length
        assert talk.board.dropped <= offered
