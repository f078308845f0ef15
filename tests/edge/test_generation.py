"""The edge's state machine as conversations, and edge and cloud together on arbitrary schedules."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ecd.cloud.session import Session, Vocabulary
from ecd.edge.drafter import DraftTask
from ecd.edge.generation import Command, Emit, Finished, Generation, Phase, Request, Send
from ecd.engine.packing import PROMPT_CHUNK_TOKENS
from ecd.errors import ProtocolError
from ecd.sampling import DraftDistribution, Guess, Rule, Sampling, choose, guess, shape, verify
from ecd.text import TextStream
from ecd.wire.messages import Draft, Finish, HintWeights, Open, Origin, Tokens

PROMPT = (90, 91, 92)
GREEDY = Sampling()


class Talk:
    """A generation with a drafter whose cache is checked after every task."""

    def __init__(self, slot: int | None = 0, **changes: Any) -> None:
        self.g = Generation(Request(**({"prompt": PROMPT, "sampling": GREEDY, "max_tokens": 20} | changes)))
        self.g.slot = slot
        self.cache: list[int] = []

    def open(self, stream: int = 1, max_ahead: int = 64) -> list[Command]:
        return self.g.open(stream, max_ahead)

    def task(self) -> DraftTask:
        task = self.g.next_task(may_read=True)
        assert task is not None
        return task

    def done(self, task: DraftTask, token: int | None, q: DraftDistribution | None = None) -> list[Command]:
        assert len(self.cache) >= task.keep, "asked to keep more than there is"
        self.cache = [*self.cache[: task.keep], *task.tokens]
        assert self.cache == list(task.context[: task.keep + len(task.tokens)])
        assert task.wants_guess == (self.cache == list(task.context))
        return self.g.drafted(task, None if token is None else Guess(token, 0.5, q))

    def draft(self, *tokens: int) -> list[Command]:
        return [command for token in tokens for command in self.done(self.task(), token)]

    def commit(
        self, *ids: int, accepted: int = 0, finish: Finish = Finish.NONE, **changes: Any
    ) -> list[Command]:
        message = Tokens(self.g.stream, len(self.g.tokens), ids, accepted, accepted, 900, finish)
        return self.g.receive(replace(message, **changes))


def hints(commands: Iterable[Command]) -> list[tuple[int, int, tuple[int, ...]]]:
    """(seen, base, ids) of every DRAFT."""
    return [
        (c.message.seen, c.message.base, c.message.ids)
        for c in commands
        if isinstance(c, Send) and isinstance(c.message, Draft)
    ]


# --- opening


def test_opening_sends_the_request() -> None:
    sampling = Sampling(Rule.COUPLED, 7, 0.5)
    talk = Talk(sampling=sampling, stop=("x",), patience_us=5)
    assert talk.g.phase is Phase.WAITING
    assert talk.open(3) == [Send(Open(3, None, 0, PROMPT, (), sampling.to_map(), 20, ("x",), 5))]
    assert talk.g.phase is Phase.STREAMING
    assert talk.g.tally.resumed == 0


def test_without_a_drafter_the_cloud_is_not_asked_to_wait() -> None:
    (command,) = Talk(slot=None, patience_us=5).open()
    assert isinstance(command, Send)
    assert isinstance(command.message, Open)
    assert command.message.patience_us == 0


def test_guesses_drafted_before_the_link_was_there_go_with_the_opening() -> None:
    talk = Talk(hint_tokens=9)
    assert talk.draft(1, 2) == []
    assert hints(talk.open()) == [(3, 3, (1, 2))]


# --- drafting ahead


def test_it_drafts_ahead_without_waiting_up_to_the_bound() -> None:
    talk = Talk(ahead=3)
    talk.open()
    assert hints(talk.draft(1, 2, 3)) == [(3, 3, (1,)), (3, 4, (2,)), (3, 5, (3,))]
    assert talk.g.next_task(may_read=True) is None
    talk.commit(1, accepted=1)
    assert hints(talk.draft(4)) == [(4, 6, (4,))]
    assert talk.g.next_task(may_read=True) is None


def test_it_never_drafts_what_could_not_be_verified() -> None:
    talk = Talk(max_tokens=3, ahead=9)
    talk.open()
    talk.draft(1, 2)
    assert talk.g.next_task(may_read=True) is None, "the last token is the target's own"
    assert Talk(max_tokens=1).g.next_task(may_read=True) is None
    assert Talk(ahead=0).g.next_task(may_read=True) is None
    assert Talk(slot=None).g.next_task(may_read=True) is None


def test_one_task_at_a_time() -> None:
    talk = Talk()
    task = talk.task()
    assert talk.g.next_task(may_read=True) is None
    talk.done(task, 1)
    assert talk.task().context == [*PROMPT, 1]


def test_a_task_says_what_to_keep_and_what_to_evaluate() -> None:
    sampling = Sampling(Rule.COUPLED, 7, 0.5)
    talk = Talk(slot=4, sampling=sampling)
    task = talk.task()
    assert task == DraftTask(4, 0, list(PROMPT), list(PROMPT), 3, sampling, True)
    talk.done(task, 1)
    assert talk.task() == DraftTask(4, 3, [1], [*PROMPT, 1], 3, sampling, True)


def test_a_drafter_without_a_guess_is_asked_again() -> None:
    talk = Talk()
    assert talk.done(talk.task(), None) == []
    task = talk.task()
    assert (task.keep, task.tokens, task.wants_guess) == (2, [92], True)
    talk.done(task, 1)


def test_a_long_prompt_is_evaluated_in_chunks_and_only_when_it_may() -> None:
    prompt = tuple(range(100))
    talk = Talk(prompt=prompt)
    assert talk.g.next_task(may_read=False) is None
    for keep, end, wants in ((0, 64, False), (36, 100, True)):
        task = talk.task()
        assert (task.keep, task.tokens, task.wants_guess) == (keep, list(prompt[keep:end]), wants)
        talk.done(task, 1 if wants else None)
    assert talk.g.tally.drafted == 1
    assert [g.token for g in talk.g.guesses] == [1]
    assert talk.g.next_task(may_read=False) is not None, "what follows the prompt is no reading"


def test_hints_are_gathered_and_flushed_at_the_bound() -> None:
    talk = Talk(hint_tokens=3, ahead=5)
    talk.open()
    assert hints(talk.draft(1, 2)) == []
    assert hints(talk.draft(3)) == [(3, 3, (1, 2, 3))]
    assert hints(talk.draft(4)) == []
    assert hints(talk.draft(5)) == [(3, 6, (4, 5))], "no more can come"


def test_gathered_hints_that_were_committed_meanwhile_are_not_sent() -> None:
    talk = Talk(hint_tokens=3, ahead=9)
    talk.open()
    talk.draft(1, 2)
    talk.commit(1)
    assert hints(talk.draft(3)) == []
    assert hints(talk.draft(4)) == [(4, 4, (2, 3, 4))]
    talk.draft(5, 6)
    talk.commit(2, 3, 4, 5, 6, 7)
    assert hints(talk.draft(8, 9, 10)) == [(10, 10, (8, 9, 10))]


def test_rejection_ships_the_distribution_of_every_hint() -> None:
    talk = Talk(sampling=Sampling(Rule.REJECTION, 1, 1.0), hint_tokens=2)
    talk.open()
    talk.done(talk.task(), 5, DraftDistribution((5, 6), (255, 3)))
    (command,) = talk.done(talk.task(), 7, DraftDistribution((7,), (9,)))
    assert command == Send(
        Draft(1, 3, 3, (5, 7), (HintWeights((5, 6), b"\xff\x03"), HintWeights((7,), b"\x09")))
    )
    plain = Talk()
    plain.open()
    assert plain.draft(5) == [Send(Draft(1, 3, 3, (5,), None))]


# --- committed tokens


def test_tokens_that_match_use_the_guesses_up() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1, 2, 3)
    origins = (Origin.DRAFT_ACCEPTED, Origin.DRAFT_ACCEPTED, Origin.TARGET)
    assert talk.commit(1, 2, 3, accepted=2) == [Emit((1, 2, 3), origins)]
    assert talk.g.guesses == []
    assert talk.g.committed == (1, 2, 3)
    assert talk.g.origins == list(origins)
    assert hints(talk.draft(4)) == [(6, 6, (4,))]
    assert talk.cache == [*PROMPT, 1, 2, 3]


def test_a_fork_drops_the_guesses_and_rolls_the_drafter_back() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1, 2, 3)
    talk.commit(1, 7, accepted=1)
    assert talk.g.guesses == []
    task = talk.task()
    assert (task.keep, task.tokens) == (4, [7])
    assert hints(talk.done(task, 8)) == [(5, 5, (8,))]


def test_a_guess_overtaken_by_a_fork_is_dropped() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1)
    task = talk.task()
    talk.commit(7)
    assert talk.done(task, 2) == []
    assert talk.g.guesses == []
    task = talk.task()
    assert (task.keep, task.tokens) == (3, [7])
    talk.done(task, 8)


def test_a_guess_overtaken_by_the_text_is_dropped() -> None:
    talk = Talk()
    talk.open()
    task = talk.task()
    talk.commit(1, 2)
    assert talk.done(task, 1) == []
    assert (talk.task().keep, talk.g.tally.drafted) == (3, 0)


def test_a_running_task_survives_commits_that_match() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1, 2)
    task = talk.task()
    talk.commit(1, accepted=1)
    assert hints(talk.done(task, 3)) == [(4, 5, (3,))]
    assert [g.token for g in talk.g.guesses] == [2, 3]


def test_a_fork_behind_matching_commits_overtakes_a_running_task() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1, 2, 3)
    task = talk.task()
    talk.commit(1, 2, accepted=2)
    talk.commit(9)
    talk.commit(10)
    assert talk.done(task, 4) == []
    task = talk.task()
    assert (task.keep, task.tokens) == (5, [9, 10])
    talk.done(task, 5)


def test_a_prompt_in_pieces_is_overtaken_by_the_first_token() -> None:
    talk = Talk(prompt=tuple(range(100)))
    talk.open()
    task = talk.task()
    talk.commit(500)
    assert talk.done(task, None) == []
    task = talk.task()
    assert (task.keep, task.tokens, task.wants_guess) == (36, list(range(36, 100)), False)
    assert talk.done(task, None) == []
    task = talk.task()
    assert (task.keep, task.tokens) == (100, [500])
    assert hints(talk.done(task, 51)) == [(101, 101, (51,))]


def test_the_tally_counts_forwards_and_hints() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1, 2, 3)
    talk.commit(1, 7, accepted=1, verified=3)
    talk.commit(8, step_us=1234)
    t = talk.g.tally
    assert (t.drafted, t.forwards, t.forwards_without_hints, t.verified, t.accepted, t.step_us) == (
        3,
        2,
        1,
        3,
        1,
        1234,
    )


def test_the_last_tokens_finish_it() -> None:
    talk = Talk()
    talk.open()
    talk.draft(1)
    task = talk.task()
    assert talk.commit(1, 2, finish=Finish.STOP)[-1] == Finished(Finish.STOP)
    assert talk.g.phase is Phase.FINISHED
    assert talk.done(task, 3) == []
    assert talk.g.next_task(may_read=True) is None
    assert talk.commit(9) == []
    talk.g.lost()
    assert talk.g.phase is Phase.FINISHED


@pytest.mark.parametrize(
    "changes",
    [{"base": 2}, {"base": 4}, {"ids": ()}, {"accepted": 3}],
    ids=["behind", "ahead", "empty", "accepted"],
)
def test_tokens_that_do_not_continue_the_text_break_the_protocol(changes: dict[str, Any]) -> None:
    talk = Talk()
    talk.open()
    with pytest.raises(ProtocolError, match="TOKENS"):
        talk.commit(1, 2, **changes)
    assert talk.g.committed == ()


# --- losing the link


def test_tokens_of_another_stream_or_without_a_link_are_ignored() -> None:
    talk = Talk()
    assert talk.commit(1) == []
    talk.open(5)
    assert talk.commit(1, stream=4) == []
    talk.g.lost()
    assert talk.commit(1) == []
    assert talk.g.committed == ()


def test_after_a_lost_link_everything_needed_is_sent_again() -> None:
    talk = Talk(patience_us=7)
    talk.open(1)
    talk.draft(1, 2)
    talk.commit(1, accepted=1)
    talk.draft(3)
    talk.g.lost()
    assert talk.g.phase is Phase.WAITING
    assert talk.draft(4) == [], "it drafts on without a link"
    commands = talk.open(9)
    assert commands[0] == Send(Open(9, None, 0, PROMPT, (1,), {"rule": "greedy"}, 20, (), 7))
    assert commands[1:] == [Send(Draft(9, 4, 4, (2, 3, 4)))]
    assert talk.g.tally.resumed == 1
    assert talk.commit(2, 8, accepted=1, stream=1) == []
    talk.commit(2, 8, accepted=1)
    assert talk.g.committed == (1, 2, 8)
    assert hints(talk.draft(5)) == [(6, 6, (5,))]


def test_it_drafts_no_further_ahead_than_the_cloud_takes_hints() -> None:
    talk = Talk(ahead=9)
    talk.open(max_ahead=2)
    assert hints(talk.draft(1, 2)) == [(3, 3, (1,)), (3, 4, (2,))]
    assert talk.g.next_task(may_read=True) is None
    talk.commit(1, accepted=1)
    assert hints(talk.draft(3)) == [(4, 5, (3,))]


def test_a_cloud_that_takes_more_hints_than_wanted_changes_nothing() -> None:
    talk = Talk(ahead=2)
    talk.open(max_ahead=9)
    talk.draft(1, 2)
    assert talk.g.next_task(may_read=True) is None


def test_guesses_beyond_what_a_new_cloud_takes_are_dropped_and_drafted_again() -> None:
    talk = Talk(ahead=4, max_tokens=30)
    talk.draft(1, 2, 3, 4)
    assert hints(talk.open(max_ahead=2)) == [(3, 3, (1, 2))]
    assert talk.g.next_task(may_read=True) is None
    talk.commit(1, 2, 7, accepted=2)
    assert hints(talk.draft(8)) == [(6, 6, (8,))]
    talk.g.lost()
    assert hints(talk.open(2, max_ahead=3)) == [(6, 6, (8,))]
    assert hints(talk.draft(9, 10)) == [(6, 7, (9,)), (6, 8, (10,))]
    assert talk.g.next_task(may_read=True) is None


def test_a_guess_under_way_when_a_cloud_takes_fewer_is_dropped() -> None:
    talk = Talk(ahead=4)
    talk.draft(1, 2, 3)
    task = talk.task()
    assert hints(talk.open(max_ahead=2)) == [(3, 3, (1, 2))]
    assert talk.done(task, 4) == []
    assert [guess.token for guess in talk.g.guesses] == [1, 2]
    talk.commit(1, accepted=1)
    assert hints(talk.draft(5)) == [(4, 5, (5,))]


# --- giving up drafting


def test_the_cloud_is_told_when_drafting_ends() -> None:
    talk = Talk(patience_us=7)
    talk.open()
    talk.draft(1, 2)
    talk.task()
    assert talk.g.stop_drafting() == [Send(Draft(1, 3, 3, ()))]
    assert talk.g.next_task(may_read=True) is None
    assert talk.commit(1, 2, accepted=1) == [Emit((1, 2), (Origin.DRAFT_ACCEPTED, Origin.TARGET))]
    talk.g.lost()
    (command,) = talk.open(2)
    assert isinstance(command, Send)
    assert isinstance(command.message, Open)
    assert command.message.patience_us == 0


def test_without_a_link_nobody_need_be_told() -> None:
    assert Talk().g.stop_drafting() == []


@pytest.mark.parametrize("before", [(1,), ()])
def test_a_guess_that_comes_after_drafting_ended_is_dropped(before: tuple[int, ...]) -> None:
    talk = Talk()
    talk.open()
    talk.draft(*before)
    task = talk.task()
    talk.g.stop_drafting()
    assert talk.done(task, 2) == []
    assert talk.g.guesses == []
    assert talk.g.tally.drafted == len(before)


# --- edge and cloud together

END = 7
SIZE = 8
VOCABULARY = Vocabulary(SIZE, frozenset({END}), lambda token: b"abcdefg"[token : token + 1])


@lru_cache(maxsize=200_000)
def toy_logits(tail: tuple[int, ...], who: int) -> NDArray[np.float32]:
    seed = who
    for token in tail:
        seed = (seed * 1_000_003 + token + 11) % (1 << 61)
    row = np.random.default_rng(seed).normal(0, 2, SIZE).astype(np.float32)
    row[END] -= 2
    row.flags.writeable = False
    return row


def target_logits(context: Sequence[int]) -> NDArray[np.float32]:
    return toy_logits(tuple(context[-4:]), 1)


def draft_logits(context: Sequence[int]) -> NDArray[np.float32]:
    """Like the target's, near enough to be right about two times in three."""
    return target_logits(context) + toy_logits(tuple(context[-2:]), 2) * np.float32(0.4)


def target_only(request: Request) -> tuple[list[int], Finish]:
    """The plain loop: what the target alone says."""
    tokens, text = list(request.prompt), TextStream(request.stop)
    while True:
        token = choose(target_logits(tokens), request.sampling, len(tokens), tokens, len(request.prompt))
        tokens.append(token)
        answer = tokens[len(request.prompt) :]
        if token != END:
            text.feed(VOCABULARY.piece(token))
        if token == END or text.stopped:
            return answer, Finish.STOP
        if len(answer) == request.max_tokens:
            return answer, Finish.LENGTH


@dataclass
class Wire:
    """One connection's stream: two queues that keep order, and the session at the other end."""

    up: deque[Open | Draft] = field(default_factory=deque)
    down: deque[Tokens] = field(default_factory=deque)
    session: Session | None = None
    finished: bool = False


class World:
    """Generation, drafter, wire and cloud session, moved one event at a time."""

    def __init__(self, request: Request, max_ahead: int, max_verify: int) -> None:
        self.request, self.max_ahead, self.max_verify = request, max_ahead, max_verify
        self.g = Generation(request)
        self.g.slot = 0
        self.wire: Wire | None = None
        self.streams = 0
        self.cache: list[int] = []
        self.task: DraftTask | None = None
        self.emitted: list[int] = []
        self.origins: list[Origin] = []
        self.finish: Finish | None = None
        self.received = self.verified = self.accepted = 0
        self.now = 0.0

    def perform(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Send(message):
                    assert self.wire is not None
                    assert message.stream == self.streams
                    self.wire.up.append(message)
                case Emit(ids, origins):
                    assert self.finish is None
                    self.emitted.extend(ids)
                    self.origins.extend(origins)
                case Finished(reason):
                    self.finish = reason

    def connect(self) -> None:
        if self.wire is None and self.finish is None:
            self.wire = Wire()
            self.streams += 1
            self.perform(self.g.open(self.streams, self.max_ahead))

    def lose(self) -> None:
        if self.wire is not None:
            self.wire = None
            self.g.lost()

    def start_draft(self) -> None:
        task = self.g.next_task(may_read=True)
        if task is None:
            return
        assert self.task is None
        known = [*self.g.tokens, *(g.token for g in self.g.guesses)]
        assert task.context == known
        assert 1 <= len(task.tokens) <= PROMPT_CHUNK_TOKENS
        assert len(known) < len(self.request.prompt) + self.request.max_tokens
        assert len(self.g.guesses) < self.request.ahead
        self.task = task

    def end_draft(self) -> None:
        task, self.task = self.task, None
        if task is None:
            return
        assert task.keep <= len(self.cache)
        self.cache = [*self.cache[: task.keep], *task.tokens]
        assert self.cache == task.context[: len(self.cache)]
        assert task.wants_guess == (len(self.cache) == len(task.context))
        made = None
        if task.wants_guess:
            made = guess(
                draft_logits(task.context), task.sampling, len(task.context), task.context, task.prompt_len
            )
        self.perform(self.g.drafted(task, made))

    def up(self) -> None:
        if self.wire is None or not self.wire.up:
            return
        message = self.wire.up.popleft()
        if isinstance(message, Open):
            assert message.prompt == self.request.prompt
            self.wire.session = Session.of(message, VOCABULARY, self.max_ahead, self.now)
        elif self.wire.session is not None and not self.wire.finished:
            self.wire.session.hint(message)
            assert self.wire.session.invalid_hints == 0

    def down(self) -> None:
        if self.wire is not None and self.wire.down:
            message = self.wire.down.popleft()
            self.received += 1
            self.verified += message.verified
            self.accepted += message.accepted
            self.perform(self.g.receive(message))

    def step(self, *, patient: bool) -> None:
        self.now += 1e-3
        wire = self.wire
        if wire is None or wire.session is None or wire.finished:
            return
        session = wire.session
        if patient and session.ready_at() > self.now:
            return
        line = session.take_hints(self.max_verify)
        context = list(session.tokens)
        rows = np.stack(
            [target_logits([*context, *(h.token for h in line[:i])]) for i in range(len(line) + 1)]
        )
        verdict = verify(rows, line, session.sampling, context, session.prompt_len)
        done = session.commit(verdict, len(line), self.now)
        assert done.accepted <= done.verified == len(line)
        wire.finished = done.finish is not Finish.NONE
        wire.down.append(
            Tokens(self.streams, done.base, done.ids, done.accepted, done.verified, 1, done.finish)
        )

    def run(self, events: Sequence[tuple[str, int]]) -> None:
        for event, number in events:
            match event:
                case "connect":
                    self.connect()
                case "lose":
                    self.lose()
                case "draft":
                    self.start_draft()
                case "drafted":
                    self.end_draft()
                case "up":
                    self.up()
                case "down":
                    self.down()
                case "step":
                    self.step(patient=bool(number % 2))
            assert len(self.g.guesses) <= self.request.ahead
        # From here on everything works, fairly: it must come to an end.
        for _ in range(40 * self.request.max_tokens):
            if self.finish is not None:
                break
            self.connect()
            self.start_draft()
            self.end_draft()
            self.up()
            self.up()
            self.step(patient=False)
            self.down()

    def check_counts(self) -> None:
        g, t = self.g, self.g.tally
        assert self.finish is not None
        assert g.phase is Phase.FINISHED
        assert g.committed == tuple(self.emitted)
        assert g.origins == self.origins
        assert len(self.origins) == len(self.emitted)
        assert self.origins.count(Origin.DRAFT_ACCEPTED) == t.accepted == self.accepted
        assert self.origins.count(Origin.TARGET) + t.accepted == len(self.emitted)
        assert self.origins.count(Origin.TARGET) <= t.forwards == self.received
        assert t.accepted <= t.verified == self.verified
        assert t.forwards_without_hints <= t.forwards
        assert t.resumed == self.streams - 1
        assert g.next_task(may_read=True) is None


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "connect",
                "draft",
                "draft",
                "drafted",
                "drafted",
                "up",
                "up",
                "down",
                "down",
                "step",
                "step",
                "lose",
            ]
        ),
        st.integers(0, 7),
    ),
    max_size=150,
)
REQUESTS = st.builds(
    Request,
    prompt=st.lists(st.integers(0, 6), min_size=1, max_size=12).map(tuple),
    sampling=st.sampled_from(
        [
            GREEDY,
            Sampling(repetition_penalty=1.3, presence_penalty=0.8, frequency_penalty=0.4),
            Sampling(Rule.COUPLED, 5, 1.0),
            Sampling(Rule.COUPLED, 6, 0.8, top_k=5, top_p=0.9, frequency_penalty=0.6, logit_bias=((2, 0.5),)),
            Sampling(Rule.COUPLED, 9, 0.0),
        ]
    ),
    max_tokens=st.integers(1, 30),
    stop=st.sampled_from([(), (), ("ab",), ("cde", "ga"), ("f",)]),
    ahead=st.integers(0, 8),
    patience_us=st.sampled_from([0, 2000, 10**9]),
    hint_tokens=st.integers(1, 4),
)


@settings(max_examples=300, deadline=None)
@given(REQUESTS, st.integers(1, 10), st.integers(0, 5), EVENTS)
def test_the_text_is_the_targets_whatever_happens_on_the_way(
    request_: Request, max_ahead: int, max_verify: int, events: Sequence[tuple[str, int]]
) -> None:
    world = World(request_, max_ahead, max_verify)
    world.run([("connect", 0), *events])
    assert (world.emitted, world.finish) == target_only(request_)
    world.check_counts()


@settings(max_examples=100, deadline=None)
@given(REQUESTS, st.integers(1, 10), st.integers(0, 5), EVENTS)
def test_rejection_commits_possible_texts_and_counts_right(
    request_: Request, max_ahead: int, max_verify: int, events: Sequence[tuple[str, int]]
) -> None:
    sampling = Sampling(Rule.REJECTION, 4, 0.9, top_k=4)
    world = World(replace(request_, sampling=sampling), max_ahead, max_verify)
    world.run([("connect", 0), *events])
    world.check_counts()
    for end in range(len(request_.prompt), len(world.g.tokens)):
        context = world.g.tokens[:end]
        assert world.g.tokens[end] in shape(target_logits(context), sampling).ids


def test_the_simulated_draft_is_neither_always_right_nor_always_wrong() -> None:
    """Or the two tests above would prove little."""
    rates = []
    for sampling in (GREEDY, Sampling(Rule.COUPLED, 5, 1.0), Sampling(Rule.REJECTION, 5, 1.0)):
        accepted = verified = 0
        for start in range(12):
            request = Request((start % 7, start // 7), sampling, 30)
            world = World(request, 16, 4)
            steady = [
                ("up", 0),
                ("draft", 7),
                ("drafted", 0),
                ("draft", 7),
                ("drafted", 0),
                ("up", 0),
                ("up", 0),
            ]
            world.run([("connect", 0), *[*steady, ("step", 0), ("down", 0)] * 40])
            accepted += world.g.tally.accepted
            verified += world.g.tally.verified
        rates.append(accepted / verified)
    assert all(0.3 < rate < 0.95 for rate in rates), rates


def test_an_edge_that_would_draft_beyond_the_boards_room_still_helps_later() -> None:
    perfect = Request((1, 2), GREEDY, 60, ahead=12)
    world = World(perfect, 4, 2)
    text, _ = target_only(perfect)
    assert len(text) > 30
    world.connect()

    def draft_all() -> int:
        made = 0
        while (task := world.g.next_task(may_read=True)) is not None:
            world.perform(world.g.drafted(task, Guess(text[len(task.context) - 2], 0.9)))
            made += 1
        return made

    assert draft_all() == 4
    for _ in range(5):
        world.up()
    world.step(patient=False)
    world.step(patient=False)
    world.down()
    world.down()
    assert draft_all() > 0
    while world.wire is not None and world.wire.up:
        world.up()
    assert world.wire is not None
    assert world.wire.session is not None
    assert world.wire.session.board.take(99)
