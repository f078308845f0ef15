"""The form of a model that an engine takes: a GGUF file for llama.cpp, a Hugging Face folder for vLLM.

Owns the refusal of one where the other is needed. Where models come from is `fetch`'s business, and a name on
the Hugging Face hub is vLLM's.
"""

import re
from pathlib import Path

from ecd.errors import ModelError
from ecd.models import catalogue
from ecd.models.catalogue import Derived, HfRecipe, Model
from ecd.models.fetch import resolve

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def gguf_file(model: str) -> Path:
    """The file for `--model` that llama.cpp loads: a path, or a name of the catalogue, which is got first.

    Raises ModelError when it is a Hugging Face folder, and as `resolve` does.
    """
    if _is_folder(model) or _is_folder_entry(model):
        raise ModelError(
            f"{model} is a Hugging Face folder, and llama.cpp loads GGUF files; give the path of one, or one "
            f"of: {_names(folders=False)}; a cloud serves the folder with `--engine vllm`"
        )
    return resolve(model)


def hugging_face_model(model: str) -> str:
    """What vLLM loads for `--model`: a folder, one of the catalogue, got first, or a name on the hub.

    Raises ModelError when it is a GGUF file or nothing of all this, and as `resolve` does.
    """
    if _is_folder(model):
        return model
    if _is_folder_entry(model):
        return str(resolve(model))
    instead = (
        "give a folder with config.json and safetensors, a name on the Hugging Face hub (OWNER/NAME) or one "
        f"of: {_names(folders=True)}"
    )
    if model in catalogue.MODELS or model.endswith(".gguf") or Path(model).is_file():
        raise ModelError(
            f"{model} is a GGUF file, and vLLM loads Hugging Face folders; {instead}; or serve the file with "
            "`--engine llama`"
        )
    if Path(model).is_dir() or not _HUB_NAME.fullmatch(model):
        raise ModelError(f"no Hugging Face folder and no model is called {model!r}; {instead}")
    return model


def _is_folder(model: str) -> bool:
    return (Path(model) / "config.json").is_file()


def _is_folder_entry(name: str) -> bool:
    match catalogue.MODELS.get(name):
        case Model(origin=Derived(recipe=HfRecipe())):
            return True
        case _:
            return False


def _names(*, folders: bool) -> str:
    return ", ".join(name for name in catalogue.MODELS if _is_folder_entry(name) == folders)
