"""The vocabulary of a model in Hugging Face's form, a folder or a name on the hub, as the daemons need it.

Owns transformers' tokenizers and configurations. Loads no weights: what runs the model is another's business.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ecd.errors import BadRequest, ModelError
from ecd.wire.fingerprint import Fingerprint


class HfModel:
    """A tokenizer with what the model's configuration tells of it.

    Raises ModelError when transformers is missing or cannot load it, or its tokens' bytes cannot be known.
    Code that comes with a model is run only if `trust_remote_code`. `revision`: a branch, tag or commit on
    the hub.
    """

    def __init__(self, name: str | Path, *, trust_remote_code: bool = False, revision: str = "main"):
        config, generation, tokenizer = _load(str(name), trust_remote_code, revision)
        text_config = config.get_text_config()
        self.n_vocab: int = _number(str(name), text_config, "vocab_size")
        self.context_train: int = _number(str(name), text_config, "max_position_embeddings")
        self.chat_template = _chat_template(tokenizer)
        self.bos: int = -1 if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.adds_bos = self.bos >= 0 and tokenizer("a").input_ids[:1] == [self.bos]
        told = generation if generation and generation.eos_token_id is not None else text_config
        ends = _ids(getattr(told, "eos_token_id", None))
        self.eos: int = next(iter(_ids(tokenizer.eos_token_id) + ends), -1)
        self.eog = frozenset([*ends, *_ids(tokenizer.eos_token_id)])
        self._tokenizer = tokenizer
        self._pieces, control = _pieces(str(name), tokenizer, self.n_vocab)
        self._silent = control | self.eog

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        """Token ids of a text; `add_bos` puts the model's own start token first where it has one."""
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise BadRequest(f"the prompt is not valid Unicode: {e}") from None
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=not parse_special, verbose=False
        ).input_ids
        return [self.bos, *ids] if add_bos and self.adds_bos else ids

    def piece(self, token: int, *, control: bool = False) -> bytes:
        """The bytes of a token; none of one that steers the model, unless `control` asks for its name."""
        return b"" if token in self._silent and not control else self._pieces[token]

    def fingerprint(self) -> Fingerprint:
        """What another model must share so that token ids mean the same."""
        special = {"bos": self.bos if self.adds_bos else None, "end_of_generation": sorted(self.eog)}
        return Fingerprint.of(
            self._pieces,
            special,
            type(self._tokenizer).__name__,
            lambda text, parse_special: self.tokenize(text, add_bos=True, parse_special=parse_special),
        )


def _load(name: str, trust_remote_code: bool, revision: str) -> tuple[Any, Any, Any]:
    """Configuration, generation settings (None if there are none) and tokenizer."""
    try:
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig  # takes seconds
    except ImportError as error:
        raise ModelError(f"{name} needs transformers ({error}); pip install 'ecd[vllm]'") from error
    try:
        given: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
        config = AutoConfig.from_pretrained(name, **given)
        tokenizer = AutoTokenizer.from_pretrained(name, **given)
    # whatever a broken folder, an unreachable hub or code of the model's own may raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"transformers cannot load {name}: {reason}; give a folder with config.json and tokenizer.json, "
            "or a name on the Hugging Face hub"
        ) from error
    try:
        return config, GenerationConfig.from_pretrained(name, revision=revision), tokenizer
    except OSError:
        return config, None, tokenizer


def _number(name: str, config: Any, key: str) -> int:
    value = getattr(config, key, None)
    if not isinstance(value, int):
        raise ModelError(
            f"{name} cannot be served: its config.json has no number for {key}; choose another model"
        )
    return value


def _ids(given: int | list[int] | None) -> list[int]:
    match given:
        case None:
            return []
        case list():
            return given
        case int():
            return [given]


def _chat_template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _pieces(name: str, tokenizer: Any, n_vocab: int) -> tuple[list[bytes], frozenset[int]]:
    """The bytes of each id, none for padding, and which ids are control tokens, whose bytes are a name."""
    to_bytes = _reader(name, tokenizer)
    texts: list[str | None] = tokenizer.convert_ids_to_tokens(range(n_vocab))
    pieces = [b"" if text is None else to_bytes(text) for text in texts]
    control = set()
    for token, added in tokenizer.added_tokens_decoder.items():
        if token >= n_vocab:
            continue
        if added.special or _looks_special(added.content):
            control.add(token)
        pieces[token] = added.content.encode()
    return pieces, frozenset(control)


def _looks_special(text: str) -> bool:
    """Whether llama.cpp's converter takes an added token for a control token, marked as one or not."""
    return text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>"))


def _reader(name: str, tokenizer: Any) -> Callable[[str], bytes]:
    """What turns the text of a token into its bytes, by how the tokenizer itself decodes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kinds = _kinds(json.loads(backend.decoder.__getstate__())) if backend and backend.decoder else set()
    if "ByteLevel" in kinds:
        return _byte_level_reader()
    if kinds & {"ByteFallback", "Metaspace"}:
        return _sentencepiece_bytes
    raise ModelError(
        f"the bytes of {name}'s tokens cannot be known: {type(tokenizer).__name__} is neither byte-level BPE "
        "nor sentencepiece with a tokenizer.json; choose another model"
    )


def _kinds(decoder: dict[str, Any]) -> set[str]:
    return {decoder["type"]}.union(*(_kinds(inner) for inner in decoder.get("decoders", ())))


def _byte_level_reader() -> Callable[[str], bytes]:
    """Byte-level BPE writes each byte as one printable character: itself, or one of those from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }
    return lambda text: b"".join(
        bytes([byte_of[character]]) if character in byte_of else character.encode() for character in text
    )


def _sentencepiece_bytes(text: str) -> bytes:
    """`<0x0A>` is one byte; U+2581 stands for a space."""
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", text):
        return bytes.fromhex(byte[1])
    return text.replace("\u2581", " ").encode()
