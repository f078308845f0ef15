"""llama.cpp at work: a model with its vocabulary, and a context with many sequences.

Owns batches, KV cells and the tokenizer. Knows nothing of sessions, hints or sampling: tokens in, logits out.
A context is used from one thread at a time; the vocabulary may be read from any.
"""

import ctypes
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from ecd.engine.packing import PROMPT_CHUNK_TOKENS
from ecd.errors import BadRequest, EngineError, ModelError
from ecd.wire.fingerprint import Fingerprint


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _silence(level: int, text: bytes, user_data: object) -> None:
    """llama.cpp prints pages while it loads; what matters comes back as return codes."""


llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()

# GCC before 13 drops the stores that fill ggml's AMX tile configuration, and the first product of quantised
# weights then dies of SIGILL. Which compiler built the library cannot be asked, so an AMX build does without
# its special buffers.
BUILT_WITH_AMX = b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()

# What llama_decode returns when it was told to stop.
ABORTED = 2
# Of a model file, so many pieces of so many bytes stand for all of it: gigabytes take seconds to read.
SAMPLES, SAMPLE_BYTES = 64, 64 << 10


class LlamaModel:
    """A loaded GGUF file. Raises ModelError when llama.cpp cannot load it."""

    def __init__(self, path: Path, *, vocab_only: bool = False):
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        params.use_extra_bufts = not BUILT_WITH_AMX
        self.path = path
        self.handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise ModelError(
                f"llama.cpp cannot load {path}; is it a GGUF file of a supported architecture, and complete?"
            )
        self._vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.context_train: int = llama_cpp.llama_model_n_ctx_train(self.handle)
        self.eog = frozenset(t for t in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self._vocab, t))
        self.adds_bos: bool = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        self.bos: int = llama_cpp.llama_vocab_bos(self._vocab)
        self.eos: int = llama_cpp.llama_vocab_eos(self._vocab)
        template: bytes | None = llama_cpp.llama_model_chat_template(self.handle, None)
        self.chat_template = template.decode() if template else None

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values in each layer; not of a model that is only its vocabulary."""
        # Of such a one llama.cpp ends the process when it is asked.
        heads: int = llama_cpp.llama_model_n_head_kv(self.handle)
        return heads

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        """Token ids of a text; `add_bos` puts the model's own start token first where it has one."""
        try:
            data = text.encode()
        except UnicodeEncodeError as e:
            raise BadRequest(f"the prompt is not valid Unicode: {e}") from None
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        n = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, add_bos, parse_special)
        if n < 0:
            raise EngineError(f"llama.cpp could not tokenize a text of {len(data)} bytes")
        return list(ids[:n])

    def piece(self, token: int, *, control: bool = False) -> bytes:
        """The bytes of a token; none of one that steers the model, unless `control` asks for its name.

        Raises EngineError for an id that the model does not have: llama.cpp would end the process.
        """
        if not 0 <= token < self.n_vocab:
            raise EngineError(f"token id {token} is not in the vocabulary of {self.n_vocab}")
        if token in self.eog and not control:
            return b""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, room, 0, control)
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def fingerprint(self) -> Fingerprint:
        """What another model must share so that token ids mean the same."""
        special = {"bos": self.bos if self.adds_bos else None, "end_of_generation": sorted(self.eog)}
        return Fingerprint.of(
            (self._meaning(token) for token in range(self.n_vocab)),
            special,
            f"{self._meta('tokenizer.ggml.model')}/{self._meta('tokenizer.ggml.pre')}",
            lambda text, parse_special: self.tokenize(text, add_bos=True, parse_special=parse_special),
        )

    def digest(self) -> bytes:
        """16 bytes that tell this model's file from others."""
        size = self.path.stat().st_size
        digest = hashlib.blake2b(size.to_bytes(8, "big"), digest_size=16)
        with self.path.open("rb") as file:
            for sample in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
        return digest.digest()

    def _meaning(self, token: int) -> bytes:
        """The bytes of a token, or a control token's name; none of one that pads the vocabulary."""
        piece = self.piece(token, control=True)
        # llama.cpp gives padding no bytes unless an old converter marked it as text
        return b"" if piece == b"[PAD%d]" % token else piece

    def _meta(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        n = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if n >= 0 else "?"


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of a sequence to evaluate from position `start` on; logits are wanted for the last `rows` of
    them.
    """

    sequence: int
    start: int
    tokens: Sequence[int]
    rows: int


class LlamaContext:
    """A KV cache of `n_ctx` cells for each of `n_seq` sequences, and the batches that fill it.

    `exact`: what a sequence computes does not depend on what else is in the batch, with weights that
    llama.cpp multiplies row by row (quantised ones on a CPU; BF16 products change with the number of rows):
    every sequence has cells of its own, in the order of its positions, and attention sums them one by one.
    docs/LOG.md has the numbers. Otherwise all sequences share the cells, so that `copy` costs nothing, and
    decoding behind a long text is several times faster.
    """

    def __init__(
        self, model: LlamaModel, *, n_ctx: int, n_seq: int, n_batch: int, threads: int, exact: bool = True
    ):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx * n_seq
        params.n_seq_max = n_seq
        params.n_batch = params.n_ubatch = n_batch
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = not exact
        params.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if exact else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.no_perf = True
        self.n_batch = n_batch
        self._exact = exact
        self._layout = (exact, n_seq)
        self._model = model
        self._n_vocab = model.n_vocab
        self._handle = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise EngineError(
                f"llama.cpp cannot make a context of {n_seq} x {n_ctx} tokens for {model.path.name}; "
                "lower context_tokens or sessions"
            )
        self._memory = llama_cpp.llama_get_memory(self._handle)
        self._batch = llama_cpp.llama_batch_init(n_batch, 0, 1)

    def decode(self, segments: Sequence[Segment]) -> list[NDArray[np.float32]]:
        """Evaluates segments of at most `n_batch` tokens in all, what the sequences hold behind their starts
        is dropped.

        Returns float32[rows, vocabulary] per segment, views that the next call overwrites. Raises
        EngineError; the sequences' cells beyond their segments' starts are then undefined.
        """
        for segment in segments:
            self.truncate(segment.sequence, segment.start)
        if not self._exact:
            return self._decode_batch(segments)
        # Beside shorter segments llama.cpp would cut a prompt's chunk in two, and its pieces would round
        # differently.
        chunks = [segment for segment in segments if len(segment.tokens) >= PROMPT_CHUNK_TOKENS]
        rest = [segment for segment in segments if len(segment.tokens) < PROMPT_CHUNK_TOKENS]
        rows = {segment.sequence: self._decode_batch([segment])[0].copy() for segment in chunks}
        if rest:
            rows |= zip((segment.sequence for segment in rest), self._decode_batch(rest), strict=True)
        return [rows[segment.sequence] for segment in segments]

    def decode_unless(self, stop: Callable[[], bool], segment: Segment) -> bool:
        """Evaluates a segment without logits; False where `stop` said so first, which is asked all the time.

        The sequence then ends where the segment begins. Raises EngineError, as `decode` does.
        """
        self.truncate(segment.sequence, segment.start)
        asked = llama_cpp.ggml_abort_callback(lambda _: stop())
        llama_cpp.llama_set_abort_callback(self._handle, asked, None)
        try:
            code = self._evaluate([segment])
        finally:
            llama_cpp.llama_set_abort_callback(self._handle, llama_cpp.ggml_abort_callback(), None)
        if code == ABORTED:
            self.truncate(segment.sequence, segment.start)
            return False
        self._check(code, len(segment.tokens))
        return True

    def _evaluate(self, segments: Sequence[Segment]) -> int:
        batch, n = self._batch, 0
        for segment in segments:
            first_row = len(segment.tokens) - segment.rows
            for offset, token in enumerate(segment.tokens):
                batch.token[n] = token
                batch.pos[n] = segment.start + offset
                batch.n_seq_id[n] = 1
                batch.seq_id[n][0] = segment.sequence
                batch.logits[n] = offset >= first_row
                n += 1
        batch.n_tokens = n
        code: int = llama_cpp.llama_decode(self._handle, batch)
        return code

    @staticmethod
    def _check(code: int, tokens: int) -> None:
        if code:
            reason = (
                "the KV cache is full; raise context_tokens" if code == 1 else f"llama_decode returned {code}"
            )
            raise EngineError(f"a batch of {tokens} tokens failed: {reason}")

    def _decode_batch(self, segments: Sequence[Segment]) -> list[NDArray[np.float32]]:
        self._check(self._evaluate(segments), sum(len(segment.tokens) for segment in segments))
        total = sum(segment.rows for segment in segments)
        if not total:
            return [np.empty((0, self._n_vocab), np.float32) for _ in segments]
        pointer = llama_cpp.llama_get_logits(self._handle)
        logits = np.ctypeslib.as_array(pointer, shape=(total, self._n_vocab))
        ends = np.cumsum([segment.rows for segment in segments])
        return [logits[end - segment.rows : end] for end, segment in zip(ends, segments, strict=True)]

    def truncate(self, sequence: int, length: int) -> None:
        """Forgets the sequence's positions from `length` on."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1)

    def copy(self, source: int, sequence: int, length: int, first: int = 0) -> None:
        """The sequence holds what `source` holds of the positions `first` to `length` - 1, and nothing else.

        Only where cells are shared.
        """
        self.truncate(sequence, 0)
        llama_cpp.llama_memory_seq_cp(self._memory, source, sequence, first, length)

    def holds(self, sequence: int, length: int) -> bool:
        """Whether all of the sequence's first `length` positions are in its cells.

        Models that look at a window of the text only have lost those before it.
        """
        first = llama_cpp.llama_memory_seq_pos_min(self._memory, sequence)
        return bool(first == 0 and llama_cpp.llama_memory_seq_pos_max(self._memory, sequence) >= length - 1)

    def save(self, sequence: int) -> NDArray[np.uint8]:
        """A copy of the sequence's cells. Raises EngineError."""
        size = llama_cpp.llama_state_seq_get_size(self._handle, sequence)
        state = np.empty(size, np.uint8)
        written = llama_cpp.llama_state_seq_get_data(self._handle, _pointer(state), size, sequence)
        if written != size:
            raise EngineError(f"llama.cpp wrote {written} bytes of a sequence's state instead of {size}")
        return state

    def load(self, sequence: int, state: NDArray[np.uint8]) -> bool:
        """The sequence holds what was saved and nothing else; False, and nothing at all, if that fails."""
        self.truncate(sequence, 0)
        read = llama_cpp.llama_state_seq_set_data(self._handle, _pointer(state), state.nbytes, sequence)
        if read != state.nbytes:
            self.truncate(sequence, 0)
            return False
        return True

    def fingerprint(self) -> bytes:
        """What must be the same where a saved state is loaded: model, llama.cpp, the layout of cells."""
        digest = hashlib.blake2b(
            repr((llama_cpp.__version__, llama_cpp.LLAMA_STATE_SEQ_VERSION, self._layout)).encode(),
            digest_size=16,
        )
        digest.update(llama_cpp.llama_print_system_info())
        digest.update(self._model.digest())
        return digest.digest()

    def close(self) -> None:
        """Frees the KV cache; the context must not be used afterwards."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._handle)


def _pointer(state: NDArray[np.uint8]) -> "ctypes._Pointer[ctypes.c_uint8]":
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
