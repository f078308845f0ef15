"""Conversion to a Hugging Face folder: its rules, and the real models' weights where gguf and torch are."""

import builtins
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ecd.errors import ModelError
from ecd.models import catalogue, fetch, store
from ecd.models.catalogue import Derived, HfRecipe
from ecd.models.gguf_to_hf import (
    ARCHITECTURES,
    Settings,
    Tensor,
    config,
    convert,
    half_by_half,
    hf_name,
    to_bfloat16,
    write_weights,
)

LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.rope.freq_base": 100000.0,
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    "tokenizer.ggml.eos_token_id": 2,
}
SHAPES = {"model.embed_tokens.weight": (49152, 576)}


class TestBfloat16:
    @given(st.floats(width=32, allow_nan=False, allow_infinity=False))
    def test_is_the_nearest_and_of_two_the_even_one(self, value: float) -> None:
        (bits,) = to_bfloat16(np.array([value], np.float32))
        below = int(np.array([value], np.float32).view(np.uint32)[0]) >> 16
        # what lies behind the largest finite number would be the next power of two
        distance = {
            near: abs((float(_float_of(near)) if near & 0x7FFF != 0x7F80 else _beyond(near)) - value)
            for near in (below, below + 1)
        }
        best = min(distance.values())
        nearest = [near for near, away in distance.items() if away == best]
        assert int(bits) == (nearest[0] if len(nearest) == 1 else next(n for n in nearest if n % 2 == 0))

    @given(st.integers(0, 0xFFFF))
    def test_keeps_what_is_one_already(self, bits: int) -> None:
        value = _float_of(bits)
        kept = _float_of(int(to_bfloat16(np.array([value]))[0]))
        assert np.isnan(kept) if np.isnan(value) else kept == value

    @pytest.mark.parametrize("bits", [0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF])
    def test_keeps_not_a_number(self, bits: int) -> None:
        value = np.array([bits], np.uint32).view(np.float32)
        assert np.isnan(_float_of(int(to_bfloat16(value)[0])))


def _float_of(bits: int) -> np.float32:
    value: np.float32 = np.array([bits << 16], np.uint32).view(np.float32)[0]
    return value


def _beyond(bits: int) -> float:
    return float(2.0**128 if bits < 0x8000 else -(2.0**128))


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 3))
def test_rows_of_q_and_k_come_back_from_llama_cpp_s_order(heads: int, half: int, width: int) -> None:
    hub = np.arange(heads * 2 * half * width).reshape(-1, width)
    # LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py
    interleaved = hub.reshape(heads, 2, half, width).swapaxes(1, 2).reshape(hub.shape)
    assert (interleaved[half_by_half(len(hub), heads)] == hub).all()


class TestNames:
    @pytest.mark.parametrize(
        ("gguf", "hub"),
        [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"),
            ("blk.27.ffn_norm.weight", "model.layers.27.post_attention_layernorm.weight"),
            ("blk.3.attn_v.bias", "model.layers.3.self_attn.v_proj.bias"),
        ],
    )
    def test_are_the_hub_s(self, gguf: str, hub: str) -> None:
        assert hf_name(gguf, ARCHITECTURES["qwen2"]) == hub

    @pytest.mark.parametrize(
        "name", ["rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "output.bias"]
    )
    def test_what_the_hub_has_no_name_for_is_refused(self, name: str) -> None:
        with pytest.raises(ModelError, match=f"its tensor {name} has no counterpart"):
            hf_name(name, ARCHITECTURES["llama"])


class TestConfig:
    def test_tells_what_the_file_says(self) -> None:
        told = config(Settings(LLAMA), SHAPES, "float32")
        assert told["architectures"] == ["LlamaForCausalLM"]
        assert (told["num_attention_heads"], told["num_key_value_heads"], told["head_dim"]) == (9, 3, 64)
        assert (told["rms_norm_eps"], told["rope_theta"]) == (1e-05, 100000.0)
        assert (told["vocab_size"], told["max_position_embeddings"]) == (49152, 8192)
        assert (told["eos_token_id"], told["bos_token_id"]) == (2, None)
        assert told["tie_word_embeddings"] is True

    def test_embeddings_are_tied_unless_there_is_an_output_tensor(self) -> None:
        shapes = SHAPES | {"lm_head.weight": (49152, 576)}
        assert config(Settings(LLAMA), shapes, "bfloat16")["tie_word_embeddings"] is False

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            ({"general.architecture": "gemma3"}, "architecture 'gemma3' cannot be converted.*llama, qwen2"),
            ({"llama.rope.scaling.type": "yarn"}, "RoPE scaling 'yarn'"),
            ({"llama.rope.dimension_count": 32}, "RoPE on a part of each head"),
            ({"llama.context_length": None}, r"llama\.context_length is None"),
            ({"llama.attention.head_count_kv": [3, 3]}, r"head_count_kv is \[3, 3\], not a number"),
        ],
    )
    def test_refuses_what_a_folder_would_not_say(self, setting: dict[str, Any], words: str) -> None:
        with pytest.raises(ModelError, match=words):
            config(Settings(LLAMA | setting), SHAPES, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_safetensors_file_is_a_header_and_the_tensors_behind_each_other(tmp_path: Path, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    arrays = {"a": rng.normal(size=(5, 3)), "b": rng.normal(size=7)}

    def in_pieces(array: NDArray[np.float64]) -> Iterator[NDArray[np.float32]]:
        yield array[:2].astype(np.float32)
        yield array[2:].astype(np.float32)

    tensors = [
        Tensor(name, array.shape, lambda array=array: in_pieces(array))  # type: ignore[misc]
        for name, array in arrays.items()
    ]
    told: list[int] = []
    write_weights(tensors, tmp_path / "out", dtype, told.append)
    data = (tmp_path / "out").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert told[-1] == len(data)
    for name, array in arrays.items():
        start, end = header[name]["data_offsets"]
        raw = data[8 + length + start : 8 + length + end]
        expected = array.astype(np.float32)
        assert header[name]["shape"] == list(array.shape)
        if dtype == "bfloat16" and array.ndim == 2:
            assert (header[name]["dtype"], raw) == ("BF16", to_bfloat16(expected).tobytes())
        else:
            assert (header[name]["dtype"], raw) == ("F32", expected.tobytes())


def test_without_gguf_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if name == "gguf":
            raise ModuleNotFoundError("No module named 'gguf'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModelError, match=r"pip install 'ecd\[vllm\]'"):
        convert(tmp_path / "some.gguf", tmp_path / "out", "float32", lambda done: None)
    assert not (tmp_path / "out").exists()


FOLDERS = [
    pytest.param("smollm2-135m-hf", "smollm2-135m", marks=pytest.mark.slow),
    pytest.param("qwen2.5-coder-1.5b-hf", "qwen2.5-coder-1.5b-bf16", marks=pytest.mark.large),
]


@pytest.mark.vllm
class TestRealModels:
    @pytest.fixture(autouse=True)
    def needs(self) -> None:
        """What converts, and what reads the result."""
        for module in ("gguf", "torch", "safetensors"):
            pytest.importorskip(module)

    @pytest.mark.parametrize(("folder", "file"), FOLDERS)
    def test_weights_are_the_file_s(self, folder: str, file: str) -> None:
        """Bit by bit; the file of Qwen's is llama.cpp's own BF16 of the same parent."""
        import gguf
        import safetensors

        reader = gguf.GGUFReader(fetch.get(file))
        settings = Settings({name: field.contents() for name, field in reader.fields.items()})
        entry = catalogue.find(folder)
        assert isinstance(entry.origin, Derived)
        assert isinstance(entry.origin.recipe, HfRecipe)
        with safetensors.safe_open(fetch.get(folder) / "model.safetensors", "pt") as weights:
            assert len(weights.keys()) == len(reader.tensors)
            for tensor in reader.tensors:
                name = hf_name(tensor.name, settings.architecture)
                found = weights.get_tensor(name).float().numpy()
                expected = gguf.dequantize(tensor.data, tensor.tensor_type)
                if settings.architecture.interleaved and "attn_q" in tensor.name:
                    found = _interleaved(found, settings.heads)
                if settings.architecture.interleaved and "attn_k" in tensor.name:
                    found = _interleaved(found, settings.kv_heads)
                assert (found == expected).all(), name

    @pytest.mark.parametrize(("folder", "_file"), FOLDERS)
    def test_the_size_in_the_catalogue_is_the_folder_s(self, folder: str, _file: str) -> None:
        fetch.get(folder)
        sidecar = store.read_sidecar(catalogue.find(folder))
        assert sidecar is not None
        assert sidecar.size == catalogue.find(folder).size


def _interleaved(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
