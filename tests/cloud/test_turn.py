"""Sessions that the edge commits to: whose turn it is, what is refused and compared, who keeps a place."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.cloud.batcher import Batcher
from ecd.cloud.session import Audited, Committed, Session, Step, Vocabulary
from ecd.cloud.verifier import Capacity, Judged, StepResult
from ecd.errors import BadRequest
from ecd.sampling import Hint, Verdict
from ecd.wire.messages import Commit, Draft, Finish, Open, Origin, Pace

PROMPT = (1, 2, 3)
VOCABULARY = Vocabulary(200, frozenset({0}), lambda token: bytes([token]))


def opened(limit: int | None = 3, **changes: Any) -> Session:
    given = {
        "committed": (),
        "sampling": {},
        "max_tokens": 10,
        "stop": (),
        "pace": Pace(0, 1),
        "limit": limit,
    }
    return Session.of(Open(1, None, 0, PROMPT, **(given | changes)), VOCABULARY, 8, 0.0)


def commit(base: int, *ids: int, limit: int, audit: int = 0) -> Commit:
    return Commit(1, base, ids, Origin.EDGE_CONFIDENT, limit, audit)


def read(session: Session) -> Session:
    """The prompt has been read ahead."""
    session.begin(0, 4)
    assert session.judged(Verdict((99,), 0), 0, 0.0) == []
    return session


def test_in_the_edges_turn_the_prompt_is_read_and_nothing_committed() -> None:
    session = opened()
    assert session.remaining == 0
    assert session.ready_at() == -math.inf
    tokens, hints = session.begin(0, 4)
    assert (tokens, hints, session.step) == (list(PROMPT), [], Step.READING)
    assert tokens is not session.tokens, "tokens may come while it is being read"
    assert session.judged(Verdict((99,), 0), 0, 0.0) == []
    assert session.tokens == list(PROMPT)
    assert session.idle
    assert session.ready_at() == math.inf


def test_a_hand_over_lets_the_cloud_go_as_far_as_the_limit() -> None:
    session = read(opened())
    session.take(commit(3, 11, 12, limit=7))
    assert (session.tokens, session.remaining) == ([1, 2, 3, 11, 12], 2)
    session.decoding = True
    session.hint(Draft(1, 5, 5, (21, 22, 23)))
    assert len(session.hinted(8).chances) == 1, "one less than it may commit"
    tokens, hints = session.begin(1, 4)
    assert (tokens, [hint.token for hint in hints]) == (session.tokens, [21])
    assert session.judged(Verdict((21, 33), 1), 1, 0.0) == [Committed(5, (21, 33), 1, 1, Finish.NONE)]
    assert session.idle


def test_what_the_engine_held_when_the_session_began_is_told_with_the_first_token() -> None:
    session = opened()
    session.begin(0, 4)
    assert session.judged(Verdict((99,), 0), 0, 0.0, cached=2) == []
    session.take(commit(3, 11, 12, limit=9, audit=2))
    session.begin(0, 4)
    # What it holds by now is the session's own.
    told = session.judged(Verdict((11, 12, 21), 2), 2, 0.0, cached=4)
    assert told == [Audited(3, (True, True), 0), Committed(5, (21,), 0, 0, Finish.NONE, cached=2)]
    session.begin(0, 4)
    assert session.judged(Verdict((22,), 0), 0, 0.0, cached=4) == [Committed(6, (22,), 0, 0, Finish.NONE)]


def test_the_limit_moves_in_the_clouds_turn_too_and_never_back() -> None:
    session = opened(limit=5)
    session.take(commit(3, limit=8))
    assert session.remaining == 5
    with pytest.raises(BadRequest, match="moves the limit back from 8 to 7"):
        session.take(commit(3, limit=7))


@pytest.mark.parametrize(
    ("limit", "given", "reason"),
    [
        (None, commit(3, 11, limit=4), "opened without a limit"),
        (4, commit(3, 11, limit=5), "COMMIT of 1 ids at 3, with 3 committed and the cloud's end at 4"),
        (3, commit(2, 11, limit=5), "COMMIT of 1 ids at 2, with 3 committed"),
        (3, commit(4, 11, limit=5), "COMMIT of 1 ids at 4, with 3 committed"),
        (3, commit(3, 200, limit=5), "token id 200 is not in the vocabulary of 200"),
        (3, commit(3, *range(1, 12), limit=20), "goes beyond max_tokens 10"),
        (3, commit(3, 11, limit=5, audit=2), "COMMIT of 1 ids asks for an audit of 2"),
        (3, commit(3, limit=5, audit=1), "COMMIT of 0 ids asks for an audit of 1"),
    ],
    ids=lambda value: None if not isinstance(value, str) else value[:30],
)
def test_a_commit_that_is_not_in_order_is_refused_and_changes_nothing(
    limit: int | None, given: Commit, reason: str
) -> None:
    session = opened(limit)
    with pytest.raises(BadRequest, match=reason):
        session.take(given)
    assert session.tokens == list(PROMPT)
    assert session.turn.limit == limit
    assert not session.turn.audits


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"sampling": {"rule": "rejection"}}, "rule rejection"), ({"logprobs": 0}, "logprobs")],
    ids=["rejection", "logprobs"],
)
def test_what_the_edge_cannot_do_is_not_opened_with_a_limit(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        opened(**changes)
    opened(limit=None, **changes)


def test_a_text_that_the_edge_has_filled_is_not_gone_on_with() -> None:
    session = read(opened(max_tokens=2))
    session.take(commit(3, 11, 12, limit=9))
    assert session.idle


def test_a_stop_text_may_begin_in_the_edges_tokens() -> None:
    session = read(opened(stop=("abc",)))
    session.take(commit(3, 97, 98, limit=6))
    session.begin(0, 4)
    (committed,) = session.judged(Verdict((99,), 0), 0, 0.0)
    assert isinstance(committed, Committed)
    assert committed.finish is Finish.STOP


class TestAudits:
    def test_are_verified_as_hints_and_end_with_the_clouds_own_token_where_it_goes_on(self) -> None:
        session = read(opened())
        session.take(commit(3, 11, 12, limit=6, audit=2))
        assert session.ready_at() == -math.inf
        tokens, hints = session.begin(0, 4)
        assert (tokens, hints) == ([1, 2, 3], [Hint(11), Hint(12)])
        assert session.judged(Verdict((11, 12, 50), 2), 2, 0.0) == [
            Audited(3, (True, True), 0),
            Committed(5, (50,), 0, 0, Finish.NONE),
        ]
        assert session.tokens == [1, 2, 3, 11, 12, 50]

    def test_go_on_behind_what_disagrees_and_take_nothing_back(self) -> None:
        session = read(opened())
        session.take(commit(3, 11, 12, 13, limit=7, audit=3))
        session.begin(0, 4)
        assert session.judged(Verdict((11, 77), 1), 3, 0.0) == [Audited(3, (True, False), 1)]
        assert session.begin(0, 4) == ([1, 2, 3, 11, 12], [Hint(13)])
        assert session.judged(Verdict((88,), 0), 1, 0.0) == [Audited(5, (False,), 1)]
        assert session.tokens == [1, 2, 3, 11, 12, 13]
        assert session.begin(0, 4) == (session.tokens, [])
        assert session.step is Step.OWN

    def test_in_the_edges_turn_the_last_is_compared_with_what_the_target_says_by_itself(self) -> None:
        session = read(opened())
        session.take(commit(3, 11, 12, limit=3, audit=2))
        assert session.begin(0, 4) == ([1, 2, 3], [Hint(11)])
        assert session.judged(Verdict((11, 12), 1), 1, 0.0) == [Audited(3, (True, True), 1)]
        assert session.idle
        assert session.tokens == [1, 2, 3, 11, 12]

    def test_take_no_more_hints_than_a_step_may_verify(self) -> None:
        session = read(opened())
        session.take(commit(3, 11, 12, 13, 14, limit=3, audit=3))
        assert session.begin(0, 1) == ([1, 2, 3, 11], [Hint(12)])
        assert session.judged(Verdict((12, 13), 1), 1, 0.0) == [Audited(4, (True, True), 1)]
        assert session.begin(0, 0) == ([1, 2, 3, 11, 12, 13], [])
        assert session.judged(Verdict((14,), 0), 0, 0.0) == [Audited(6, (True,), 1)]

    def test_come_in_order_though_more_tokens_came_meanwhile(self) -> None:
        session = opened()
        session.take(commit(3, 11, limit=3, audit=1))
        session.begin(0, 4)
        session.take(commit(4, 12, 13, limit=3, audit=1))
        assert session.judged(Verdict((11,), 0), 0, 0.0) == [Audited(3, (True,), 1)]
        assert session.begin(0, 4) == ([1, 2, 3, 11, 12], [])
        assert session.judged(Verdict((9,), 0), 0, 0.0) == [Audited(5, (False,), 1)]

    def test_tokens_that_came_while_the_text_was_read_are_not_mistaken_for_the_targets(self) -> None:
        session = opened()
        session.begin(0, 4)
        session.take(commit(3, 11, limit=5, audit=1))
        assert session.judged(Verdict((99,), 0), 0, 0.0) == []
        assert session.begin(0, 4) == ([1, 2, 3], [Hint(11)])


COMMITS = st.builds(
    Commit,
    st.just(1),
    st.integers(0, 12),
    st.lists(st.integers(0, 210), max_size=4).map(tuple),
    st.just(Origin.EDGE_CONFIDENT),
    st.integers(0, 16),
    st.integers(0, 4),
)


@given(st.integers(0, 14), st.lists(COMMITS | st.integers(0, 3), max_size=30))
def test_whatever_an_edge_says_each_position_is_committed_once_and_by_its_owner(
    limit: int, events: list[Commit | int]
) -> None:
    """Numbers are steps that accept so many hints."""
    session, owners = opened(limit, max_tokens=9), list[str]()
    for event in events:
        before, ends = list(session.tokens), session.turn.limit
        assert ends is not None
        if isinstance(event, Commit):
            try:
                session.take(event)
            except BadRequest:
                assert (session.tokens, session.turn.limit) == (before, ends)
                continue
            owners += ["edge"] * len(event.ids)
            assert not event.ids or (event.base == len(before) >= ends)
            assert session.turn.limit == event.limit >= ends
        elif not session.idle:
            _, hints = session.begin(event, 4)
            agreed = min(event, len(hints))
            verdict = Verdict((*(hint.token for hint in hints[:agreed]), 199), agreed)
            for told in session.judged(verdict, len(hints), 0.0):
                if isinstance(told, Committed):
                    owners += ["cloud"] * len(told.ids)
                    assert len(session.tokens) <= ends
                    if told.finish is not Finish.NONE:
                        return
                else:
                    positions = range(told.base, told.base + len(told.agreed))
                    assert all(owners[at - len(PROMPT)] == "edge" for at in positions)
            assert session.tokens[: len(before)] == before
        assert len(session.tokens) == len(PROMPT) + len(owners) <= len(PROMPT) + 9


class TestPlaces:
    @staticmethod
    def batcher() -> Batcher:
        return Batcher(Capacity(1, 100), max_verify=4, max_queue=4)

    @staticmethod
    def step(batcher: Batcher, *tokens: int) -> list[int]:
        """The keys that took part in the next step, in which each got these tokens."""
        work = batcher.plan(0.0)
        judged = {item.key: Judged(Verdict(tokens, 0), 0) for item in work}
        batcher.apply(StepResult(judged, {}, len(work), len(work)), 0.01, 0.0)
        return [item.key for item in work]

    def test_an_idle_session_gives_way_to_one_that_waits_and_comes_back_with_its_turn(self) -> None:
        b = self.batcher()
        b.add(1, held := opened())
        b.add(2, opened(limit=None))
        assert b.park() == [], "the prompt is being read"
        assert self.step(b, 50) == [1]
        assert b.state(1) == "held"
        assert b.park() == [1]
        assert (list(b.running), list(b.parked)) == ([2], [1])
        assert b.get(1) is held
        assert b.state(1) == "held"
        held.take(commit(3, 11, limit=5))
        assert b.park() == []
        assert list(b.queue) == [1]
        assert b.state(1) == "queued"
        b.remove(2)
        assert self.step(b, 60) == [1]
        assert held.tokens == [*PROMPT, 11, 60]

    def test_nobody_gives_way_while_nobody_waits(self) -> None:
        b = self.batcher()
        b.add(1, opened())
        self.step(b, 50)
        assert b.park() == []
        assert b.next_timer() is None
        assert b.plan(0.0) == []

    def test_a_parked_session_can_end(self) -> None:
        b = self.batcher()
        b.add(1, opened())
        b.add(2, opened(limit=None))
        self.step(b, 50)
        b.park()
        assert b.remove(1) is False
        assert b.get(1) is None

    def test_audits_count_and_are_no_verified_hints(self) -> None:
        b = self.batcher()
        b.add(1, session := opened())
        session.take(commit(3, 11, 12, limit=6, audit=2))
        (work,) = b.plan(0.0)
        assert [hint.token for hint in work.hints] == [11, 12]
        told = b.apply(StepResult({1: Judged(Verdict((11, 12, 50), 2), 2)}, {}, 3, 1), 0.01, 0.0)
        assert told == [(1, Audited(3, (True, True), 0)), (1, Committed(5, (50,), 0, 0, Finish.NONE))]
        totals = b.totals
        assert (totals.audited, totals.agreed, totals.verified, totals.committed) == (2, 2, 0, 1)
        assert totals.forwards == 1
