"""One call of llama.cpp's own quantiser.

Owns the ctypes details of `llama_model_quantize`. Must not know the catalogue, the store or disk space.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ecd.errors import ModelError

_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR of ggml.h, which the bindings do not export


def quantize(
    source: Path, out: Path, *, ftype: str, token_embedding: str | None, output: str | None, threads: int
) -> None:
    """Writes `source` (GGUF, quantised or not) to `out` as the file type `ftype`, such as "Q4_0" or "BF16".

    `token_embedding` and `output` name the type of these two tensors, None leaves them to llama.cpp. Raises
    ModelError if llama.cpp cannot be loaded, does not know a type, or fails; `out` may then hold half a file.
    """
    try:
        import llama_cpp  # here and not above: loading the native library takes long and few callers derive
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(f"cannot load llama-cpp-python ({error}); install it again with pip") from error
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = threads
    params.allow_requantize = True
    params.ftype = _constant(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{ftype}")
    if token_embedding is not None:
        params.token_embedding_type = _constant(llama_cpp, f"GGML_TYPE_{token_embedding}")
    if output is not None:
        params.output_tensor_type = _constant(llama_cpp, f"GGML_TYPE_{output}")
    with _captured_log(llama_cpp) as problems:
        status = llama_cpp.llama_model_quantize(bytes(source), bytes(out), ctypes.byref(params))
    if status != 0:
        reason = " ".join("".join(problems).split()) or f"status {status}"
        raise ModelError(f"llama.cpp could not write {source} as {ftype} to {out}: {reason}")


def _constant(llama_cpp: Any, name: str) -> int:
    value = getattr(llama_cpp, name, None)
    if value is None:
        raise ModelError(f"the installed llama-cpp-python has no {name}; install a newer version")
    return int(value)


@contextlib.contextmanager
def _captured_log(llama_cpp: Any) -> Iterator[list[str]]:
    """Keeps llama.cpp's log off stderr and collects its errors, then restores the callback there was."""
    problems: list[str] = []

    def collect(level: int, text: bytes, _data: object) -> None:
        if level == _LOG_ERROR:
            problems.append(text.decode(errors="replace"))

    before = llama_cpp.llama_log_callback()
    before_data = ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(before_data))
    callback = llama_cpp.llama_log_callback(collect)
    llama_cpp.llama_log_set(callback, None)
    try:
        yield problems
    finally:
        llama_cpp.llama_log_set(before, before_data)
