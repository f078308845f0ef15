"""Edge and cloud together in mode confident, in virtual time: who commits what, and what the audits say."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exchange import AROUND, LONG, REQUESTS, Circumstances, World

from ecd.cloud.session import MAX_PATIENCE_S
from ecd.edge.pacing import Objective
from ecd.edge.request import Mode, Request
from ecd.edge.threshold import Thresholds
from ecd.sampling import choose, guess
from ecd.text import TextStream
from ecd.wire.messages import Finish, Origin
from tests.toy import END, VOCABULARY, draft_logits, target_logits, target_only

CONFIDENT = replace(LONG, mode=Mode.CONFIDENT, threshold=0.5, audit_share=1.0, max_tokens=200)


def targets_choice(asked: Request, tokens: list[int]) -> int:
    return choose(target_logits(tokens), asked.sampling, len(tokens), tokens, len(asked.prompt))


def drafts_choice(asked: Request, tokens: list[int]) -> tuple[int, float]:
    made = guess(draft_logits(tokens), asked.sampling, len(tokens), tokens, len(asked.prompt))
    return made.token, made.confidence


def agreement(world: World) -> float:
    """Of the edge's tokens, those that the target would have chosen behind the same text."""
    first, tokens = len(world.request.prompt), world.g.tokens
    own = [
        tokens[at] == targets_choice(world.request, tokens[:at])
        for at, origin in enumerate(world.g.origins, first)
        if origin is Origin.EDGE_CONFIDENT
    ]
    return sum(own) / len(own)


@settings(max_examples=250, deadline=None)
@given(REQUESTS, AROUND, st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]), st.sampled_from([0.0, 0.3, 1.0]))
def test_every_token_is_of_whom_its_origin_says_and_the_text_ends_where_it_must(
    asked: Request, around: Circumstances, threshold: float, share: float
) -> None:
    asked = replace(asked, mode=Mode.CONFIDENT, threshold=threshold, audit_share=share, logprobs=None)
    world = World(asked, replace(around, drafter="near")).run()
    g, first = world.g, len(asked.prompt)
    assert g.turns is not None
    assert g.committed == tuple(world.emitted)
    assert len(g.origins) == len(world.emitted) <= asked.max_tokens
    text = TextStream(asked.stop)
    for at, origin in enumerate(g.origins, first):
        before, token = g.tokens[:at], g.tokens[at]
        if origin is Origin.EDGE_CONFIDENT:
            made, sure = drafts_choice(asked, before)
            assert (token, sure >= threshold) == (made, True)
        else:
            assert token == targets_choice(asked, before)
        assert token != END or at == len(g.tokens) - 1
        if token != END:
            text.feed(VOCABULARY.piece(token))
        assert not text.stopped or at == len(g.tokens) - 1
    stopped = g.tokens[-1] == END or text.stopped
    assert world.finish is (Finish.STOP if stopped else Finish.LENGTH)
    # Nobody waits for the other in vain, not even where the cloud is patient without end.
    pauses = (later - earlier for earlier, later in itertools.pairwise([0.0, *world.tokens_at]))
    assert max(pauses) < MAX_PATIENCE_S / 3
    assert g.turns.compared <= g.origins.count(Origin.EDGE_CONFIDENT)
    assert g.turns.agreed <= g.turns.compared


def test_a_threshold_of_nothing_asks_nobody_and_one_of_all_is_the_targets_text() -> None:
    own = World(replace(CONFIDENT, threshold=0.0, audit_share=0.0), Circumstances()).run()
    assert set(own.g.origins) == {Origin.EDGE_CONFIDENT}
    assert own.forwards == 0
    asked = replace(CONFIDENT, threshold=1.0)
    targets = World(asked, Circumstances()).run()
    assert Origin.EDGE_CONFIDENT not in targets.g.origins
    assert (targets.emitted, targets.finish) == target_only(asked)


@pytest.mark.parametrize("max_verify", [0, 2, 16])
@pytest.mark.parametrize("rtt_s", [0.0, 0.1])
def test_all_that_is_audited_is_judged_as_the_target_would(rtt_s: float, max_verify: int) -> None:
    world = World(CONFIDENT, Circumstances(rtt_s=rtt_s, max_verify=max_verify)).run()
    turns = world.g.turns
    assert turns is not None
    assert turns.compared == world.g.origins.count(Origin.EDGE_CONFIDENT) > 40
    assert turns.agreed / turns.compared == agreement(world)
    assert 0.5 < agreement(world) < 1


def test_an_audit_costs_a_forward_only_where_the_target_disagrees_or_the_edge_goes_on() -> None:
    """Where the edge is never sure for long, all of its tokens are compared at hand-overs."""
    asked = replace(CONFIDENT, objective=Objective.COST)
    audited = World(asked, Circumstances(rtt_s=0.0)).run().g
    plain = World(replace(asked, audit_share=0.0), Circumstances(rtt_s=0.0)).run().g
    assert audited.turns is not None
    assert audited.tokens == plain.tokens
    wrong = audited.turns.compared - audited.turns.agreed
    complete_blocks = audited.turns.compared // 8
    assert plain.tally.forwards <= audited.tally.forwards <= plain.tally.forwards + wrong + complete_blocks


def test_less_is_asked_of_the_cloud_the_lower_the_threshold() -> None:
    forwards = [
        World(replace(CONFIDENT, threshold=threshold, audit_share=0.0), Circumstances())
        .run()
        .g.tally.forwards
        for threshold in (0.0, 0.5, 0.8, 0.95, 1.0)
    ]
    assert forwards == sorted(forwards)
    assert forwards[0] < forwards[2] < forwards[4]


def test_the_audited_agreement_comes_to_what_is_asked_for() -> None:
    thresholds = Thresholds()
    asked = replace(CONFIDENT, threshold=None, target_agreement=0.75)

    def run(seed: int) -> None:
        sampling = replace(asked.sampling, seed=seed)
        World(replace(asked, sampling=sampling), Circumstances(), thresholds=thresholds).run()

    for seed in range(8):
        run(seed)
    before = thresholds.audited, thresholds.agreed
    for seed in range(10, 20):
        run(seed)
    audited, agreed = thresholds.audited - before[0], thresholds.agreed - before[1]
    assert audited > 300
    assert 0.71 < agreed / audited < 0.79


def test_a_cut_loses_and_repeats_nothing_and_leaves_no_doubt_whose_turn_it_is() -> None:
    asked = replace(CONFIDENT, max_tokens=30)
    for cut in range(1, 30):
        world = World(asked, Circumstances(cuts=(cut * 0.02, cut * 0.05), rtt_s=0.1)).run()
        assert len(world.emitted) == asked.max_tokens
        own = [origin is Origin.EDGE_CONFIDENT for origin in world.g.origins]
        assert True in own
        assert False in own
