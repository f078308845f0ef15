"""An answer that the edge commits tokens to: whose turn it is, what the cloud is told, what is compared."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from talk import CONDITIONS, PROMPT, Talk, copied, drafts, opening

from ecd.edge.commands import Command, Emit, Finished, Send
from ecd.edge.generation import Phase
from ecd.edge.pacing import Objective, Pace
from ecd.edge.request import Mode
from ecd.edge.threshold import Thresholds
from ecd.edge.turns import BLOCK_TOKENS, MOST_GIVEN, Turns, positions_given
from ecd.errors import Code, ProtocolError
from ecd.sampling import Guess
from ecd.wire.messages import Audit, Commit, Finish, Origin, Reset

SURE, UNSURE = 0.95, 0.5
END = 0


def shared(share: float = 1.0, fixed: float | None = 0.9, **changes: Any) -> Talk:
    """A generation of mode confident behind PROMPT."""
    given = {"mode": Mode.CONFIDENT, "threshold": fixed, "target_agreement": 0.9, "audit_share": share}
    talk = Talk(**(given | changes))
    talk.g.turns = Turns.of(talk.g.request, Thresholds(), lambda token: bytes([token]), frozenset({END}))
    return talk


def turns(talk: Talk) -> Turns:
    assert talk.g.turns is not None
    return talk.g.turns


def commits(commands: Iterable[Command]) -> list[Commit]:
    return [c.message for c in commands if isinstance(c, Send) and isinstance(c.message, Commit)]


def emitted(commands: Iterable[Command]) -> list[int]:
    return [token for c in commands if isinstance(c, Emit) for token in c.ids]


def guess(talk: Talk, token: int, confidence: float = SURE) -> list[Command]:
    return talk.done(talk.task(), Guess(token, confidence))


def test_what_is_sure_enough_is_shown_at_once_and_sends_nothing() -> None:
    talk = shared(share=0.0)
    assert opening(talk.open()).limit == len(PROMPT)
    for token in (11, 12, 13):
        assert guess(talk, token) == [Emit((token,), (Origin.EDGE_CONFIDENT,))]
    assert talk.g.committed == (11, 12, 13)
    task = talk.task()
    assert (task.context[:], task.copies, task.model) == ([*PROMPT, 11, 12, 13], False, True)


def test_an_unsure_edge_hands_over_all_that_the_cloud_does_not_know_and_one_position() -> None:
    talk = shared(share=0.0)
    talk.open()
    guess(talk, 11)
    guess(talk, 12)
    (commit,) = commits(guess(talk, 13, UNSURE))
    assert commit == Commit(1, 3, (11, 12), Origin.EDGE_CONFIDENT, limit=6)
    assert turns(talk).handovers == 1
    # The cloud's turn: the edge drafts on, and what is sure enough there is a hint.
    assert talk.g.committed == (11, 12)
    talk.commit(99)
    assert talk.g.committed == (11, 12, 99)
    assert emitted(guess(talk, 14)) == [14]
    assert talk.g.origins == [*[Origin.EDGE_CONFIDENT] * 2, Origin.TARGET, Origin.EDGE_CONFIDENT]
    # Nothing is told twice: the next frame begins with what the cloud does not have.
    (commit,) = commits(guess(talk, 15, UNSURE))
    assert commit == Commit(1, 6, (14,), Origin.EDGE_CONFIDENT, limit=8)


def test_a_guess_of_the_clouds_turn_that_holds_is_committed_when_the_turn_comes_back() -> None:
    talk = shared(share=0.0)
    talk.open()
    guess(talk, 11, UNSURE)
    guess(talk, 12, SURE)
    commands = talk.commit(11, accepted=1)
    assert emitted(commands) == [11, 12]
    assert talk.g.origins == [Origin.DRAFT_ACCEPTED, Origin.EDGE_CONFIDENT]
    # One that does not hold is not.
    guess(talk, 13, UNSURE)
    guess(talk, 14, SURE)
    assert emitted(talk.commit(77)) == [77]


def test_hints_go_to_the_cloud_in_its_own_turn_only() -> None:
    talk = shared(share=0.0, fixed=0.99)
    talk.open()
    assert drafts(guess(talk, 11, 0.995)) == []
    turns(talk).limit = 9
    assert [d.ids for d in drafts(guess(talk, 12, 0.995))] == [(12,)]


@pytest.mark.parametrize(
    ("objective", "given"), [(Objective.COST, 1), (Objective.BALANCED, 12), (Objective.LATENCY, 12)]
)
def test_as_many_positions_are_given_as_the_cloud_fills_in_a_round_trip(
    objective: Objective, given: int
) -> None:
    assert positions_given(CONDITIONS, objective) == given
    assert positions_given(None, objective) == 1
    assert positions_given(replace(CONDITIONS, rtt_s=9.0), Objective.LATENCY) == MOST_GIVEN


@pytest.mark.parametrize(("objective", "limits"), [(Objective.LATENCY, [16, 17]), (Objective.BALANCED, [16])])
def test_under_latency_the_clouds_turn_is_renewed_before_it_ends(
    objective: Objective, limits: list[int]
) -> None:
    talk = shared(share=0.0, pace=Pace(16), objective=objective)
    talk.open()
    said = [
        *guess(talk, 11),
        *guess(talk, 12, UNSURE),
        *guess(talk, 13, UNSURE),
        *talk.commit(12, accepted=1),
    ]
    assert [commit.limit for commit in commits(said)] == limits
    assert turns(talk).handovers == 1


def test_tokens_beyond_the_limit_are_no_clouds_to_commit() -> None:
    talk = shared()
    talk.open()
    with pytest.raises(ProtocolError, match="go beyond the cloud's end at 3"):
        talk.commit(11)
    guess(talk, 11, UNSURE)
    with pytest.raises(ProtocolError, match="TOKENS of 2 ids at 3 go beyond the cloud's end at 4"):
        talk.commit(11, 12)


def test_without_a_link_the_edge_goes_on_while_it_is_sure_and_tells_the_next_cloud_all() -> None:
    talk = shared(share=0.0)
    assert emitted(guess(talk, 11)) == [11]
    talk.open()
    guess(talk, 12)
    talk.g.lost()
    assert emitted(guess(talk, 13)) == [13]
    assert guess(talk, 14, UNSURE) == []
    assert talk.g.next_tasks(1) == [], "the guess waits for a cloud"
    reopened, *others = talk.open(2)
    assert isinstance(reopened, Send)
    message = reopened.message
    assert (message.committed, message.limit) == ((11, 12, 13), len(PROMPT))  # type: ignore[union-attr]
    assert commits(others) == [Commit(2, 6, (), Origin.EDGE_CONFIDENT, limit=7)]


def test_a_link_lost_in_the_clouds_turn_leaves_it_the_clouds() -> None:
    talk = shared(share=0.0)
    talk.open()
    guess(talk, 11, UNSURE)
    talk.g.lost()
    assert emitted(guess(talk, 12)) == []
    assert opening([talk.open(2)[0]]).limit == 4
    assert emitted(talk.commit(11)) == [11, 12]


def test_a_cloud_that_takes_no_commits_gets_the_rest_of_the_text() -> None:
    talk = shared()
    guess(talk, 11)
    commands = talk.g.open(1, 64, alternates=False, conditions=None, now=0.0, commits=False)
    assert (opening(commands).limit, opening(commands).committed) == (None, (11,))
    assert emitted(guess(talk, 12)) == []
    assert emitted(talk.commit(12, 13)) == [12, 13]


def test_copied_text_is_given_up_in_the_edges_turn() -> None:
    talk = shared(share=0.0)
    talk.open()
    guess(talk, 11, UNSURE)
    talk.done(talk.task(), *copied(12, 13))
    talk.commit(11, accepted=1)
    assert talk.g.committed == (11,)
    assert talk.task().context[:] == [*PROMPT, 11]


def test_a_drafter_that_fails_leaves_all_to_the_cloud() -> None:
    talk = shared(max_tokens=6)
    talk.open()
    guess(talk, 11)
    (commit,) = commits(talk.g.stop_drafting())
    assert (commit.ids, commit.limit) == ((11,), len(PROMPT) + 6)
    assert emitted(talk.commit(12, 13, 14, 15, 16, finish=Finish.LENGTH)) == [12, 13, 14, 15, 16]


class TestEnding:
    @pytest.mark.parametrize(
        ("tokens", "reason", "asked"),
        [
            ((11, END), Finish.STOP, {}),
            ((11, 12), Finish.LENGTH, {"max_tokens": 2}),
            ((97, 98), Finish.STOP, {"stop": ("ab",)}),
        ],
        ids=["the end", "max_tokens", "a stop text"],
    )
    def test_the_edge_ends_the_text_as_the_cloud_would(
        self, tokens: tuple[int, int], reason: Finish, asked: dict[str, Any]
    ) -> None:
        talk = shared(share=0.0, **asked)
        talk.open()
        guess(talk, tokens[0])
        commands = guess(talk, tokens[1])
        assert commands == [
            Emit((tokens[1],), (Origin.EDGE_CONFIDENT,)),
            Send(Reset(1, Code.CANCELLED, "the edge has ended the text")),
            Finished(reason),
        ]
        assert talk.g.phase is Phase.FINISHED
        assert talk.g.next_tasks(1) == []

    def test_the_clouds_tokens_count_for_stop_texts_too(self) -> None:
        talk = shared(share=0.0, stop=("abc",))
        talk.open()
        guess(talk, 97)
        guess(talk, 5, UNSURE)
        talk.commit(98)
        assert guess(talk, 99)[-1] == Finished(Finish.STOP)

    def test_alone_nothing_is_too_unsure_and_nothing_is_sent(self) -> None:
        talk = shared(mode=Mode.EDGE_ONLY)
        assert not talk.g.wants_cloud
        for token in (11, 12):
            assert guess(talk, token, 0.01) == [Emit((token,), (Origin.EDGE_CONFIDENT,))]
        assert guess(talk, END, 0.01)[1:] == [Finished(Finish.STOP)]


class TestAudits:
    def test_a_block_of_the_edges_tokens_is_told_to_be_compared_and_the_turn_is_kept(self) -> None:
        talk = shared()
        talk.open()
        said = [command for token in range(BLOCK_TOKENS) for command in guess(talk, 11 + token)]
        (commit,) = commits(said)
        assert commit == Commit(1, 3, tuple(range(11, 19)), Origin.EDGE_CONFIDENT, 3, BLOCK_TOKENS)
        assert emitted(guess(talk, 30)) == [30]

    def test_at_a_hand_over_the_begun_block_is_compared(self) -> None:
        talk = shared()
        talk.open()
        guess(talk, 11)
        guess(talk, 12)
        (commit,) = commits(guess(talk, 13, UNSURE))
        assert (commit.ids, commit.limit, commit.audit) == ((11, 12), 6, 2)

    def test_verdicts_count_and_teach_but_take_nothing_back(self) -> None:
        talk = shared(fixed=None)
        talk.open()
        guess(talk, 11)
        guess(talk, 12)
        guess(talk, 13, UNSURE)
        before = turns(talk).threshold
        assert talk.g.audited(Audit(1, 3, b"\x01\x00", 1)) == []
        assert (turns(talk).compared, turns(talk).agreed) == (2, 1)
        assert turns(talk).threshold > before
        assert talk.g.committed == (11, 12)
        assert talk.g.tally.forwards == 1
        assert talk.acceptance.totals()["model"]["settled"] == 2

    @pytest.mark.parametrize(
        "bad", [Audit(1, 4, b"\x01\x01", 0), Audit(1, 2, b"\x01", 0), Audit(1, 3, b"\x02", 0)]
    )
    def test_what_was_not_asked_for_is_a_violation(self, bad: Audit) -> None:
        talk = shared()
        talk.open()
        guess(talk, 11)
        guess(talk, 12)
        guess(talk, 13, UNSURE)
        with pytest.raises(ProtocolError, match="AUDIT of position"):
            talk.g.audited(bad)

    def test_the_stream_stays_open_until_the_last_tokens_are_compared(self) -> None:
        talk = shared()
        talk.open()
        guess(talk, 11)
        commands = guess(talk, END)
        (commit,) = commits(commands)
        assert (commit.ids, commit.audit, commit.limit) == ((11, END), 2, len(PROMPT))
        assert commands[-1] == Finished(Finish.STOP)
        assert talk.g.audited(Audit(1, 3, b"\x01", 1)) == []
        assert talk.g.audited(Audit(1, 4, b"\x01", 1)) == [
            Send(Reset(1, Code.CANCELLED, "the edge has ended the text"))
        ]

    def test_a_lost_link_loses_the_audits_that_were_under_way(self) -> None:
        talk = shared()
        talk.open()
        guess(talk, 11)
        guess(talk, 12, UNSURE)
        talk.g.lost()
        talk.open(2)
        assert turns(talk).pending == {}

    def test_the_share_that_is_compared_is_what_was_asked_for(self) -> None:
        audited = 0
        for seed in range(400):
            part = shared(share=0.25)
            turns(part).seed = seed
            part.open()
            for token in range(11, 11 + BLOCK_TOKENS):
                audited += sum(commit.audit for commit in commits(guess(part, token)))
        assert 0.2 < audited / (400 * BLOCK_TOKENS) < 0.3
