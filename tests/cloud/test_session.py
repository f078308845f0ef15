"""One session in the cloud: what may be hinted, what is committed and when the text ends."""

import math
from dataclasses import replace
from typing import Any

import pytest

from ecd.cloud.session import ALTERNATE_CONFIDENCE, MAX_PATIENCE_S, Committed, Session, Vocabulary
from ecd.errors import BadRequest
from ecd.logprobs import MAX_TOP, TokenLogprobs
from ecd.sampling import Hint, Rule, Verdict
from ecd.wire.messages import ENDLESS_US, Alternate, Draft, Finish, HintWeights, Open, Pace

END = 0
# Token 1 is "a", 2 is "b" and so on; 27 is the first byte of a two-byte character.
VOCABULARY = Vocabulary(40, frozenset({END}), lambda token: bytes([96 + token]) if token < 27 else b"\xc3")
PROMPT = (5, 6, 7)


def opened(now: float = 100.0, max_ahead: int = 8, **changes: Any) -> Session:
    request = {
        "stream": 1,
        "prefix_hash": None,
        "prefix_len": 0,
        "prompt": PROMPT,
        "committed": (),
        "sampling": {},
        "max_tokens": 10,
        "stop": (),
        "pace": Pace(0, 1),
    }
    return Session.of(Open(**(request | changes)), VOCABULARY, max_ahead, now)


def draft(seen: int, base: int, *ids: int, q: tuple[HintWeights, ...] | None = None) -> Draft:
    return Draft(1, seen, base, ids, q=q)


def alternates(seen: int, *branches: tuple[int, tuple[int, ...]]) -> Draft:
    return Draft(1, seen, seen, (), alternates=tuple(Alternate(*branch) for branch in branches))


def shown(session: Session) -> str:
    assert session.text is not None
    return session.text.text


def taken(session: Session, at_most: int = 99) -> list[int]:
    return [hint.token for hint in session.turn_to(at_most)[1]]


def commit(
    session: Session, *tokens: int, accepted: int = 0, verified: int = 0, now: float = 0.0
) -> Committed:
    return session.commit(Verdict(tokens, accepted), verified, now)


# --- the end


def test_tokens_are_committed_behind_the_prompt() -> None:
    session = opened()
    assert commit(session, 1) == Committed(3, (1,), 0, 0, Finish.NONE)
    assert commit(session, 2, 3, accepted=1, verified=4) == Committed(4, (2, 3), 1, 4, Finish.NONE)
    assert session.tokens == [*PROMPT, 1, 2, 3]
    assert (session.forwards, session.verified, session.accepted, session.remaining) == (2, 4, 1, 7)


def test_an_end_token_ends_it_and_is_committed() -> None:
    session = opened()
    assert commit(session, 1, END) == Committed(3, (1, END), 0, 0, Finish.STOP)


def test_what_was_accepted_behind_the_end_does_not_count() -> None:
    session = opened()
    session.hint(draft(3, 3, 1, END, 4, 5))
    done = commit(session, 1, END, 4, 5, 6, accepted=4, verified=4)
    assert done == Committed(3, (1, END), 2, 4, Finish.STOP)
    assert session.tokens == [*PROMPT, 1, END]
    assert (session.accepted, session.verified) == (2, 4)


def test_logprobs_end_with_the_tokens_that_they_are_of() -> None:
    told = tuple(TokenLogprobs(-float(n), ()) for n in range(4))
    session = opened(logprobs=0)
    assert session.logprobs == 0
    assert session.commit(Verdict((1, 2), 1), 1, 0.0, told[:2]).logprobs == told[:2]
    assert session.commit(Verdict((3, END, 4, 5), 3), 3, 0.0, told).logprobs == told[:2]
    assert commit(opened(), 1).logprobs is None


def test_more_logprobs_than_there_may_be_are_refused() -> None:
    assert opened(logprobs=MAX_TOP).logprobs == MAX_TOP
    with pytest.raises(BadRequest, match="logprobs"):
        opened(logprobs=MAX_TOP + 1)


def test_a_stop_string_ends_it_across_forwards() -> None:
    session = opened(stop=("bc",))
    assert commit(session, 1, 2).finish is Finish.NONE
    assert shown(session) == "a"
    assert commit(session, 3, 4, accepted=1, verified=1) == Committed(5, (3,), 1, 1, Finish.STOP)
    assert shown(session) == "a"


def test_max_tokens_end_it() -> None:
    session = opened(max_tokens=2)
    assert commit(session, 1).finish is Finish.NONE
    assert commit(session, 2, 3, accepted=1) == Committed(4, (2,), 1, 0, Finish.LENGTH)
    assert session.remaining == 0


@pytest.mark.parametrize(("stop", "last"), [(("b",), 2), ((), END)], ids=["stop string", "end token"])
def test_a_stop_at_the_last_token_is_a_stop(stop: tuple[str, ...], last: int) -> None:
    assert commit(opened(max_tokens=2, stop=stop), 1, last).finish is Finish.STOP


def test_the_prompt_is_not_searched_for_stop_strings() -> None:
    session = opened(stop=("g",), prompt=(7, 7))
    assert commit(session, 1).finish is Finish.NONE
    spanning = opened(stop=("ga",), prompt=(7, 7))
    assert commit(spanning, 1).finish is Finish.NONE


# --- going on after a lost link


def test_a_stop_string_may_begin_before_the_link_was_lost() -> None:
    session = opened(committed=(1, 2), stop=("bc",))
    assert (session.prompt_len, session.remaining, session.board.length) == (3, 8, 5)
    assert shown(session) == "a"
    assert commit(session, 3) == Committed(5, (3,), 0, 0, Finish.STOP)


def test_half_a_character_may_have_been_committed_before_the_link_was_lost() -> None:
    session = opened(committed=(1, 27), stop=("b",))
    assert shown(session) == "a"
    assert commit(session, 2).finish is Finish.STOP


def test_hints_go_on_where_the_committed_tokens_end() -> None:
    session = opened(committed=(1, 2))
    session.hint(draft(5, 5, 3, 4))
    assert taken(session) == [3, 4]
    assert commit(session, 3, 4, 9, accepted=2, verified=2).base == 5


# --- hints


def test_no_more_hints_may_be_taken_than_could_be_committed_beside_the_targets_own() -> None:
    session = opened(max_tokens=5)
    session.hint(draft(3, 3, 9, 1, 2, 3, 4, 5, 6))
    assert session.hinted(99).chances == [], "the prompt is not read yet"
    commit(session, 9)
    assert len(session.hinted(99).chances) == 3
    assert len(session.hinted(2).chances) == 2
    commit(session, 1, 2, 3, accepted=2)
    assert session.remaining == 1
    session.hint(draft(7, 7, 4))
    assert session.hinted(99).chances == []


def test_confidence_goes_with_its_hint_and_is_certain_when_not_sent() -> None:
    session = opened()
    session.hint(Draft(1, 3, 3, (1, 2), b"\xff\x33"))
    session.hint(draft(3, 5, 4))
    assert [hint.confidence for hint in session.turn_to(9)[1]] == [1.0, 0.2, 1.0]


@pytest.mark.parametrize("confidence", [b"", b"\xff", b"\xff\xff\xff"])
def test_a_confidence_that_is_not_one_for_each_drops_the_hints(confidence: bytes) -> None:
    session = opened()
    session.hint(Draft(1, 3, 3, (1, 2), confidence))
    assert (taken(session), session.invalid_hints) == ([], 2)


def test_under_the_rejection_rule_no_hint_counts_by_what_it_leads_to() -> None:
    chances = []
    for confidence in (b"\xff\x01", b"\x80\xff"):
        session = opened(sampling={"rule": "rejection", "temperature": 1.0})
        commit(session, 7)
        q = (HintWeights((5, 6), b"\xff\xff"),) * 2
        session.hint(
            replace(draft(len(session.tokens), len(session.tokens), 5, 6, q=q), confidence=confidence)
        )
        chances.append(session.hinted(9).chances)
    assert len(chances[0]) == 2
    assert chances[0] == chances[1]


def test_confidence_is_corrected_by_what_becomes_of_the_hints() -> None:
    session = opened(max_tokens=50)
    commit(session, 1)
    for _ in range(8):
        here = len(session.tokens)
        session.hint(draft(here, here, 3, 4))
        taken(session)
        commit(session, 2, accepted=0, verified=2)
    here = len(session.tokens)
    session.hint(draft(here, here, 3, 4))
    assert session.hinted(1).chances == [pytest.approx(4 / 12, abs=0.02)]


def test_hints_that_arrive_during_a_step_are_not_judged_by_it() -> None:
    session = opened(max_tokens=50)
    commit(session, 1)
    session.hint(Draft(1, 4, 4, (3,), b"\xff"))
    assert taken(session) == [3]
    session.hint(Draft(1, 4, 4, (2, 5), b"\x10\x80"))
    commit(session, 2, accepted=0, verified=1)
    low, high = session.calibration.chances([0x10 / 255, 1.0])
    assert low == pytest.approx(0x10 / 255)
    assert high == pytest.approx(0.8)


def test_hints_outside_the_vocabulary_end_the_line() -> None:
    session = opened()
    session.hint(draft(3, 3, 1, 39, 40, 2))
    assert taken(session) == [1, 39]
    assert session.invalid_hints == 2


def test_a_draft_of_garbage_only_does_not_pass_for_an_empty_one() -> None:
    session = opened(pace=Pace(1_000_000, 1))
    commit(session, 1, now=7.0)
    session.hint(draft(4, 4, 40, 41))
    assert session.invalid_hints == 2
    assert session.ready_at() == 8.0
    session.hint(draft(4, 4))
    assert session.ready_at() == -math.inf


def test_drafts_that_knew_less_than_the_prompt_are_invalid() -> None:
    session = opened()
    session.hint(draft(2, 3, 1))
    assert taken(session) == []
    assert session.invalid_hints == 1


def test_q_goes_with_its_hint() -> None:
    session = opened(sampling={"rule": "rejection", "temperature": 1.0})
    session.hint(draft(3, 3, 1, 2, q=(HintWeights((1, 9), b"\x05\xff"), HintWeights((2,), b"\x01"))))
    hints = session.turn_to(9)[1]
    assert [(h.token, h.q and h.q.ids, h.q and h.q.weights) for h in hints] == [
        (1, (1, 9), (5, 255)),
        (2, (2,), (1,)),
    ]
    plain = opened()
    plain.hint(draft(3, 3, 1))
    assert plain.turn_to(9)[1] == [Hint(1)]


@pytest.mark.parametrize(
    ("q", "left"),
    [
        ((HintWeights((1,), b"\x01"),), []),
        ((), []),
        ((HintWeights((1,), b"\x01"), HintWeights((9,), b"\x01")), [1]),
        ((HintWeights((1,), b"\x01"), HintWeights((2, 40), b"\x01\x01")), [1]),
        ((HintWeights((3,), b"\x01"), HintWeights((2,), b"\x01")), []),
    ],
    ids=["too few", "none", "second not in its q", "second q outside the vocabulary", "first not in its q"],
)
def test_hints_with_an_impossible_q_are_dropped_and_counted(
    q: tuple[HintWeights, ...], left: list[int]
) -> None:
    session = opened()
    session.hint(draft(3, 3, 1, 2, q=q))
    assert taken(session) == left
    assert session.invalid_hints == 2 - len(left)


# --- alternates


def test_an_alternate_becomes_the_line_without_another_draft() -> None:
    session = opened()
    commit(session, 1)
    session.hint(draft(4, 4, 2, 3, 4))
    session.hint(alternates(4, (5, (9, 10, 11))))
    commit(session, 2, 9, accepted=1, verified=3)
    assert (taken(session), session.board.alternates_used) == ([10, 11], 1)
    assert [hint.confidence for hint in session.turn_to(9)[1]] == [ALTERNATE_CONFIDENCE] * 2


def test_one_frame_may_bring_a_line_and_the_alternates_that_leave_it() -> None:
    session = opened()
    session.hint(Draft(1, 3, 3, (1, 2), alternates=(Alternate(4, (9, 8)),)))
    commit(session, 1, 9, accepted=1, verified=2)
    assert taken(session) == [8]


@pytest.mark.parametrize(
    ("branches", "kept"),
    [
        ([(3, (9,))], 0),
        ([(3, ())], 0),
        ([(3, (9, 40))], 0),
        ([(3, tuple(range(1, 11)))], 0),
        ([(3, tuple(range(1, 10)))], 1),
        ([(3, (9, 1)), (3, (40, 1)), (3, (8, 1))], 2),
        ([(3, (n, 1)) for n in range(8)], 8),
        ([(3, (n, 1)) for n in range(9)], 0),
        ([(1 << 32, (9, 1))], 0),
    ],
)
def test_only_alternates_that_can_be_of_use_are_kept(
    branches: list[tuple[int, tuple[int, ...]]], kept: int
) -> None:
    session = opened()
    session.hint(alternates(3, *branches))
    assert len(session.board.alternates) == kept


def test_alternates_of_an_edge_that_knew_less_than_the_prompt_are_dropped() -> None:
    session = opened()
    session.hint(alternates(2, (3, (9, 1))))
    assert not session.board.alternates


def test_under_the_rejection_rule_there_are_no_alternates() -> None:
    session = opened(sampling={"rule": "rejection", "temperature": 1.0})
    session.hint(alternates(3, (3, (9, 1))))
    assert not session.board.alternates


def test_alternates_do_not_say_that_the_edge_has_stopped() -> None:
    session = opened(pace=Pace(20_000, 1))
    commit(session, 1, now=5.0)
    session.hint(alternates(4, (4, (9, 1))))
    assert session.ready_at() == pytest.approx(5.02)


# --- pace


def test_it_waits_for_as_many_hints_as_were_asked_for() -> None:
    session = opened(pace=Pace(20_000, 3))
    commit(session, 1, now=5.0)
    session.hint(draft(4, 4, 2, 3))
    assert session.ready_at() == pytest.approx(5.02)
    session.hint(draft(4, 6, 4))
    assert session.ready_at() == -math.inf


@pytest.mark.parametrize(("changes", "enough"), [({"max_tokens": 4}, 2), ({"max_ahead": 4}, 4)])
def test_it_waits_for_no_more_hints_than_could_be_used(changes: dict[str, Any], enough: int) -> None:
    session = opened(pace=Pace(20_000, 16), **changes)
    commit(session, 1, now=5.0)
    session.hint(draft(4, 4, *range(1, enough)))
    assert session.ready_at() == pytest.approx(5.02)
    session.hint(draft(4, 4 + enough - 1, 9))
    assert session.ready_at() == -math.inf


def test_a_gather_of_nothing_is_one() -> None:
    session = opened(pace=Pace(20_000, 0))
    commit(session, 1, now=5.0)
    assert session.ready_at() == pytest.approx(5.02)


def test_the_pace_changes_with_any_draft() -> None:
    session = opened(pace=Pace(0, 1))
    commit(session, 1, now=5.0)
    session.hint(Draft(1, 4, 4, (2,), pace=Pace(50_000, 2)))
    assert session.ready_at() == pytest.approx(5.05)
    session.hint(Draft(1, 99, 99, (2,), pace=Pace(70_000, 2)))
    assert session.ready_at() == pytest.approx(5.07), "although the hints are refused"
    session.hint(Draft(1, 4, 4, (2,)))
    assert session.ready_at() == pytest.approx(5.07), "nothing said, nothing changed"
    session.hint(Draft(1, 4, 4, (), pace=Pace(90_000, 1)))
    assert session.ready_at() == -math.inf, "it will not draft on"


@pytest.mark.parametrize(
    ("patience_us", "strict"), [(0, False), (30_000_001, False), (ENDLESS_US - 1, False), (ENDLESS_US, True)]
)
def test_strict_rounds_are_a_patience_without_end(patience_us: int, strict: bool) -> None:
    session = opened(pace=Pace(patience_us, 4))
    assert session.strict == session.hinted(16).all_of_them == strict


# --- patience


def test_without_patience_it_never_waits() -> None:
    session = opened()
    assert session.ready_at() == -math.inf
    commit(session, 1, now=5.0)
    assert session.ready_at() == -math.inf


def test_the_prompt_never_waits_and_later_steps_do() -> None:
    session = opened(pace=Pace(20_000, 1))
    assert session.ready_at() == -math.inf
    commit(session, 1, now=5.0)
    assert session.ready_at() == pytest.approx(5.02)
    commit(session, 2, now=6.0)
    assert session.ready_at() == pytest.approx(6.02)


def test_a_hint_ends_the_wait() -> None:
    session = opened(pace=Pace(20_000, 1))
    commit(session, 1, now=5.0)
    session.hint(draft(4, 4, 2))
    assert session.ready_at() == -math.inf
    commit(session, 9, now=6.0)
    assert session.ready_at() == pytest.approx(6.02), "the hint was wrong and is gone"


def test_nothing_to_hint_nothing_to_wait_for() -> None:
    session = opened(pace=Pace(20_000, 1), max_tokens=2)
    commit(session, 1, now=5.0)
    assert session.ready_at() == -math.inf


def test_an_edge_that_stopped_drafting_is_not_waited_for() -> None:
    session = opened(pace=Pace(20_000, 1))
    commit(session, 1, now=5.0)
    session.hint(draft(4, 4))
    assert session.ready_at() == -math.inf
    commit(session, 2, now=6.0)
    assert session.ready_at() == -math.inf
    session.hint(draft(5, 5, 9))
    commit(session, 3, now=7.0)
    assert session.ready_at() == pytest.approx(7.02), "it drafts again"


def test_no_patience_is_endless() -> None:
    session = opened(pace=Pace((1 << 32) - 1, 1))
    commit(session, 1, now=5.0)
    assert session.ready_at() == 5.0 + MAX_PATIENCE_S


# --- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ()}, "the prompt is empty"),
        ({"prompt": (1, 40)}, "token id 40 is not in the vocabulary of 40"),
        ({"committed": (41,)}, "token id 41 is not in the vocabulary"),
        ({"max_tokens": 0}, "max_tokens 0 leaves nothing to do"),
        ({"max_tokens": 2, "committed": (1, 2)}, "max_tokens 2 leaves nothing to do after 2 tokens"),
        ({"stop": ("a", "")}, "each stop string needs"),
        ({"sampling": {"top_q": 1}}, "unknown sampling setting top_q"),
        ({"sampling": {"top_p": 2.0}}, "top_p must be in"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        opened(**changes)


def test_sampling_comes_with_the_request() -> None:
    session = opened(sampling={"rule": "coupled", "temperature": 0.5, "seed": 3})
    assert (session.sampling.rule, session.sampling.temperature, session.sampling.seed) == (
        Rule.COUPLED,
        0.5,
        3,
    )


def test_stop_strings_are_few_and_short() -> None:
    assert opened(stop=("x" * 256,) * 16).text is not None
    for stop in (("x",) * 17, ("x" * 257,)):
        with pytest.raises(BadRequest, match="stop:"):
            opened(stop=stop)


def test_a_q_of_too_many_tokens_is_no_hint() -> None:
    session = opened()
    session.hint(draft(3, 3, 1, q=(HintWeights(tuple(range(33)), bytes([1] * 33)),)))
    assert (taken(session), session.invalid_hints) == ([], 1)
