"""Makes a derived model from its parent: another GGUF file, or a Hugging Face folder.

Owns the order of the steps: room, making, hash, publish. Must not know sources, nor the formats themselves.
"""

import os
from importlib import metadata
from pathlib import Path
from typing import assert_never

from ecd.engine.llama_quantize import quantize
from ecd.errors import ModelError
from ecd.models import store
from ecd.models.catalogue import Derived, HfRecipe, Model, Recipe


def derive(model: Model, origin: Derived, parent: Path, progress: store.Progress) -> Path:
    """Makes `model` from the file `parent` by the recipe in `origin`; returns where it is in the store.

    The caller holds the model's lock. Raises ModelError if the disk has no room, the making fails or what it
    needs is not installed, OSError if the disk fails; then nothing half made stays.
    """
    store.discard_partial(model)
    store.require_room(model.size)
    out = store.partial_of(model) / "whole"
    what = f"{model.name}: making it from {origin.parent}"
    progress(what, 0, model.size)
    parent_sha256 = store.published_sum(origin.parent)
    try:
        match origin.recipe:
            case Recipe() as recipe:
                _quantize(model, recipe, parent, out)
                version = metadata.version("llama-cpp-python")
                made = store.Derivation(parent_sha256, recipe, llama_cpp=version)
            case HfRecipe() as recipe:
                from ecd.models.gguf_to_hf import convert  # not above: listing models does without numpy

                convert(parent, out, recipe.dtype, lambda done: progress(what, done, model.size))
                made = store.Derivation(parent_sha256, recipe, gguf=metadata.version("gguf"))
            case other:
                assert_never(other)
        sha256 = store.sum_of(out, f"{model.name}: checking", progress)
        return store.publish(model, out, sha256, made)
    finally:
        store.discard_partial(model)


def _quantize(model: Model, recipe: Recipe, parent: Path, out: Path) -> None:
    try:
        quantize(
            parent,
            out,
            ftype=recipe.ftype,
            token_embedding=recipe.token_embedding,
            output=recipe.output,
            threads=len(os.sched_getaffinity(0)),
        )
    except ModelError:
        # llama.cpp does not tell a full disk from other write errors, so ask the disk
        written = out.stat().st_size if out.exists() else 0
        store.require_room(model.size - written)
        raise
