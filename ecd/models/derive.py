"""Makes a derived model file from its parent.

Owns the order of the steps: room, quantise, hash, publish. Must not know sources, nor llama.cpp's own calls.
"""

import os
from importlib import metadata
from pathlib import Path

from ecd.engine.llama_quantize import quantize
from ecd.errors import ModelError
from ecd.models import store
from ecd.models.catalogue import Derived, Model


def derive(model: Model, origin: Derived, parent: Path, progress: store.Progress) -> Path:
    """Makes the file of `model` from the file `parent` by the recipe in `origin`; returns it in the store.

    The caller holds the model's lock. Raises ModelError if the disk has no room or llama.cpp fails; then no
    half file stays.
    """
    store.discard_partial(model)
    store.require_room(model.size)
    out = store.partial_of(model) / "whole.gguf"
    progress(f"{model.name}: making it from {origin.parent}", 0, model.size)
    try:
        _quantize(model, origin, parent, out)
        sha256 = store.sha256_of(out, f"{model.name}: checking", progress)
        made = store.Derivation(
            parent_sha256=store.published_sum(origin.parent),
            recipe=origin.recipe,
            llama_cpp=metadata.version("llama-cpp-python"),
        )
        return store.publish(model, out, sha256, made)
    finally:
        store.discard_partial(model)


def _quantize(model: Model, origin: Derived, parent: Path, out: Path) -> None:
    recipe = origin.recipe
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
