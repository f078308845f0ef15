"""What the control socket takes and gives: log-probabilities within the room of a frame."""

import pytest

from ecd.edge.acceptance import Acceptance
from ecd.edge.answer import Answer
from ecd.edge.drafter import Prefill
from ecd.edge.generation import Generation
from ecd.edge.pacing import Objective, Pacer
from ecd.edge.request import Request
from ecd.edge.results import check_result_fits, result_of
from ecd.edge.run_args import AnswerSettings, parse_run, request_of
from ecd.edge.survival import EDGE_MEMORY, Survival
from ecd.errors import BadRequest, ProtocolError
from ecd.logprobs import MAX_TOP, TokenLogprobs
from ecd.sampling import Sampling
from ecd.text import TextStream
from ecd.wire.frames import encode_frame
from ecd.wire.messages import Finish, Origin
from tests.edge.gateway.instant_cloud import ByteModel

LARGEST_ID = (1 << 24) - 1


def finished(tokens: int, logprobs: int | None) -> Answer:
    """An answer whose entries all take as much room as they can."""
    request = Request((1,), Sampling(), max_tokens=tokens, logprobs=logprobs)
    generation = Generation(request, Acceptance(), Pacer(Objective.BALANCED, Survival(EDGE_MEMORY)))
    generation.tokens.extend([LARGEST_ID] * tokens)
    generation.origins.extend([Origin.EDGE_CONFIDENT] * tokens)
    if logprobs is not None:
        told = TokenLogprobs(-0.1, tuple((LARGEST_ID - rank, -0.1) for rank in range(logprobs)))
        generation.logprobs.extend([told] * tokens)
    text = TextStream()
    text.feed(b"sixteen letters!" * tokens)
    return Answer(1, generation, text, 0.0, 0.0)


def test_a_result_has_logprobs_only_if_they_were_asked_for() -> None:
    assert "logprobs" not in result_of(finished(2, None), Finish.LENGTH, {})
    assert (
        result_of(finished(2, 1), Finish.LENGTH, {})["logprobs"]
        == [{"logprob": -0.1, "top": [[LARGEST_ID, -0.1]]}] * 2
    )


@pytest.mark.parametrize("logprobs", [0, 1, MAX_TOP])
def test_a_result_that_is_not_refused_fits_its_frame(logprobs: int) -> None:
    most = 1
    for step in (1 << 18, 1 << 14, 1 << 10, 1 << 6, 1 << 2, 1):
        while fits(most + step, logprobs):
            most += step
    encode_frame([66, 1, result_of(finished(most, logprobs), Finish.LENGTH, {})])
    with pytest.raises(BadRequest, match=f"room for {most} tokens .* max_tokens {most + 1}; lower one"):
        check_result_fits(most + 1, logprobs)
    with pytest.raises(ProtocolError, match="over the limit"):
        encode_frame([66, 1, result_of(finished(2 * most, logprobs), Finish.LENGTH, {})])


def fits(max_tokens: int, logprobs: int) -> bool:
    try:
        check_result_fits(max_tokens, logprobs)
    except BadRequest:
        return False
    return True


def test_without_logprobs_any_length_may_be_asked_for() -> None:
    check_result_fits(1 << 20, None)


@pytest.mark.parametrize("logprobs", [-1, MAX_TOP + 1, 1.0, True, "1"])
def test_a_bad_number_of_them_is_refused_by_name(logprobs: object) -> None:
    with pytest.raises(BadRequest, match=r"^logprobs: "):
        parse_run({"prompt": "x", "logprobs": logprobs})


@pytest.mark.parametrize("default", [True, False])
def test_whether_earlier_texts_serve_is_the_edges_to_say_unless_asked(default: bool) -> None:
    settings = AnswerSettings(kv_cache=default)

    def fresh(**args: object) -> bool:
        return request_of(parse_run({"prompt": "x", **args}), ByteModel(), settings).fresh

    assert fresh() is fresh(kv_cache=None) is not default
    assert fresh(kv_cache=False) is True
    assert fresh(kv_cache=True) is False
    with pytest.raises(BadRequest, match=r"^kv_cache: "):
        parse_run({"prompt": "x", "kv_cache": "off"})


def test_a_result_tells_what_was_held_and_what_was_read() -> None:
    answer = finished(2, None)
    answer.generation.tally.cached_tokens = 1
    answer.draft_prefill, answer.drafted_at, answer.open_bytes = Prefill(3, 4), 0.25, 70
    stats = result_of(answer, Finish.LENGTH, {})["stats"]
    assert (stats["cached_tokens"], stats["prefill_tokens"]) == (1, 0)
    assert (stats["draft_cached_tokens"], stats["draft_prefill_tokens"]) == (3, 4)
    assert (stats["draft_ready_ms"], stats["open_bytes"]) == (250.0, 70)


def test_a_cloud_that_was_never_asked_read_nothing() -> None:
    assert result_of(finished(2, None), Finish.LENGTH, {})["stats"]["prefill_tokens"] == 0
    assert result_of(finished(2, None), Finish.LENGTH, {})["stats"]["draft_ready_ms"] is None
