"""The edges' draft model at the cloud, on llama.cpp: reads prompts and gives their cells away.

Owns which sequence holds which text. Called from one thread.
"""

from collections.abc import Sequence
from time import perf_counter

from ecd.engine.kv_cells import KvCells
from ecd.engine.llama import LlamaContext, LlamaModel, Segment
from ecd.errors import ModelError
from ecd.pages import RUN_TOKENS, Cells
from ecd.wire.fingerprint import Fingerprint


class LlamaAssist:
    """`places` texts of at most `context_tokens` at a time.

    `token_s`: seconds for a token of a prompt, as measured last. Raises ModelError for a draft model that
    does not fit the target's `fingerprint`, EngineError for one whose cells cannot be given away.
    """

    def __init__(
        self, model: LlamaModel, fingerprint: Fingerprint, *, places: int, context_tokens: int, threads: int
    ):
        if found := model.fingerprint().differences(fingerprint):
            raise ModelError(
                f"{model.path.name} cannot assist here: it and the target do not share a tokenizer: "
                f"{'; '.join(found)}"
            )
        self.places = places
        self.context_tokens = min(context_tokens, model.context_train)
        self._context = LlamaContext(
            model,
            # Cells are shared, also with the sequence by way of which they leave.
            n_ctx=-(-self.context_tokens * places // (places + 1)),
            n_seq=places + 1,
            n_batch=RUN_TOKENS,
            threads=threads,
            exact=False,
        )
        self._cells = KvCells(model, self._context)
        self.shape = self._cells.shape
        self._held: list[list[int]] = [[] for _ in range(places)]
        self._tenants = [""] * places
        self.token_s = 0.0
        # The first run also touches all weights for the first time.
        for _ in range(2):
            self._held[0] = []
            self._read(0, [0] * 64, "")
        self._held[0] = []

    def common(self, place: int, tokens: Sequence[int], tenant: str) -> int:
        """How many of the tokens the place holds for the tenant, from the first on."""
        held = self._held[place] if self._tenants[place] == tenant else []
        return next(
            (n for n, (a, b) in enumerate(zip(held, tokens, strict=False)) if a != b),
            min(len(held), len(tokens)),
        )

    def cells(self, place: int, tokens: Sequence[int], tenant: str, first: int, last: int) -> Cells:
        """The cells of positions `first` to `last` - 1 of a text that begins with `tokens`.

        What the place does not hold yet is read. Raises EngineError; the place holds nothing then.
        """
        try:
            self._read(place, tokens[:last], tenant)
            return self._cells.take_apart(place, self.places, first, last)
        except Exception:
            self._held[place] = []
            raise

    def close(self) -> None:
        """Frees the KV cache."""
        self._context.close()

    def _read(self, place: int, tokens: Sequence[int], tenant: str) -> None:
        held = self._held[place]
        start = common = self.common(place, tokens, tenant)
        self._tenants[place] = tenant
        if common == len(tokens):
            return
        del held[common:]
        began = perf_counter()
        while start < len(tokens):
            piece = list(tokens[start : start + RUN_TOKENS])
            self._context.decode([Segment(place, start, piece, 0)])
            held += piece
            start += len(piece)
        self.token_s = (perf_counter() - began) / (len(tokens) - common)
