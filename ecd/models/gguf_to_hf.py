"""Writes the model in a GGUF file as a Hugging Face folder: the same weights under the hub's names.

Owns what both formats call tensors and settings, and the bytes of model.safetensors. One piece of one tensor
is in memory at a time. Must not know the catalogue or the store, and runs no model.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecd.errors import ModelError
from ecd.models.hf_tokenizer import end_of_generation, tokenizer_config, tokenizer_json

Dtype = Literal["float32", "bfloat16"]

_PIECE_ROWS = 4096
_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One that can be converted: the hub's class, and which tensors of a block have a bias.

    `interleaved`: its GGUF files have the rows of Q and K in the order in which llama.cpp rotates them, pairs
    side by side, where the hub has the two halves of a head one behind the other.
    """

    hf_class: str
    biased: frozenset[str]
    interleaved: bool


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", frozenset(), interleaved=True),
    "qwen2": Architecture("Qwen2ForCausalLM", frozenset({"attn_q", "attn_k", "attn_v"}), interleaved=False),
}


class Settings:
    """The metadata of a GGUF file. `of` is for the keys that start with the architecture's name."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = values
        self.name = str(values.get("general.architecture"))
        if self.name not in ARCHITECTURES:
            raise ModelError(
                f"a GGUF file of architecture {self.name!r} cannot be converted to a Hugging Face folder; "
                f"those that can: {', '.join(ARCHITECTURES)}"
            )
        self.architecture = ARCHITECTURES[self.name]

    def of(self, key: str, default: int | float | None = None) -> Any:
        """One of the model's numbers. Raises ModelError if it is missing and has no default."""
        value = self.values.get(f"{self.name}.{key}", default)
        if not isinstance(value, int | float):
            raise ModelError(
                f"this GGUF file cannot be converted: {self.name}.{key} is {value!r}, not a number"
            )
        return value

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return int(self.of("attention.head_count"))

    @property
    def kv_heads(self) -> int:
        """Key and value heads of a layer."""
        return int(self.of("attention.head_count_kv", self.heads))

    @property
    def head_dim(self) -> int:
        """Numbers in a head."""
        return int(self.of("attention.key_length", self.of("embedding_length") // self.heads))


def convert(source: Path, folder: Path, dtype: Dtype, report: Callable[[int], None]) -> None:
    """Makes `folder` from the GGUF file `source`, all matrices as `dtype`; tells `report` the bytes written.

    Raises ModelError if the package gguf is missing or the model has something that the folder cannot say,
    OSError if the disk fails; what was written then stays.
    """
    try:
        import gguf  # not above: of all that ecd does only this needs it
    except ImportError as error:
        raise ModelError(
            f"converting a GGUF file needs gguf ({error}); pip install 'ecd[vllm]', or gguf"
        ) from error
    reader = gguf.GGUFReader(source)
    settings = Settings({name: field.contents() for name, field in reader.fields.items()})
    tensors = sorted(
        (_tensor(given, settings, gguf.dequantize) for given in reader.tensors),
        key=lambda tensor: tensor.name,
    )
    folder.mkdir()
    for name, content in (
        ("config.json", config(settings, {tensor.name: tensor.shape for tensor in tensors}, dtype)),
        ("generation_config.json", _generation_config(settings)),
        ("tokenizer.json", tokenizer_json(settings.values)),
        (
            "tokenizer_config.json",
            tokenizer_config(settings.values) | {"model_max_length": _context(settings)},
        ),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    write_weights(tensors, folder / "model.safetensors", dtype, report)


def config(settings: Settings, shapes: Mapping[str, tuple[int, ...]], dtype: Dtype) -> dict[str, Any]:
    """The folder's config.json; `shapes` are those of the tensors by their names on the hub."""
    scaling = settings.values.get(f"{settings.name}.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelError(f"this GGUF file cannot be converted: RoPE scaling {scaling!r} is not supported")
    if settings.of("rope.dimension_count", settings.head_dim) != settings.head_dim:
        raise ModelError("this GGUF file cannot be converted: RoPE on a part of each head is not supported")
    return {
        "architectures": [settings.architecture.hf_class],
        "model_type": settings.name,
        "dtype": dtype,
        # without one transformers takes every large vocabulary for a Mistral tokenizer that it warns of
        "transformers_version": "4.56.0",
        "vocab_size": shapes["model.embed_tokens.weight"][0],
        "hidden_size": settings.of("embedding_length"),
        "intermediate_size": settings.of("feed_forward_length"),
        "num_hidden_layers": settings.of("block_count"),
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.kv_heads,
        "head_dim": settings.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": _context(settings),
        "rms_norm_eps": _shortest(settings.of("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(settings.of("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        **_special_ids(settings),
    }


def _context(settings: Settings) -> int:
    return int(settings.of("context_length"))


def _shortest(value: float) -> float:
    """The float32 of a GGUF file as a person would write it: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def _special_ids(settings: Settings) -> dict[str, Any]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {key: settings.values.get(f"tokenizer.ggml.{name}_token_id") for key, name in names.items()}


def _generation_config(settings: Settings) -> dict[str, Any]:
    return _special_ids(settings) | {"eos_token_id": end_of_generation(settings.values)}


def hf_name(name: str, architecture: Architecture) -> str:
    """What the hub calls the tensor that a GGUF file calls `name`. Raises ModelError for an unknown one."""
    match name.split("."):
        case [stem, "weight"] if stem in _TENSORS:
            return f"{_TENSORS[stem]}.weight"
        case ["blk", layer, stem, "weight"] if stem in _BLOCK_TENSORS:
            return f"model.layers.{layer}.{_BLOCK_TENSORS[stem]}.weight"
        case ["blk", layer, stem, "bias"] if stem in architecture.biased:
            return f"model.layers.{layer}.{_BLOCK_TENSORS[stem]}.bias"
    raise ModelError(f"this GGUF file cannot be converted: its tensor {name} has no counterpart on the hub")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor by its name on the hub; `pieces` gives its rows as float32, some at a time."""

    name: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[NDArray[np.float32]]]


def _tensor(given: Any, settings: Settings, dequantize: Callable[[Any, Any], NDArray[np.float32]]) -> Tensor:
    shape = tuple(int(size) for size in reversed(given.shape))
    heads = {"attn_q": settings.heads, "attn_k": settings.kv_heads}.get(given.name.split(".")[-2])
    order = np.arange(shape[0])
    if heads is not None and settings.architecture.interleaved:
        order = half_by_half(shape[0], heads)

    def pieces() -> Iterator[NDArray[np.float32]]:
        # Each row is quantised by itself, so rows can be put into order before they are dequantised.
        for start in range(0, shape[0], _PIECE_ROWS):
            yield dequantize(given.data[order[start : start + _PIECE_ROWS]], given.tensor_type)

    return Tensor(hf_name(given.name, settings.architecture), shape, pieces)


def half_by_half(rows: int, heads: int) -> NDArray[np.intp]:
    """Which row of an interleaved Q or K each row on the hub is; the inverse of llama.cpp's converter."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).ravel()


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 numbers, the even one of two equally near; as ggml rounds."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    high = bits >> 16
    rounded = (bits + (0x7FFF + (high & 1))) >> 16
    return np.where(np.isnan(values), high | 0x40, rounded).astype(np.uint16)


def write_weights(tensors: list[Tensor], out: Path, dtype: Dtype, report: Callable[[int], None]) -> None:
    """Writes a safetensors file: the length of a JSON header, the header, the tensors in its order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        kind, width = ("BF16", 2) if _is_rounded(tensor, dtype) else ("F32", 4)
        start, end = end, end + width * int(np.prod(tensor.shape))
        header[tensor.name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with out.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for piece in tensor.pieces():
                opened.write((to_bfloat16(piece) if _is_rounded(tensor, dtype) else piece).tobytes())
                report(opened.tell())


def _is_rounded(tensor: Tensor, dtype: Dtype) -> bool:
    """Norms and biases are not: llama.cpp keeps them float32 in its BF16 files too."""
    return dtype == "bfloat16" and len(tensor.shape) > 1
