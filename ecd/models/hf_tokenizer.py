"""The tokenizer in a GGUF file as the hub's tokenizer.json: byte-level BPE. Pure: metadata in, JSON out.

Owns how both formats say the same rules, and what llama.cpp knows only from its own code: how each kind of
tokenizer cuts a text into words, and which tokens end a text.
"""

import re
from collections.abc import Mapping
from typing import Any

from ecd.errors import ModelError

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # token types of GGUF


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# By the name that GGUF has for them. Of Qwen2's, transformers demands the NFC that llama.cpp leaves out.
_WORDS: Mapping[str, dict[str, Any]] = {
    "smollm": {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)],
        },
    },
    "qwen2": {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _QWEN2_WORDS},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _byte_level(use_regex=False),
            ],
        },
    },
}
# llama.cpp ends a text at the tokens of these names, beside the model's own end token.
_ENDS = frozenset(
    {"<|im_end|>", "<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<reponame>"}
)


def tokenizer_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The content of tokenizer.json. Raises ModelError for a tokenizer of another kind."""
    kind, words = (str(metadata.get(f"tokenizer.ggml.{key}")) for key in ("model", "pre"))
    if kind != "gpt2" or words not in _WORDS:
        raise ModelError(
            f"a GGUF file with tokenizer {kind}/{words} cannot be converted to a Hugging Face folder; "
            f"those that can: {', '.join(f'gpt2/{name}' for name in _WORDS)}"
        )
    if metadata.get("tokenizer.ggml.add_bos_token", False):
        raise ModelError("this GGUF file cannot be converted: its tokenizer puts a token before every text")
    tokens = _tokens(metadata)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token_type == _CONTROL,
            }
            for token, (text, token_type) in tokens.items()
            if token_type != _NORMAL
        ],
        "normalizer": _WORDS[words]["normalizer"],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*_WORDS[words]["pre_tokenizer"]["pretokenizers"], *_lacking(tokens)],
        },
        "post_processor": None,
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            # those added are here too: only what is here keeps the id it is given
            "vocab": {text: token for token, (text, _) in tokens.items()},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def _lacking(tokens: Mapping[int, tuple[str, int]]) -> list[dict[str, Any]]:
    """Cuts a word at bytes that no token stands for.

    Both leave such a byte out, but llama.cpp after it has merged its neighbours and the hub's BPE before
    that, when they have become neighbours of each other.
    """
    known = sorted(text for text, token_type in tokens.values() if token_type == _NORMAL and len(text) == 1)
    if len(known) == 0x100:
        return []
    lacking = f"[^{''.join(map(re.escape, known))}]"
    return [{"type": "Split", "pattern": {"Regex": lacking}, "behavior": "Removed", "invert": False}]


def _tokens(metadata: Mapping[str, Any]) -> dict[int, tuple[str, int]]:
    """Text and type by id, without those that only pad the vocabulary."""
    texts, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    tokens = {
        token: (text, token_type)
        for token, (text, token_type) in enumerate(zip(texts, types, strict=True))
        if token_type != _UNUSED
    }
    for token, (text, token_type) in tokens.items():
        if token_type not in (_NORMAL, _CONTROL, _USER_DEFINED):
            raise ModelError(
                f"this GGUF file cannot be converted: token {token} ({text}) has type {token_type}"
            )
    return tokens


def tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The content of tokenizer_config.json, but for the context length."""
    texts = metadata["tokenizer.ggml.tokens"]
    special = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {key: metadata.get(f"tokenizer.ggml.{name}_token_id") for key, name in special.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata.get("tokenizer.chat_template"),
        **{key: None if token is None else texts[token] for key, token in ids.items()},
    }


def end_of_generation(metadata: Mapping[str, Any]) -> list[int]:
    """The ids at which llama.cpp ends a text of this model, ascending."""
    named = {token for token, (text, _) in _tokens(metadata).items() if text in _ENDS}
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    return sorted(named if eos is None else named | {eos})
