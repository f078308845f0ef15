"""The fingerprint: what two models must share, and the words for what they do not."""

import hashlib
import unicodedata
from dataclasses import replace
from typing import Any

import pytest

from ecd.errors import ProtocolError
from ecd.wire.fingerprint import PROBES, Fingerprint

SPECIAL = {"bos": 1, "end_of_generation": [2]}
ONE = Fingerprint(1000, "aa", SPECIAL, "gpt2/qwen2", "bb")
PIECES = [b"a", b"", b"<s>"]


def tokenize(text: str, parse_special: bool) -> list[int]:
    return [len(text), int(parse_special)]


def of(pieces: list[bytes] = PIECES, tokenize: Any = tokenize) -> Fingerprint:
    return Fingerprint.of(iter(pieces), SPECIAL, "bpe", tokenize)


class TestHashes:
    def test_are_made_as_the_protocol_says(self) -> None:
        vocabulary = b"\0\0\0\0\0\0\0\1a" + b"\0\0\0\2\0\0\0\3<s>"
        probes = [
            hashlib.sha256(f"{len(text)},{parsed}".encode()).hexdigest()[:16]
            for text in PROBES
            for parsed in (0, 1)
        ]
        assert of() == Fingerprint(
            3, hashlib.sha256(vocabulary).hexdigest(), SPECIAL, "bpe", " ".join(probes)
        )

    @pytest.mark.parametrize(
        "pieces",
        [[b"", b"a", b"<s>"], [b"a<s", b"", b">"], [b"a", b"b", b"<s>"], [b"a", b"", b"</s>"]],
        ids=["order", "boundary", "padding", "text"],
    )
    def test_tell_vocabularies_of_the_same_size_apart(self, pieces: list[bytes]) -> None:
        assert of().differences(of(pieces)) == ["vocabulary (same size, different tokens)"]

    def test_do_not_tell_apart_vocabularies_padded_to_different_sizes(self) -> None:
        padded = of([*PIECES, b"", b""])
        assert (padded.n_vocab, of().differences(padded)) == (3, [])

    def test_probes_are_what_normalising_tokenizers_leave_as_it_is(self) -> None:
        assert all(unicodedata.is_normalized("NFC", text) for text in PROBES)

    def test_tell_apart_tokenizers_that_differ_in_one_probe_only(self) -> None:
        for text in PROBES:
            for special in (False, True):

                def other(given: str, parse: bool, text: str = text, special: bool = special) -> list[int]:
                    return [*tokenize(given, parse), *([7] if (given, parse) == (text, special) else [])]

                assert of().differences(of(tokenize=other)) == [
                    f"tokenizer behaviour (the same text gives different ids, such as {text[:24]!r})"
                ]


class TestDifferences:
    def test_of_equals_are_none(self) -> None:
        assert ONE.differences(replace(ONE, special=dict(SPECIAL))) == []

    def test_name_everything_that_differs_this_side_first(self) -> None:
        other = Fingerprint(2000, "ab", {**SPECIAL, "bos": None}, "spm/llama", "bc")
        assert ONE.differences(other) == [
            "vocabulary size (1000 against 2000)",
            "token that starts every prompt (id 1 against none)",
            f"tokenizer behaviour (the same text gives different ids, such as {PROBES[0][:24]!r})",
            "tokenizer (gpt2/qwen2 against spm/llama)",
        ]

    def test_names_and_ends_of_text_may_differ(self) -> None:
        other = replace(
            ONE, special={"bos": 1, "end_of_generation": [2, 3], "pad": 3}, tokenizer="Qwen2Tokenizer"
        )
        assert ONE.differences(other) == []

    @pytest.mark.parametrize("probes", ["", "bb cc", " ".join(["bb"] * 100)])
    def test_another_number_of_probes_is_a_difference(self, probes: str) -> None:
        found = ONE.differences(replace(ONE, probes=probes))
        assert found == ["tokenizer behaviour (the same text gives different ids)"]


class TestMap:
    def test_gives_the_fingerprint_back(self) -> None:
        assert Fingerprint.from_map(ONE.to_map()) == ONE

    def test_ignores_keys_that_are_not_known(self) -> None:
        assert Fingerprint.from_map({**ONE.to_map(), "later": 1}) == ONE

    @pytest.mark.parametrize("name", ["n_vocab", "vocabulary", "special", "tokenizer", "probes"])
    @pytest.mark.parametrize("value", ["missing", None, True, 1.5, b"x", []], ids=repr)
    def test_needs_every_key_with_its_type(self, name: str, value: Any) -> None:
        given = {**ONE.to_map(), name: value}
        if value == "missing":
            del given[name]
        with pytest.raises(ProtocolError, match="a fingerprint needs n_vocab, vocabulary"):
            Fingerprint.from_map(given)

    def test_needs_text_as_names_of_special_ids(self) -> None:
        with pytest.raises(ProtocolError):
            Fingerprint.from_map({**ONE.to_map(), "special": {b"bos": 1}})

    @pytest.mark.parametrize("value", ["1", b"1", 1.5, {}, [True], ["1"], [[1]]], ids=repr)
    def test_needs_numbers_as_special_ids(self, value: Any) -> None:
        with pytest.raises(ProtocolError, match="a fingerprint needs"):
            Fingerprint.from_map({**ONE.to_map(), "special": {**SPECIAL, "bos": value}})

    @pytest.mark.parametrize("value", [None, 0, True, [], [1, 2]], ids=repr)
    def test_takes_every_form_of_special_ids(self, value: Any) -> None:
        given = {**ONE.to_map(), "special": {"bos": value}}
        assert Fingerprint.from_map(given).special == {"bos": value}
