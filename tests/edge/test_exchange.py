"""Edge and cloud together in virtual time: the real state machines of both, a toy target, any link."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecd.cloud.session import Vocabulary
from ecd.cloud.verifier import Judged, StepResult, Work
from ecd.edge.drafter import DraftTask
from ecd.edge.generation import Phase
from ecd.edge.meter import Meter
from ecd.edge.pacing import Objective
from ecd.edge.request import Request
from ecd.lab import exchange
from ecd.logprobs import TokenLogprobs, token_logprobs, verdict_logprobs
from ecd.sampling import Guess, Rule, Sampling, shape, verify
from ecd.wire.messages import ENDLESS_US, Origin
from tests.toy import NEVER_ENDING, VOCABULARY, guessed, target_logits, target_only


@dataclass(frozen=True)
class Circumstances(exchange.Circumstances):
    """`drafter`: `near` the target, `wrong` and sure of it, `random`, in `runs` of random length, or `late`,
    often with nothing to say.
    """

    drafter: str = "near"


@dataclass
class ToyPair:
    """The toy models as engines, which look at what they are asked."""

    world: "World"

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        g = self.world.g
        known = [*g.tokens, *(guess.token for guess in g.lines.main.guesses)]
        assert all(task.branch or task.context[:] == known for task in tasks)
        # The last token is the target's own.
        room = len(g.request.prompt) + g.request.max_tokens - (g.turns is None)
        assert all(len(task.context) + task.at_most <= room for task in tasks)
        assert len({task.branch for task in tasks}) == len(tasks) <= 3
        assert all(list(task.context[: len(g.tokens)]) == g.tokens for task in tasks)
        return [guessed(task, self.world.around.drafter, self.world.rng) for task in tasks]

    def step(self, work: Sequence[Work]) -> StepResult:
        (part,) = work
        context, line = list(part.tokens), [hint.token for hint in part.hints]
        rows = np.stack([target_logits([*context, *line[:n]]) for n in range(len(line) + 1)])
        verdict = verify(rows, part.hints, part.sampling, context, part.prompt_len)
        logprobs = verdict_logprobs(rows, verdict.tokens, part.logprobs)
        return StepResult({part.key: Judged(verdict, len(line), logprobs)}, {}, 1 + len(line), 1)


@dataclass
class World(exchange.Exchange):
    """An exchange of the toy pair."""

    around: Circumstances
    drafter: ToyPair = field(init=False)
    verifier: ToyPair = field(init=False)
    vocabulary: Vocabulary = VOCABULARY

    def __post_init__(self) -> None:
        super().__post_init__()
        self.drafter = self.verifier = ToyPair(self)

    # -- afterwards

    def check_counts(self) -> None:
        g, t = self.g, self.g.tally
        assert g.phase is Phase.FINISHED
        assert g.committed == tuple(self.emitted)
        assert len(g.origins) == len(self.emitted)
        assert g.logprobs == self.logprobs == self.true_logprobs()
        assert g.origins.count(Origin.DRAFT_ACCEPTED) == t.accepted <= t.verified
        assert g.origins.count(Origin.TARGET) <= t.forwards == self.forwards
        assert t.right <= t.settled
        assert t.forwards_without_hints <= t.forwards
        assert t.resumed == self.stream - 1
        assert g.next_tasks(3) == []
        assert g.next_timer() is None

    def true_logprobs(self) -> list[TokenLogprobs]:
        """Of every committed token, in their order, whatever happened; none if none were asked for."""
        if self.request.logprobs is None:
            return []
        first, tokens = len(self.request.prompt), self.g.tokens
        return [
            token_logprobs(target_logits(tokens[:at]), tokens[at], self.request.logprobs)
            for at in range(first, len(tokens))
        ]


REQUESTS = st.builds(
    Request,
    prompt=st.lists(st.integers(0, 6), min_size=1, max_size=12).map(tuple),
    sampling=st.sampled_from(
        [
            Sampling(),
            Sampling(repetition_penalty=1.3, presence_penalty=0.8, frequency_penalty=0.4),
            Sampling(Rule.COUPLED, 5, 1.0),
            Sampling(Rule.COUPLED, 6, 0.8, top_k=5, top_p=0.9, frequency_penalty=0.6, logit_bias=((2, 0.5),)),
            Sampling(Rule.COUPLED, 7, 1.2, logit_bias=NEVER_ENDING),
            Sampling(Rule.COUPLED, 9, 0.0),
        ]
    ),
    max_tokens=st.integers(1, 50),
    stop=st.sampled_from([(), (), ("ab",), ("cde", "ga"), ("f",)]),
    objective=st.sampled_from(Objective),
    ahead=st.none() | st.integers(0, 8),
    patience_us=st.none() | st.sampled_from([0, 2000, ENDLESS_US]),
    hint_tokens=st.none() | st.integers(1, 4),
    logprobs=st.none() | st.integers(0, 3),
)
AROUND = st.builds(
    Circumstances,
    rtt_s=st.sampled_from([0.0, 0.01, 0.05, 0.4]),
    jitter=st.sampled_from([0.0, 0.3, 1.0]),
    draft_s=st.sampled_from([0.001, 0.005, 0.04]),
    step_s=st.sampled_from([0.01, 0.03]),
    slope=st.sampled_from([0.0, 0.02, 1.0]),
    cuts=st.lists(st.floats(0, 1.5), max_size=3).map(tuple),
    drafter=st.sampled_from(["near", "near", "wrong", "random", "runs", "late"]),
    max_ahead=st.integers(1, 20),
    max_verify=st.integers(0, 8),
    alternates=st.booleans(),
    seed=st.integers(0, 1 << 30),
)


@settings(max_examples=400, deadline=None)
@given(REQUESTS, AROUND)
def test_the_text_is_the_targets_whatever_happens_on_the_way(asked: Request, around: Circumstances) -> None:
    world = World(asked, around).run()
    assert (world.emitted, world.finish) == target_only(asked)
    world.check_counts()


@settings(max_examples=150, deadline=None)
@given(REQUESTS, AROUND)
def test_rejection_commits_possible_texts_and_counts_right(asked: Request, around: Circumstances) -> None:
    sampling = Sampling(Rule.REJECTION, 4, 0.9, top_k=4)
    world = World(replace(asked, sampling=sampling), around).run()
    world.check_counts()
    for end in range(len(asked.prompt), len(world.g.tokens)):
        context = world.g.tokens[:end]
        assert world.g.tokens[end] in shape(target_logits(context), sampling).ids
    assert world.g.tally.alternates_sent == 0


# --- what the controller is worth

LONG = Request((1, 2), Sampling(Rule.COUPLED, 7, 1.0, logit_bias=NEVER_ENDING), 600)
RTTS = (0.0, 0.02, 0.1, 0.4)


def took(asked: Request, **around: Any) -> World:
    world = World(asked, Circumstances(**around)).run()
    assert len(world.emitted) == asked.max_tokens
    return world


def test_the_simulated_draft_is_neither_always_right_nor_always_wrong() -> None:
    """Or the tests above would prove little."""
    for rule, temperature in ((Rule.GREEDY, 0.0), (Rule.COUPLED, 1.0), (Rule.REJECTION, 1.0)):
        world = took(replace(LONG, sampling=Sampling(rule, 5, temperature, logit_bias=NEVER_ENDING)))
        assert 0.3 < world.g.tally.accepted / world.g.tally.verified < 0.95


def test_alternates_are_sent_and_used() -> None:
    tally = took(LONG, rtt_s=0.1).g.tally
    assert 0 < tally.alternates_used <= tally.alternates_sent
    assert took(LONG, rtt_s=0.1, alternates=False).g.tally.alternates_sent == 0


@pytest.mark.parametrize("objective", [Objective.LATENCY, Objective.BALANCED])
@pytest.mark.parametrize("rtt_s", RTTS)
def test_drafting_is_faster_than_the_cloud_alone(rtt_s: float, objective: Objective) -> None:
    plain = took(replace(LONG, draft=False), rtt_s=rtt_s).decode_s
    assert plain == pytest.approx(0.03)
    drafted = took(replace(LONG, objective=objective), rtt_s=rtt_s).decode_s
    assert drafted < (0.75 if rtt_s < 0.1 else 1.0) * plain


@pytest.mark.parametrize("rtt_s", RTTS)
@pytest.mark.parametrize(
    "around", [{"drafter": "wrong"}, {"draft_s": 0.06}], ids=["always wrong", "slower than the target"]
)
def test_a_draft_that_is_of_no_use_costs_next_to_nothing(rtt_s: float, around: dict[str, Any]) -> None:
    plain = took(replace(LONG, draft=False), rtt_s=rtt_s).decode_s
    world = took(LONG, rtt_s=rtt_s, **around)
    assert world.decode_s <= 1.03 * plain
    if "drafter" in around:
        assert world.g.tally.sent < 80, "it is found out soon, and then looked at without sending"


@pytest.mark.parametrize("rtt_s", RTTS)
def test_cost_takes_hardly_more_forwards_than_the_fastest_rounds_and_less_time(rtt_s: float) -> None:
    rounds, cost = {k: [0.0, 0.0] for k in (2, 4, 6, 8, 12)}, [0.0, 0.0]
    for seed in range(3):
        asked = replace(LONG, sampling=replace(LONG.sampling, seed=seed), max_tokens=300)
        for k, sums in rounds.items():
            world = took(replace(asked, patience_us=ENDLESS_US, hint_tokens=k, ahead=k), rtt_s=rtt_s)
            sums[:] = sums[0] + world.decode_s, sums[1] + world.forwards
        measured = Meter(rtt_s, draft_s=0.005, step_s=0.03, token_s=0.0006)
        world = World(
            replace(asked, objective=Objective.COST), Circumstances(rtt_s=rtt_s), meter=measured
        ).run()
        cost = [cost[0] + world.decode_s, cost[1] + world.forwards]
    best = min(rounds.values())
    print(rtt_s, "cost against rounds, seconds and forwards:", cost, best, cost[1] / best[1])
    assert cost[0] < best[0]
    assert cost[1] <= 1.05 * best[1]


def test_strict_rounds_are_a_frame_and_a_forward_each() -> None:
    k = 4
    rounds = took(replace(LONG, patience_us=ENDLESS_US, hint_tokens=k, ahead=k), rtt_s=0.1)
    assert rounds.frames <= rounds.forwards + 2
    assert rounds.g.tally.verified >= k * (rounds.forwards - 3)
    round_s = 0.1 + k * 0.005 + 0.03 * (1 + k * 0.02)
    assert rounds.decode_s * len(rounds.emitted) / rounds.forwards == pytest.approx(round_s, rel=0.02)


def test_under_balanced_there_is_hardly_more_than_a_frame_for_each_forward() -> None:
    world = took(LONG, rtt_s=0.1)
    assert world.frames < 1.25 * world.forwards
