"""Admission, and who takes part in the next step."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecd.cloud.batcher import Batcher
from ecd.cloud.session import Committed, Session, Vocabulary
from ecd.cloud.verifier import Capacity, Judged, StepResult
from ecd.errors import ContextOverflow, EngineError, Overloaded
from ecd.sampling import Verdict
from ecd.wire.messages import Alternate, Draft, Finish, Open, Pace

VOCABULARY = Vocabulary(50, frozenset({0}), lambda token: b"x")


def session(prompt: int = 4, max_tokens: int = 6, patience_us: int = 0) -> Session:
    request = Open(1, None, 0, tuple(range(1, prompt + 1)), (), {}, max_tokens, (), Pace(patience_us, 1))
    return Session.of(request, VOCABULARY, 8, 0.0)


def batcher(sessions: int = 4, session_tokens: int = 100, max_verify: int = 2, max_queue: int = 3) -> Batcher:
    return Batcher(Capacity(sessions, session_tokens), max_verify, max_queue)


def judged(*tokens: int, accepted: int = 0, verified: int = 0) -> Judged:
    return Judged(Verdict(tokens, accepted), verified)


def test_sessions_come_in_up_to_the_capacity_and_then_wait_in_order() -> None:
    b = batcher(sessions=2)
    for key in (10, 11, 12, 13):
        b.add(key, session())
    assert (list(b.running), list(b.queue)) == ([10, 11], [12, 13])
    assert b.remove(10)
    assert (list(b.running), list(b.queue)) == ([11, 12], [13])
    assert b.totals.sessions == 4


def test_a_session_needs_a_place_however_long_it_is() -> None:
    b = batcher(sessions=2, session_tokens=32)
    for key in (1, 2, 3):
        b.add(key, session(15, 15))
    b.add(4, session(1, 1))
    assert (list(b.running), list(b.queue)) == ([1, 2], [3, 4])
    b.remove(3)
    assert (list(b.running), list(b.queue)) == ([1, 2], [4]), "one that waited gave up"
    b.remove(1)
    assert list(b.running) == [2, 4]


def test_what_never_fits_is_refused_at_once() -> None:
    b = batcher(session_tokens=10)
    b.check_fits(4, 6)
    with pytest.raises(ContextOverflow, match=r"4 prompt tokens and max_tokens 7 .* context of 10"):
        b.check_fits(4, 7)


def test_a_full_queue_refuses() -> None:
    b = batcher(sessions=1, max_queue=2)
    for key in (1, 2, 3):
        b.add(key, session())
    with pytest.raises(Overloaded, match="2 sessions are waiting"):
        b.add(4, session())
    assert b.get(4) is None
    b.remove(3)
    b.add(4, session())
    assert list(b.queue) == [2, 4]
    assert b.totals.sessions == 4


def test_without_a_queue_sessions_come_in_while_there_is_room() -> None:
    b = batcher(sessions=1, max_queue=0)
    b.add(1, session())
    assert list(b.running) == [1]
    with pytest.raises(Overloaded, match="0 sessions are waiting"):
        b.add(2, session())
    b.remove(1)
    b.add(3, session())
    assert list(b.running) == [3]


def test_removal_tells_whether_it_was_running_and_keeps_its_counts() -> None:
    b = batcher(sessions=1)
    one, two = session(), session()
    b.add(1, one)
    b.add(2, two)
    one.hint(Draft(1, 4, 4, (7, 99)))
    one.hint(Draft(1, 4, 4, (), alternates=(Alternate(4, (8, 9)),)))
    one.commit(Verdict((8,), 0), 1, 0.0)
    assert (one.board.dropped, one.invalid_hints, one.board.alternates_used) == (1, 1, 1)
    assert b.get(1) is one
    assert b.get(2) is two
    assert b.remove(2) is False
    assert b.remove(1) is True
    assert b.remove(1) is False
    assert (b.totals.dropped_hints, b.totals.invalid_hints, b.totals.alternates_used) == (1, 1, 1)
    assert b.get(1) is None


def test_the_plan_holds_every_running_session_with_its_hints() -> None:
    b = batcher(sessions=2)
    for key in (1, 2, 3):
        b.add(key, session())
    one = b.running[1]
    one.hint(Draft(1, 4, 4, (7, 8, 9, 10)))
    assert [list(w.hints) for w in b.plan(0.0)] == [[], []], "their prompts are not read yet"
    b.apply(StepResult({1: judged(7), 2: judged(7)}, {}, 60, 2), 0.1, 0.0)
    plan = b.plan(0.0)
    assert [(w.key, list(w.tokens), w.prompt_len, [h.token for h in w.hints]) for w in plan] == [
        (1, [1, 2, 3, 4, 7], 4, [8, 9]),
        (2, [1, 2, 3, 4, 7], 4, []),
    ]
    assert plan[0].sampling == one.sampling


def test_patient_sessions_sit_out_until_their_time() -> None:
    b = batcher()
    for key, patience_us in ((1, 0), (2, 500_000), (3, 2_000_000)):
        b.add(key, session(patience_us=patience_us))
        b.apply(StepResult({key: judged(7)}), 0.1, now=10.0)
    assert [w.key for w in b.plan(10.0)] == [1]
    assert [w.key for w in b.plan(10.5)] == [1, 2]
    assert [w.key for w in b.plan(12.0)] == [1, 2, 3]
    b.running[3].hint(Draft(1, 5, 5, (9,)))
    assert [w.key for w in b.plan(10.0)] == [1, 3]


def test_a_step_takes_along_those_whose_patience_ends_before_it_does() -> None:
    b = batcher()
    for key, patience_us in ((1, 0), (2, 500_000), (3, 3_000_000)):
        b.add(key, session(patience_us=patience_us))
    steps = StepResult({key: judged(7) for key in (1, 2, 3)}, batch_tokens=3, batch_sessions=3)
    b.apply(steps, 1.0, 10.0)
    assert [work.key for work in b.plan(10.0)] == [1, 2], "a step takes 1 s, and 3 would wait for longer"


def test_looking_for_work_in_vain_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    b = batcher()
    b.add(1, session(patience_us=500_000))
    b.apply(StepResult({1: judged(7)}, batch_tokens=1, batch_sessions=1), 1.0, 10.0)
    monkeypatch.setattr(b, "depth", None)
    assert b.plan(10.0) == []


def test_the_timer_is_the_first_patient_session() -> None:
    b = batcher()
    assert b.next_timer() is None
    for key, patience_us in ((2, 500_000), (3, 2_000_000)):
        b.add(key, session(patience_us=patience_us))
        b.apply(StepResult({key: judged(7)}), 0.1, now=10.0)
    assert b.next_timer() == 10.5
    b.remove(2)
    assert b.next_timer() == 12.0
    b.add(1, session())
    timer = b.next_timer()
    assert timer == -math.inf, "somebody need not wait at all"


def test_outcomes_are_told_per_session_and_of_removed_ones_only_the_forward_counts() -> None:
    b = batcher(sessions=3)
    for key in (1, 2, 3, 4):
        b.add(key, session())
    b.remove(2)
    error = EngineError("no")
    result = StepResult({1: judged(7, 8, accepted=1, verified=2), 2: judged(9)}, {3: error, 8: error}, 5, 3)
    assert b.apply(result, 0.1, 1.0) == [(1, Committed(4, (7, 8), 1, 2, Finish.NONE)), (3, error)]
    assert b.running[1].tokens == [1, 2, 3, 4, 7, 8]
    t = b.totals
    assert (t.steps, t.forwards, t.forwards_without_hints, t.committed) == (1, 2, 1, 2)
    assert (t.verified, t.accepted, t.failed, t.batch_tokens, t.batch_sessions) == (2, 1, 1, 5, 3)
    b.apply(StepResult({1: judged(7), 4: judged(0)}, {}, 2, 2), 0.1, 2.0)
    assert (t.steps, t.forwards, t.forwards_without_hints, t.committed) == (2, 4, 3, 4)
    assert (t.batch_tokens, t.batch_sessions) == (7, 5)


def test_steps_that_only_decode_teach_what_tokens_cost() -> None:
    b = batcher()
    for key in (1, 2):
        b.add(key, session(max_tokens=50))
    assert (b.load()["step_ms"], b.load()["token_ms"]) == (0, 0)
    for result in (
        StepResult({1: judged(7)}, {}, 64, 2),
        StepResult({}, {}, 64, 1),
        StepResult({1: judged(7)}, {2: EngineError("no")}, 2, 2),
        StepResult({1: judged(7), 2: judged(7)}, {}, 2, 2, one_pass=False),
    ):
        b.apply(result, 9.0, 0.0)
    assert b.depth.cost.measured == 0
    for _ in range(8):
        b.apply(StepResult({1: judged(7), 2: judged(7)}, {}, 2, 2), 0.030, 0.0)
        five = judged(7, verified=4)
        b.apply(StepResult({1: five, 2: five}, {}, 10, 2), 0.040, 0.0)
        b.apply(StepResult({1: five, 2: judged(7)}, {}, 6, 2), 0.060, 0.0)
    load = b.load()
    assert (load["running"], load["queued"], load["max_verify"]) == (2, 0, 2)
    assert load["step_ms"] == pytest.approx(30, rel=0.1)
    assert load["token_ms"] == pytest.approx(10 / 8, rel=0.4)
    assert b.depth.cost.seconds(6, 2) == pytest.approx(0.060, rel=0.1)


ROUNDS = (1 << 32) - 1


@pytest.mark.parametrize(
    ("patience_us", "hints"),
    [((0, 0), [0, 0]), ((0, ROUNDS), [0, 0]), ((ROUNDS, ROUNDS), [2, 2])],
    ids=["nobody", "one of two", "all"],
)
def test_hints_that_cost_more_than_they_bring_are_not_verified_unless_all_ask_for_it(
    patience_us: tuple[int, int], hints: list[int]
) -> None:
    b = batcher(sessions=2)
    for key, patience in enumerate(patience_us, 1):
        b.add(key, session(max_tokens=50, patience_us=patience))
    b.apply(StepResult({1: judged(7), 2: judged(7)}, {}, 60, 2), 0.1, 0.0)
    for _ in range(20):
        for tokens, seconds in ((1, 0.007), (2, 0.025), (4, 0.06), (8, 0.14)):
            b.depth.cost.learn(tokens, 1, seconds)
    for s in b.running.values():
        s.hint(Draft(1, 5, 5, (8, 9, 10), b"\xc0\xc0\xc0"))
    assert [len(w.hints) for w in b.plan(1.0)] == hints


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.one_of(st.tuples(st.integers(1, 30), st.integers(1, 30)), st.integers(0, 20)), max_size=40),
)
def test_admission_keeps_order_and_leaves_no_place_empty(
    sessions: int, events: list[tuple[int, int] | int]
) -> None:
    b = batcher(sessions=sessions, session_tokens=64)
    order: list[int] = []
    for key, event in enumerate(events):
        if isinstance(event, int):
            b.remove(event)
            order = [k for k in order if k != event]
        else:
            try:
                b.add(key, session(*event))
            except Overloaded:
                assert (len(b.running), len(b.queue)) == (sessions, 3)
            except ContextOverflow:
                assert sum(event) > 62
            else:
                order.append(key)
        assert [*b.running, *b.queue] == order
        assert len(b.running) == min(sessions, len(order))
