"""What a user asked, as token ids: the model's own chat template, or the text as it is.

Used alike by the edge and the oracle, so that both start from the same ids.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any, Protocol

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ecd.errors import BadRequest

ChatMessages = Sequence[dict[str, str]]


class Tokenizer(Protocol):
    """What is needed of a model's vocabulary here."""

    chat_template: str | None
    adds_bos: bool
    bos: int
    eos: int

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]: ...

    def piece(self, token: int, *, control: bool = False) -> bytes: ...


def prompt_tokens(tokenizer: Tokenizer, prompt: str | ChatMessages, *, chat: bool) -> tuple[int, ...]:
    """Ids of a prompt; a string under `chat` is one user message. Raises BadRequest when there are none."""
    if not chat:
        if not isinstance(prompt, str):
            raise BadRequest("a raw prompt is a text, not a list of messages")
        ids = tokenizer.tokenize(prompt, add_bos=True, parse_special=True)
    else:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        text = render_chat(tokenizer, messages)
        starts_with_bos = tokenizer.bos >= 0 and text.startswith(_name(tokenizer, tokenizer.bos) or "\0")
        ids = tokenizer.tokenize(text, add_bos=not starts_with_bos, parse_special=True)
    if not ids:
        raise BadRequest("the prompt is empty; give at least one token of text", param="prompt")
    return tuple(ids)


def render_chat(tokenizer: Tokenizer, messages: ChatMessages) -> str:
    """The conversation as the model's template writes it, up to where the assistant answers."""
    if tokenizer.chat_template is None:
        raise BadRequest("this model has no chat template; send the prompt with --raw", param="prompt")
    if not messages:
        raise BadRequest("the conversation has no messages")
    for message in messages:
        if not (
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
        ):
            raise BadRequest("a chat message needs `role` and `content`, both texts")

    def refuse(reason: str) -> None:
        raise BadRequest(f"the model's chat template refuses these messages: {reason}", param="prompt")

    values: dict[str, Any] = {
        "messages": messages,
        "add_generation_prompt": True,
        "bos_token": _name(tokenizer, tokenizer.bos),
        "eos_token": _name(tokenizer, tokenizer.eos),
        "raise_exception": refuse,
    }
    try:
        return _compiled(tokenizer.chat_template).render(values)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as e:
        raise BadRequest(f"the model's chat template fails on these messages: {e}", param="prompt") from None


# A process has one model, or a few; compiling takes milliseconds.
@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    # The environment that Hugging Face's apply_chat_template sets up: templates are written against it.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    return environment.from_string(template)


def _name(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.piece(token, control=True).decode(errors="replace") if token >= 0 else ""
