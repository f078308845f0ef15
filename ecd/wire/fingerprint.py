"""The model fingerprint: whether two models read and write the same token ids.

Owns what is compared at connect and the words for a difference. Engines compute it; it knows no engine.
What only one kind of model file can tell (names of tokenizers, ids that pad the vocabulary, which tokens are
control tokens or end a text) is not compared: a GGUF file and a Hugging Face folder of one model are equal.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from ecd.errors import ProtocolError

# Texts whose token ids tell tokenizers apart: spacing, digits, contractions, scripts, code, special-token
# look-alikes. All are in Unicode's form NFC: some tokenizers on the hub normalise and llama.cpp never does.
# `</s>` is not among them: llama.cpp takes it for a control token even where it is text, as in Qwen's
# vocabulary.
PROBES = (
    "Hello, world!  Two spaces\tand a tab\n\n\nthree newlines ",
    " leading space, 1234567890 3.14159 0xFF",
    "I'm you're WE'LL naïve café Straße",
    "人工智能的未来是什么？ 日本語のテスト 한국어",
    "Привет мир עברית العربية हिन्दी ไทย",
    "def f(x):\n    return {'a': [x ** 2, ~x]}  # comment\r\n",
    "🙂👩‍👩‍👧‍👦 \u200b \ufeff",
    "<|im_start|>user<|endoftext|>[INST]",
    "    four\n        eight\n\t\ttabs  \n \n\r\n\r\n\xa0end",
    "https://example.org/a_b-c?d=e&f=%20#g user@host.io C:\\dir\\HTTPServer2Go.x86_64",
    "$\\frac{1}{2}$ ∑ x² ≈ 3.141,59 – „so“ «là» … ½ Ⅳ ①",
    "1 22 333 4444 55555 12345678901234567890 don't DON'T --------======== aaaaaaaaaaaaaaaa",
)
_PROBE_DIGITS = 16


def _are_special_ids(given: Any) -> bool:
    return isinstance(given, dict) and all(
        isinstance(name, str) and (value is None or isinstance(value, int) or _is_list_of_ids(value))
        for name, value in given.items()
    )


def _is_list_of_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What must be equal at both ends: `n_vocab`, `vocabulary`, `probes`, and `bos` of `special`.

    n_vocab: one more than the last id that means something; models of a family are padded to different sizes.
    vocabulary: hex SHA-256 over the ids that mean something, with their bytes. probes: for each of PROBES,
    the hash of its ids as plain text and with special tokens parsed. `special` has the id that starts every
    prompt (`bos`, None for none) and those that end a text (`end_of_generation`), which are not compared: the
    cloud's decide. `tokenizer` is a name for a person.
    """

    n_vocab: int
    vocabulary: str
    special: dict[str, Any]
    tokenizer: str
    probes: str

    @classmethod
    def of(
        cls,
        pieces: Iterable[bytes],
        special: dict[str, Any],
        tokenizer: str,
        tokenize: Callable[[str, bool], list[int]],
    ) -> "Fingerprint":
        """Fingerprint from each id's bytes in order, none for padding, and `tokenize(text, special)`."""
        digest, n_vocab = hashlib.sha256(), 0
        for token, piece in enumerate(pieces):
            if piece:
                digest.update(token.to_bytes(4, "big") + len(piece).to_bytes(4, "big") + piece)
                n_vocab = token + 1
        ids = (tokenize(text, parse_special) for text in PROBES for parse_special in (False, True))
        return cls(n_vocab, digest.hexdigest(), special, tokenizer, " ".join(map(_hash_of_ids, ids)))

    def to_map(self) -> dict[str, Any]:
        """As carried in HELLO and WELCOME."""
        return asdict(self)

    @classmethod
    def from_map(cls, given: dict[str, Any]) -> "Fingerprint":
        """Inverse of `to_map`; raises ProtocolError for a map that is none."""
        wanted = {f.name: f.type for f in fields(cls)}
        ok = (
            all(name in given for name in wanted)
            and type(given["n_vocab"]) is int
            and _are_special_ids(given["special"])
            and all(isinstance(given[name], str) for name in ("vocabulary", "tokenizer", "probes"))
        )
        if not ok:
            raise ProtocolError(f"a fingerprint needs {', '.join(wanted)}")
        return cls(**{name: given[name] for name in wanted})

    def differences(self, other: "Fingerprint") -> list[str]:
        """What differs, for a person: this side's value first. Empty when ids mean the same at both ends."""
        found = []
        if self.n_vocab != other.n_vocab:
            found.append(f"vocabulary size ({self.n_vocab} against {other.n_vocab})")
        elif self.vocabulary != other.vocabulary:
            found.append("vocabulary (same size, different tokens)")
        mine, theirs = self.special.get("bos"), other.special.get("bos")
        if mine != theirs:
            found.append(f"token that starts every prompt ({_shown(mine)} against {_shown(theirs)})")
        if self.probes != other.probes:
            found.append(f"tokenizer behaviour (the same text gives different ids{self._example(other)})")
        if found and self.tokenizer != other.tokenizer:
            found.append(f"tokenizer ({self.tokenizer} against {other.tokenizer})")
        return found

    def _example(self, other: "Fingerprint") -> str:
        texts = [text for text in PROBES for _ in (False, True)]
        pairs = zip(texts, self.probes.split(), other.probes.split(), strict=False)
        return next((f", such as {text[:24]!r}" for text, mine, theirs in pairs if mine != theirs), "")


def _hash_of_ids(ids: list[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:_PROBE_DIGITS]


def _shown(token: Any) -> str:
    return "none" if token is None else f"id {token}"
