"""What is asked for a link's loss: the request's own word, then the edge's, and what cannot be done."""

from typing import Any

import pytest

from ecd.edge.request import LinkLoss
from ecd.edge.run_args import AnswerSettings, parse_run, request_of
from ecd.errors import BadRequest
from tests.edge.gateway.instant_cloud import ByteModel

WAIT, DEGRADE = AnswerSettings(), AnswerSettings(link_loss=LinkLoss.DEGRADE)


def asked(settings: AnswerSettings = WAIT, **args: Any) -> LinkLoss:
    return request_of(parse_run({"prompt": [1], **args}), ByteModel(), settings).link_loss


def test_the_requests_word_goes_over_the_edges() -> None:
    assert asked() is LinkLoss.WAIT
    assert asked(DEGRADE) is LinkLoss.DEGRADE
    assert asked(DEGRADE, link_loss="fail") is LinkLoss.FAIL
    assert asked(link_loss="degrade") is LinkLoss.DEGRADE


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"logprobs": 0}, "logprobs are the target's"),
        ({"draft": False}, "goes on with drafts"),
        ({"ahead_tokens": 0}, "goes on with drafts"),
    ],
)
def test_who_asks_for_what_the_draft_cannot_do_is_told_and_waits_where_only_the_edge_would(
    args: dict[str, Any], named: str
) -> None:
    with pytest.raises(BadRequest, match=named):
        asked(link_loss="degrade", **args)
    assert asked(DEGRADE, **args) is LinkLoss.WAIT
    assert asked(DEGRADE, link_loss="fail", **args) is LinkLoss.FAIL


def test_another_word_is_refused_by_name() -> None:
    with pytest.raises(BadRequest, match="link_loss"):
        asked(link_loss="retry")
