"""What is let through, and how the rest is refused: by name, whatever is wrong."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecd.edge.gateway.errors import Refused
from ecd.edge.gateway.openapi import document
from ecd.edge.gateway.schema import (
    MAX_NAMES,
    TOLD_CHARACTERS,
    ChatRequest,
    CompletionRequest,
    parsed,
)

CHAT = {"messages": [{"role": "user", "content": "x"}]}
PLAIN = {"prompt": "x"}


def refusal(kind: type[ChatRequest | CompletionRequest], asked: dict[str, Any]) -> Refused:
    with pytest.raises(Refused) as refused:
        parsed(kind, json.dumps(asked).encode())
    return refused.value


@pytest.mark.parametrize("name", sorted(ChatRequest.model_fields.keys() - {"messages"}))
def test_null_is_every_parameter_s_default(name: str) -> None:
    parsed(ChatRequest, json.dumps(CHAT | {name: None}).encode())


@pytest.mark.parametrize(
    "asked",
    [
        {"store": False},
        {"parallel_tool_calls": True},
        {"parallel_tool_calls": False},
        {"tools": [], "tool_choice": "none"},
        {"tool_choice": "auto"},
        {"functions": [], "function_call": "none"},
        {"metadata": {}},
        {"top_logprobs": 0},
        {"top_logprobs": 0, "logprobs": False},
    ],
)
def test_a_value_that_asks_for_nothing_changes_nothing(asked: dict[str, Any]) -> None:
    """And the document says that it may be there."""
    told = document(with_keys=False)["components"]["schemas"]["ChatRequest"]["properties"]
    for name in asked.keys() - {"top_logprobs", "logprobs"}:
        assert asked[name] in told[name]["enum"]
    plain, given = (parsed(ChatRequest, json.dumps(CHAT | more).encode()) for more in ({}, asked))
    assert given.model_dump(exclude={"top_logprobs", "logprobs"}) == plain.model_dump(
        exclude={"top_logprobs", "logprobs"}
    )


def test_notes_of_the_client_s_own_are_taken() -> None:
    parsed(ChatRequest, json.dumps(CHAT | {"user": "a", "safety_identifier": "b"}).encode())


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"store": True}, "store", "not supported"),
        ({"store": 0}, "store", "not supported"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages.0.tool_calls",
            "",
        ),
        ({"metadata": {"a": "b"}}, "metadata", "not supported"),
        ({"top_logprobs": 2}, "top_logprobs", "only with `logprobs: true`"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens", "differs"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only for `stream: true`"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "not padded",
        ),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "not 'json_object'"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"logit_bias": {"1": 200}}, "logit_bias.1", "less than or equal to 100"),
        ({"logit_bias": dict.fromkeys(range(5000), 1)}, "logit_bias", "at most 4096"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "match pattern"),
        ({"logit_bias": {"01": 1}}, "logit_bias.01", "match pattern"),
        ({"stop": ["a", ""]}, "stop.1", "at least 1 character"),
        ({"n": 1.5}, "n", "valid integer"),
        ({"ecd": {"mod": "exact"}}, "ecd.mod", "not a parameter known here"),
        ({"ecd": {"mode": "fast"}}, "ecd.mode", "'confident', 'edge-only', 'cloud-only'"),
        ({"ecd": {"threshold": 2}}, "ecd.threshold", "less than or equal to 1"),
        ({"ecd": {"target_agreement": 0.1}}, "ecd.target_agreement", "greater than or equal to 0.5"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'user'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0.type",
            "'image_url'",
        ),
    ],
)
def test_a_chat_that_cannot_be_answered_as_asked(asked: dict[str, Any], param: str, words: str) -> None:
    error = refusal(ChatRequest, CHAT | asked)
    assert error.param == param
    assert words in str(error)
    assert str(error).startswith(param)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"prompt": [1, -1]}, "prompt.1"),
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"prompt": ["a", 1]}, "prompt.1"),
        ({"prompt": [[1], "a"]}, "prompt.1"),
        ({"prompt": [[1], [2, "a"]]}, "prompt.1.1"),
        ({"prompt": [None]}, "prompt.0"),
        ({"prompt": ["a"] * 100, "n": 2}, "n"),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_a_completion_that_cannot_be_made_as_asked(asked: dict[str, Any], param: str) -> None:
    assert refusal(CompletionRequest, PLAIN | asked).param == param


@pytest.mark.parametrize("wrong", [{"a": 1}, [None], 10**30, "\x00" * 300])
@pytest.mark.parametrize(("kind", "asked"), [(ChatRequest, CHAT), (CompletionRequest, PLAIN)])
def test_what_has_the_wrong_type_is_refused_by_name(
    kind: type[ChatRequest | CompletionRequest], asked: dict[str, Any], wrong: Any
) -> None:
    texts = {"model", "user", "safety_identifier", "prompt"}
    for name in kind.model_fields.keys() - (texts if isinstance(wrong, str) else set()):
        param = refusal(kind, asked | {name: wrong}).param
        assert param is not None
        assert param.split(".")[0] == name


def test_of_a_long_name_only_the_beginning_is_told() -> None:
    error = refusal(CompletionRequest, PLAIN | {"k" * 100_000: 1})
    assert error.param == "k" * TOLD_CHARACTERS
    assert len(str(error)) < 2 * TOLD_CHARACTERS


@given(st.text(min_size=1).filter(lambda name: name not in ChatRequest.model_fields))
def test_an_unknown_parameter_is_named_whatever_its_name_is(name: str) -> None:
    try:
        error = refusal(ChatRequest, CHAT | {name: 1})
    except UnicodeEncodeError:
        return
    assert (error.param, error.error_code) == (name[:TOLD_CHARACTERS], "unknown_parameter")


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": [-1] * 400_000},
        {"prompt": [[-1]] * 400_000},
        {"prompt": [[-1] * 400_000]},
        {"prompt": [None] * 400_000},
        {"prompt": "x", "stop": [0] * 400_000},
        {str(name): 1 for name in range(400_000)},
        {"prompt": "x", "logit_bias": {str(-name): 1 for name in range(400_000)}},
        {"prompt": "x", "stop": [{"a": [{"b": 1}] * 400_000}]},
    ],
)
def test_much_that_is_wrong_is_refused_as_quickly_as_little(asked: dict[str, Any]) -> None:
    """All answers stand still meanwhile. With an error for each element it was three seconds and more."""
    body = json.dumps(asked).encode()
    start = time.thread_time()
    json.loads(body)
    read = time.thread_time()
    with pytest.raises(Refused):
        parsed(CompletionRequest, body)
    assert time.thread_time() - read < 0.5 + 5 * (read - start)


def test_names_are_counted_in_all_objects_and_in_no_text() -> None:
    """As many as may be, with the four of the message and the request."""
    parts = [{"type": "text", "text": "a: b"}] * ((MAX_NAMES - 4) // 2)
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": parts}], "n": 1}
    parsed(ChatRequest, json.dumps(asked).encode())
    assert f"more than {MAX_NAMES} names" in str(refusal(ChatRequest, asked | {"seed": 1}))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b'{"prompt":"\\ud800"}', b'{"prompt":"\xff"}'])
def test_bodies_that_are_no_objects(body: bytes) -> None:
    with pytest.raises(Refused):
        parsed(CompletionRequest, body)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_prompt_is_one_or_many_of_texts_or_ids(prompt: Any, prompts: list[Any]) -> None:
    assert parsed(CompletionRequest, json.dumps({"prompt": prompt}).encode()).prompts == prompts


def test_the_messages_of_an_earlier_reply_can_be_sent_again() -> None:
    said = {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": None, "annotations": []}
    asked = parsed(ChatRequest, json.dumps({"messages": [said]}).encode())
    assert asked.messages[0].to_map() == {"role": "assistant", "content": "hi"}
