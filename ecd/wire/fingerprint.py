"""The model fingerprint: whether two models read and write the same token ids.

Owns what is compared at connect and the words for a difference. Engines compute it; it knows no engine.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from ecd.errors import ProtocolError

# Texts whose token ids tell tokenizers apart: spacing, digits, contractions, scripts, code, special-token
# look-alikes.
PROBES = (
    "Hello, world!  Two spaces\tand a tab\n\n\nthree newlines ",
    " leading space, 1234567890 3.14159 0xFF",
    "I'm you're WE'LL naïve café Straße",
    "人工智能的未来是什么？ 日本語のテスト 한국어",
    "Привет мир עברית العربية हिन्दी ไทย",
    "def f(x):\n    return {'a': [x ** 2, ~x]}  # comment\r\n",
    "🙂👩‍👩‍👧‍👦 e\u0301 \u200b \ufeff",
    "<s></s><|im_start|>user<|endoftext|>[INST]",
)


def _are_special_ids(given: Any) -> bool:
    return isinstance(given, dict) and all(
        isinstance(name, str) and (value is None or isinstance(value, int) or _is_list_of_ids(value))
        for name, value in given.items()
    )


def _is_list_of_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What must be equal at both ends; hashes are hex SHA-256.

    vocabulary: over each id's bytes and whether it is a control token. probes: over the ids of PROBES, plain
    and with special tokens parsed. `special` maps names (bos, eos, end_of_generation, add_bos) to ids.
    """

    n_vocab: int
    vocabulary: str
    special: dict[str, Any]
    tokenizer: str
    probes: str

    @classmethod
    def of(
        cls,
        pieces: Iterable[tuple[bytes, bool]],
        special: dict[str, Any],
        tokenizer: str,
        tokenize: Callable[[str, bool], list[int]],
    ) -> "Fingerprint":
        """Fingerprint from each id's (bytes, is control) in order and `tokenize(text, parse_special)`."""
        digest, n_vocab = hashlib.sha256(), 0
        for piece, control in pieces:
            digest.update(len(piece).to_bytes(4, "big") + piece + bytes([control]))
            n_vocab += 1
        probes = hashlib.sha256()
        for text in PROBES:
            for parse_special in (False, True):
                probes.update((",".join(map(str, tokenize(text, parse_special))) + ";").encode())
        return cls(n_vocab, digest.hexdigest(), special, tokenizer, probes.hexdigest())

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
        for name in sorted(self.special.keys() | other.special.keys()):
            mine, theirs = self.special.get(name), other.special.get(name)
            if mine != theirs:
                found.append(f"special ids: {name} ({mine} against {theirs})")
        if self.tokenizer != other.tokenizer:
            found.append(f"tokenizer ({self.tokenizer} against {other.tokenizer})")
        if self.probes != other.probes:
            found.append("tokenizer behaviour (the same text gives different ids)")
        return found
