"""The tokenizer in Hugging Face's form: what is written; test_hf.py has what real tokenizers do with it."""

from typing import Any

import pytest

from ecd.errors import ModelError
from ecd.models.hf_tokenizer import end_of_generation, tokenizer_config, tokenizer_json

GGUF: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<|endoftext|>", "a", "b", "ab", "<tool>", "<|im_end|>", "[PAD6]"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1, 4, 3, 5],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 5,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": "{{ messages }}",
}


def test_every_token_but_padding_keeps_its_id() -> None:
    model = tokenizer_json(GGUF)["model"]
    assert model["vocab"] == {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, "<tool>": 4, "<|im_end|>": 5}
    assert model["merges"] == [["a", "b"]]


def test_words_are_cut_at_bytes_that_the_vocabulary_lacks() -> None:
    cut = tokenizer_json(GGUF)["pre_tokenizer"]["pretokenizers"][-1]
    assert (cut["pattern"], cut["behavior"]) == ({"Regex": "[^ab]"}, "Removed")


def test_control_tokens_are_special_and_the_user_s_are_not() -> None:
    added = tokenizer_json(GGUF)["added_tokens"]
    assert [(token["id"], token["content"], token["special"]) for token in added] == [
        (0, "<|endoftext|>", True),
        (4, "<tool>", False),
        (5, "<|im_end|>", True),
    ]


def test_the_configuration_names_special_tokens_and_has_the_template() -> None:
    told = tokenizer_config(GGUF)
    assert (told["eos_token"], told["bos_token"], told["pad_token"]) == ("<|im_end|>", None, None)
    assert told["chat_template"] == "{{ messages }}"


def test_a_text_ends_at_the_model_s_end_and_where_llama_cpp_ends_it() -> None:
    assert end_of_generation(GGUF) == [0, 5]
    assert end_of_generation(GGUF | {"tokenizer.ggml.eos_token_id": 4}) == [0, 4, 5]
    assert end_of_generation({key: GGUF[key] for key in GGUF if "eos" not in key}) == [0, 5]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"tokenizer.ggml.pre": "llama-bpe"}, "tokenizer gpt2/llama-bpe cannot.*gpt2/smollm, gpt2/qwen2"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer llama/smollm cannot"),
        ({"tokenizer.ggml.add_bos_token": True}, "puts a token before every text"),
        ({"tokenizer.ggml.token_type": [3, 1, 1, 1, 4, 3, 6]}, r"token 6 \(\[PAD6\]\) has type 6"),
    ],
)
def test_refuses_what_it_cannot_say(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        tokenizer_json(GGUF | setting)
