"""Who chooses the tokens: what requests say of it, what the edge's settings say, and changing those."""

from typing import Any

import pytest

from ecd.config import EdgeConfig
from ecd.edge.pacing import Objective
from ecd.edge.request import Mode, Request
from ecd.edge.run_args import AnswerSettings, parse_run, request_of
from ecd.errors import BadRequest
from ecd.sampling import Rule


class Words:
    """A tokenizer of no use: prompts are given as ids."""

    chat_template = None
    adds_bos = False
    bos = eos = -1

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        raise AssertionError

    def piece(self, token: int, *, control: bool = False) -> bytes:
        raise AssertionError


def asked(settings: AnswerSettings | None = None, **args: Any) -> Request:
    return request_of(parse_run({"prompt": [1, 2], **args}), Words(), settings or AnswerSettings())


def test_a_request_that_does_not_say_is_exact_unless_the_edge_is_set_otherwise() -> None:
    assert asked().mode is Mode.EXACT
    settings = AnswerSettings(mode=Mode.CONFIDENT, threshold=0.8, audit_share=0.5, target_agreement=0.9)
    request = asked(settings)
    assert (request.mode, request.threshold, request.audit_share) == (Mode.CONFIDENT, 0.8, 0.5)
    assert request.target_agreement == 0.9
    assert asked(settings, mode="exact").mode is Mode.EXACT
    request = asked(settings, threshold="adaptive", audit_share=0.0, target_agreement=0.99)
    assert (request.threshold, request.audit_share, request.target_agreement) == (None, 0.0, 0.99)


@pytest.mark.parametrize("mode", ["confident", "edge-only"])
@pytest.mark.parametrize(("temperature", "rule"), [(0.0, Rule.GREEDY), (0.7, Rule.COUPLED)])
def test_tokens_are_chosen_by_the_rules_of_exact_whoever_chooses(
    mode: str, temperature: float, rule: Rule
) -> None:
    assert asked(mode=mode, temperature=temperature).sampling.rule is rule


def test_a_rule_by_name_is_exact_under_that_rule() -> None:
    request = asked(AnswerSettings(mode=Mode.CONFIDENT), mode="rejection", temperature=0.5)
    assert (request.mode, request.sampling.rule) == (Mode.EXACT, Rule.REJECTION)


def test_cloud_only_is_the_clouds_text_without_hints() -> None:
    request = asked(mode="cloud-only")
    assert (request.mode, request.draft) == (Mode.CLOUD_ONLY, False)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (
            {"mode": "fast"},
            "mode 'fast' is not known; use exact, confident, edge-only, cloud-only, or a rule",
        ),
        ({"mode": "confident", "logprobs": 2}, "logprobs are the target's"),
        ({"mode": "edge-only", "logprobs": 0}, "logprobs are the target's"),
        ({"mode": "confident", "draft": False}, "mode confident is not without drafts; use mode cloud-only"),
        ({"threshold": 1.5}, "threshold: "),
        ({"threshold": True}, "threshold: "),
        ({"target_agreement": 0.2}, "target_agreement: "),
        ({"audit_share": -1.0}, "audit_share: "),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(args: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        asked(**args)


def test_settings_are_those_of_the_daemon() -> None:
    config = EdgeConfig(model="m", mode="edge-only", threshold=0.7, objective="cost", patience_ms="rounds")
    settings = AnswerSettings.of(config)
    assert (settings.mode, settings.threshold, settings.patience_ms) == (Mode.EDGE_ONLY, 0.7, "rounds")
    assert settings.objective is Objective.COST
    assert AnswerSettings.of(EdgeConfig(model="m")) == AnswerSettings()


def test_settings_change_for_all_who_hold_them() -> None:
    settings = AnswerSettings()
    settings.change({"mode": "confident", "target_agreement": 0.97, "patience_ms": 20})
    assert asked(settings).mode is Mode.CONFIDENT
    assert settings.model_dump(mode="json") == {
        "mode": "confident",
        "threshold": "adaptive",
        "target_agreement": 0.97,
        "audit_share": 0.2,
        "objective": "balanced",
        "ahead_tokens": None,
        "patience_ms": 20.0,
        "hint_tokens": None,
        "kv_cache": True,
        "link_loss": "wait",
    }
    settings.change({"patience_ms": None, "kv_cache": False})
    assert settings.patience_ms is None
    assert asked(settings).fresh


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"mode": "confident", "audit_share": 2}, "audit_share: "),
        ({"mode": "fast"}, "mode: "),
        ({"threshold": True}, "threshold: .* a number is wanted, not true or false"),
        ({"audit_share": False}, "audit_share: .* a number is wanted"),
        ({"patience_ms": True}, "patience_ms: .* a number is wanted"),
        ({"sessions": 3}, "sessions cannot be set while running; mode, threshold, target_agreement"),
        ({7: 3}, "7 cannot be set"),
    ],
    ids=str,
)
def test_a_change_that_is_wrong_in_part_changes_nothing(given: dict[Any, Any], reason: str) -> None:
    settings = AnswerSettings()
    with pytest.raises(BadRequest, match=reason):
        settings.change(given)
    assert settings == AnswerSettings()
