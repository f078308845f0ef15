"""Vocabularies in Hugging Face's form: made-up ones, and the catalogue's folders beside their GGUF files."""

import ctypes
import json
import unicodedata
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ecd.engine.hf import HfModel
from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.errors import BadRequest, ModelError
from ecd.models.fetch import resolve
from ecd.prompt import render_chat
from ecd.wire.fingerprint import PROBES

pytest.importorskip("transformers")
pytest.importorskip("gguf")

pytestmark = pytest.mark.vllm


def write_model(folder: Path, tokenizer: Any, *, config: dict[str, Any] | None = None, **named: Any) -> str:
    """A folder with a tokenizer and as much of a model as is needed to say what it is."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "model_type": "llama",
        "vocab_size": 300,
        "max_position_embeddings": 512,
        "eos_token_id": None,
    }
    (folder / "config.json").write_text(json.dumps(described | (config or {})))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | named)
    )
    return str(folder)


@pytest.fixture
def sentencepiece(tmp_path: Path) -> str:
    """A tokenizer in the manner of Llama 2: U+2581 for spaces, bytes for what is not in the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "\u2581a"]
    vocabulary = {word: token for token, word in enumerate(words)}
    model = models.BPE(vocabulary, [("\u2581", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return write_model(tmp_path / "spm", tokenizer, bos_token="<s>", eos_token="</s>")


class TestSentencepiece:
    def test_pieces_are_bytes(self, sentencepiece: str) -> None:
        model = HfModel(sentencepiece)
        assert [model.piece(token) for token in (3 + 0x0A, 3 + 0xE4, 259, 261)] == [
            b"\n",
            b"\xe4",
            b" ",
            b" a",
        ]
        ids = model.tokenize("a ä", add_bos=False, parse_special=False)
        assert b"".join(model.piece(token) for token in ids) == " a ä".encode()

    def test_starts_prompts_as_its_post_processor_does(self, sentencepiece: str) -> None:
        model = HfModel(sentencepiece)
        assert (model.adds_bos, model.bos, model.eos, model.eog) == (True, 1, 2, {2})
        assert model.tokenize("a", add_bos=True, parse_special=True) == [1, 261]
        assert model.tokenize("a", add_bos=False, parse_special=True) == [261]
        assert model.fingerprint().special["bos"] == 1

    def test_control_tokens_have_a_name_and_no_text(self, sentencepiece: str) -> None:
        model = HfModel(sentencepiece)
        assert (model.piece(1), model.piece(1, control=True)) == (b"", b"<s>")

    def test_ids_beyond_the_tokenizer_are_padding(self, sentencepiece: str) -> None:
        model = HfModel(sentencepiece)
        assert model.n_vocab == 300
        assert {model.piece(token, control=True) for token in range(262, 300)} == {b""}

    def test_special_tokens_are_parsed_only_when_asked_for(self, sentencepiece: str) -> None:
        model = HfModel(sentencepiece)
        assert 2 in model.tokenize("a</s>", add_bos=False, parse_special=True)
        assert 2 not in model.tokenize("a</s>", add_bos=False, parse_special=False)


@pytest.fixture
def byte_level(tmp_path: Path) -> Any:
    """Writes folders with a vocabulary of the 256 bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    def write(**given: Any) -> str:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: token for token, letter in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_tokens(
            [AddedToken("<|tool|>", normalized=False), AddedToken("<tool>", normalized=False)]
        )
        return write_model(tmp_path / "bytes", tokenizer, **given)

    return write


class TestByteLevel:
    def test_pieces_of_all_bytes_are_those_bytes(self, byte_level: Any) -> None:
        model = HfModel(byte_level())
        assert {model.piece(token) for token in range(256)} == {bytes([byte]) for byte in range(256)}
        assert not model.adds_bos

    def test_what_llama_cpp_takes_for_a_control_token_is_one(self, byte_level: Any) -> None:
        model = HfModel(byte_level())
        assert [model.piece(token) for token in (256, 257)] == [b"", b"<tool>"]
        assert model.piece(256, control=True) == b"<|tool|>"

    def test_text_ends_where_the_generation_settings_say(self, byte_level: Any) -> None:
        folder = byte_level(config={"eos_token_id": 7})
        assert (HfModel(folder).eog, HfModel(folder).eos) == ({7}, 7)
        (Path(folder) / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
        assert (HfModel(folder).eog, HfModel(folder).eos) == ({8, 9}, 8)

    @pytest.mark.parametrize(
        ("template", "expected"),
        [
            (None, None),
            ("one", "one"),
            ([{"name": "default", "template": "of two"}, {"name": "tools", "template": "x"}], "of two"),
        ],
        ids=["none", "one", "several"],
    )
    def test_the_chat_template_is_the_default_one(
        self, byte_level: Any, template: Any, expected: str | None
    ) -> None:
        assert HfModel(byte_level(chat_template=template)).chat_template == expected

    def test_a_text_that_is_not_unicode_is_refused(self, byte_level: Any) -> None:
        with pytest.raises(BadRequest, match="not valid Unicode"):
            HfModel(byte_level()).tokenize("\ud800", add_bos=False, parse_special=False)


class TestRefusals:
    def test_a_tokenizer_of_another_kind(self, tmp_path: Path) -> None:
        from tokenizers import Tokenizer, decoders, models

        tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        tokenizer.decoder = decoders.WordPiece()
        with pytest.raises(ModelError, match=r"the bytes of .*words's tokens cannot be known"):
            HfModel(write_model(tmp_path / "words", tokenizer))

    def test_a_folder_with_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=f"transformers cannot load {tmp_path}: .*; give a folder with"):
            HfModel(tmp_path)

    def test_code_that_comes_with_the_model(self, byte_level: Any) -> None:
        remote = {"model_type": "made-up", "auto_map": {"AutoConfig": "code.Config"}}
        folder = byte_level(config=remote)
        (Path(folder) / "code.py").write_text("raise SystemExit('code of a model was run')")
        with pytest.raises(ModelError, match="trust_remote_code"):
            HfModel(folder)
        with pytest.raises(SystemExit, match="code of a model was run"):
            HfModel(folder, trust_remote_code=True)


PAIRS = [
    pytest.param(("smollm2-135m-hf", "smollm2-135m"), id="smollm2"),
    pytest.param(("qwen2.5-coder-1.5b-hf", "qwen2.5-coder-1.5b"), id="qwen", marks=pytest.mark.large),
]


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[HfModel, LlamaModel]:
    """A folder of the catalogue and the file it was made from."""
    folder, file = request.param
    return HfModel(resolve(folder)), LlamaModel(resolve(file), vocab_only=True)


class TestOneModelInBothForms:
    def test_fingerprints_are_equal(self, pair: tuple[HfModel, LlamaModel]) -> None:
        hub, llama = (model.fingerprint() for model in pair)
        assert hub.differences(llama) == llama.differences(hub) == []
        assert hub.special["bos"] is llama.special["bos"] is None
        assert hub.tokenizer != llama.tokenizer

    def test_every_id_has_the_same_bytes(self, pair: tuple[HfModel, LlamaModel]) -> None:
        hub, llama = pair
        assert hub.n_vocab == llama.n_vocab
        for token in range(hub.n_vocab):
            assert hub.piece(token, control=True) == llama.piece(token, control=True)
            if token not in llama.eog - hub.eog:
                assert hub.piece(token) == llama.piece(token)

    def test_a_text_ends_at_the_same_tokens(self, pair: tuple[HfModel, LlamaModel]) -> None:
        """But for Qwen's text token `</s>`, which llama.cpp takes for an end."""
        hub, llama = pair
        assert hub.eog <= llama.eog
        assert {llama.piece(token, control=True) for token in llama.eog - hub.eog} <= {b"</s>"}

    def test_what_a_daemon_asks_is_answered_alike(self, pair: tuple[HfModel, LlamaModel]) -> None:
        hub, llama = pair
        assert (hub.bos, hub.eos, hub.adds_bos) == (llama.bos, llama.eos, llama.adds_bos)
        messages = [{"role": "user", "content": "Hello"}]
        assert render_chat(hub, messages) == render_chat(llama, messages)

    @pytest.mark.parametrize("parse_special", [False, True])
    @pytest.mark.parametrize("text", PROBES)
    def test_probes_have_the_same_ids(
        self, pair: tuple[HfModel, LlamaModel], text: str, parse_special: bool
    ) -> None:
        hub, llama = (model.tokenize(text, add_bos=True, parse_special=parse_special) for model in pair)
        assert hub == llama

    @settings(max_examples=500, deadline=None)
    @example('"\x16:')  # a byte that SmolLM2's vocabulary lacks, between two that merge
    @given(text=st.text(st.characters(codec="utf-8", max_codepoint=0x3000), max_size=40))
    def test_so_has_any_normalised_text(self, pair: tuple[HfModel, LlamaModel], text: str) -> None:
        text = unicodedata.normalize("NFC", text)
        hub, llama = (model.tokenize(text, add_bos=False, parse_special=False) for model in pair)
        assert hub == llama


def test_another_tokenizer_differs_in_all_that_counts(byte_level: Any, target: LlamaModel) -> None:
    found = HfModel(byte_level()).fingerprint().differences(target.fingerprint())
    assert [difference.split(" (")[0] for difference in found] == [
        "vocabulary size",
        "tokenizer behaviour",
        "tokenizer",
    ]


PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n",
    "Natalia sold clips to 48 of her friends in April, and half as many in May. She sold",
    "Das Wetter ist heute",
    "<|im_start|>user\nWhat is a hash table?<|im_end|>\n<|im_start|>assistant\n",
]


def float32_file(source: Path, out: Path) -> Path:
    """The same weights in a GGUF file that llama.cpp computes with in float32."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, True
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(out), ctypes.byref(params)) == 0
    return out


@pytest.mark.slow
def test_logits_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """Both in float32; what remains is llama.cpp's KV cache, which is float16."""
    file = float32_file(resolve("smollm2-135m"), tmp_path / "float32.gguf")
    compare_logits(resolve("smollm2-135m-hf"), file, tolerance=0.1)


@pytest.mark.large
def test_logits_of_the_coder_are_those_of_llama_cpp() -> None:
    """llama.cpp rounds the activations to BF16, as it does the weights."""
    compare_logits(resolve("qwen2.5-coder-1.5b-hf"), resolve("qwen2.5-coder-1.5b-bf16"), tolerance=1.0)


def compare_logits(folder: Path, file: Path, *, tolerance: float) -> None:
    """Position by position, transformers in float32; logits lie in a range of about 60.

    The most likely token is the same unless two are so near each other that the difference can swap them.
    """
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    hub = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    llama = LlamaModel(file)
    context = LlamaContext(llama, n_ctx=256, n_seq=1, n_batch=64, threads=2)
    for prompt in PROMPTS:
        ids = llama.tokenize(prompt, add_bos=True, parse_special=True)
        with torch.no_grad():
            ours = hub(torch.tensor([ids])).logits[0].numpy()
        theirs = context.decode([Segment(0, 0, ids, len(ids))])[0]
        difference = np.abs(ours - theirs).max()
        print(f"{folder.name}: largest difference {difference:.3f} over {len(ids)} tokens")
        assert difference < tolerance, prompt
        for mine, its in zip(ours, theirs, strict=True):
            second, first = np.sort(mine)[-2:]
            assert mine.argmax() == its.argmax() or first - second < 2 * difference, prompt
    context.close()
