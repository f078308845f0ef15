"""The draft model at the cloud: the cells it gives are those that an edge computes."""

import numpy as np
import pytest

from ecd.cloud.llama_assist import LlamaAssist
from ecd.edge.drafter import DraftTask
from ecd.edge.llama_drafter import LlamaDrafter
from ecd.engine.llama import LlamaModel
from ecd.errors import ModelError
from ecd.sampling import Sampling
from ecd.wire.fingerprint import Fingerprint

LENGTH = 300
WE, THEY = "berlin", "paris"


def test_its_cells_are_nearly_those_of_an_edge(draft: LlamaModel, target: LlamaModel) -> None:
    tokens = draft.tokenize("A list: " + " ".join(map(str, range(200))), add_bos=True, parse_special=False)
    tokens = tokens[:LENGTH]
    assist = LlamaAssist(draft, target.fingerprint(), places=2, context_tokens=512, threads=1)
    edge = LlamaDrafter(draft, slots=1, context_tokens=512, threads=1)
    assert assist.shape == edge.shape
    assert assist.token_s > 0
    parts = [assist.cells(1, tokens, WE, 0, 256), assist.cells(1, tokens, WE, 256, LENGTH)]
    assert assist.common(1, tokens, WE) == LENGTH
    while edge.held(0) < LENGTH:
        edge.draft([DraftTask(0, 0, tokens, LENGTH, LENGTH, Sampling())])
    local = edge.take(0, tokens)
    assert local is not None
    # Pieces of other lengths round otherwise.
    far = np.abs(np.concatenate(parts).astype(np.float32) - local.astype(np.float32))
    assert far.mean() < 0.02 * np.abs(local.astype(np.float32)).mean()
    # Of another text the common beginning is not read again, and what differs is.
    other = [*tokens[:100], tokens[100] + 1, *tokens[101:]]
    assert assist.common(1, other, WE) == 100
    np.testing.assert_array_equal(assist.cells(1, other, WE, 0, 100), parts[0][:100])
    assert assist.common(1, tokens, WE) == LENGTH
    assist.cells(1, other, WE, 100, 120)
    assert assist.common(1, tokens, WE) == 100
    # What was read for one tenant is read again for another.
    assert assist.common(1, tokens, THEY) == 0
    theirs = assist.cells(1, tokens, THEY, 0, 120)
    assert (assist.common(1, tokens, THEY), assist.common(1, tokens, WE)) == (120, 0)
    far = np.abs(theirs.astype(np.float32) - local[:120].astype(np.float32))
    assert far.mean() < 0.02 * np.abs(local[:120].astype(np.float32)).mean()
    assist.close()
    edge.close()


def test_a_model_with_another_tokenizer_is_refused(draft: LlamaModel) -> None:
    with pytest.raises(ModelError, match="do not share a tokenizer"):
        LlamaAssist(
            draft, Fingerprint(1000, "aa", {"bos": 1}, "bpe", "bb"), places=1, context_tokens=64, threads=1
        )
