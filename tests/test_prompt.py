"""Prompts as token ids: the model's own template, or the text as it is."""

import pytest

from ecd.engine.llama import LlamaModel
from ecd.errors import BadRequest
from ecd.prompt import prompt_tokens, render_chat


def text_of(model: LlamaModel, ids: tuple[int, ...]) -> str:
    return b"".join(model.piece(token, control=True) for token in ids).decode()


def test_a_chat_prompt_goes_through_the_template(target: LlamaModel) -> None:
    assert text_of(target, prompt_tokens(target, "Hi!", chat=True)) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    )


def test_messages_are_turns(target: LlamaModel) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye."},
    ]
    text = text_of(target, prompt_tokens(target, turns, chat=True))
    assert text.count("<|im_start|>") == 5
    assert text.index("Be brief.") < text.index("Hello.") < text.index("Bye.")


def test_a_raw_prompt_is_the_text_itself(target: LlamaModel) -> None:
    assert text_of(target, prompt_tokens(target, "Once upon a time", chat=False)) == "Once upon a time"


@pytest.mark.parametrize(
    ("prompt", "chat", "said"),
    [
        ("", False, "the prompt is empty"),
        ([{"role": "user", "content": "x"}], False, "a raw prompt is a text"),
        ([{"role": "user"}], True, "needs `role` and `content`"),
        ([{"role": "user", "content": 3}], True, "needs `role` and `content`"),
    ],
)
def test_bad_prompts_say_what_is_wrong(target: LlamaModel, prompt: object, chat: bool, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        prompt_tokens(target, prompt, chat=chat)  # type: ignore[arg-type]


class Templated:
    """A tokenizer of which only the template matters."""

    adds_bos, bos, eos = True, 1, 2

    def __init__(self, template: str | None):
        self.chat_template = template

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        return [1] * add_bos + list(text.encode())

    def piece(self, token: int, *, control: bool = False) -> bytes:
        return {1: b"<s>", 2: b"</s>"}.get(token, b"")


def test_a_template_that_writes_the_start_token_gets_no_second_one() -> None:
    once = prompt_tokens(Templated("{{ bos_token }}{{ messages[0].content }}"), "Hi", chat=True)
    assert once == tuple(b"<s>Hi")
    assert prompt_tokens(Templated("{{ messages[0].content }}"), "Hi", chat=True) == (1, *b"Hi")


@pytest.mark.parametrize("template", ["{{ 1 // 0 }}", "{{ messages + 1 }}", "{{ 'x'.index('y') }}"])
def test_a_template_that_fails_says_so(template: str) -> None:
    with pytest.raises(BadRequest, match="template fails"):
        prompt_tokens(Templated(template), "Hi", chat=True)


def test_templates_run_in_a_sandbox() -> None:
    hostile = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(BadRequest, match="template fails"):
        render_chat(Templated(hostile), [{"role": "user", "content": "x"}])


def test_what_a_template_refuses_is_told() -> None:
    with pytest.raises(BadRequest, match="only one turn"):
        prompt_tokens(Templated("{{ raise_exception('only one turn') }}"), "x", chat=True)
    with pytest.raises(BadRequest, match="--raw"):
        prompt_tokens(Templated(None), "x", chat=True)
