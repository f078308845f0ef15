"""The torch sampler against the numpy one, which is the specification: the same verdicts, token by token."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import ecd.logprobs
from ecd.errors import EngineError
from ecd.sampling import (
    DraftDistribution,
    Guess,
    Hint,
    Noise,
    Rule,
    Sampling,
    Verdict,
    choose,
    guess,
    noise_key,
    shape,
    uniforms,
    verify,
)

torch = pytest.importorskip("torch")

from ecd.engine import torch_draws, torch_sampling  # noqa: E402
from ecd.engine.torch_sampling import Rows, token_logprobs, verify_rows  # noqa: E402

pytestmark = pytest.mark.vllm

Matrix = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def logits_of(rng: np.random.Generator, rows: int, vocabulary: int, spread: float, tied: bool) -> Matrix:
    """Normal logits; `tied` rounds them to quarters, so that equal ones are common."""
    logits = rng.normal(size=(rows, vocabulary)) * spread
    return (np.round(logits * 4) / 4 if tied else logits).astype(np.float32)


def hints_for(
    logits: Matrix, sampling: Sampling, tokens: list[int], prompt_len: int, kinds: Sequence[str], wide: bool
) -> list[Hint]:
    """A hint of each kind, one for each row but the last."""
    hints: list[Hint] = []
    vocabulary = logits.shape[1]
    for at, kind in enumerate(kinds):
        context = [*tokens, *(hint.token for hint in hints)]
        row = logits[at]
        match kind:
            case "drafted":  # by a draft model with other logits
                drafted = guess(np.roll(row, at % 2), sampling, len(context), context, prompt_len)
            case "right" | "outside its q":
                own = choose(row, sampling, len(context), context, prompt_len)
                drafted = Guess(own, 1.0)
            case "again" if hints:
                drafted = Guess(hints[-1].token, 1.0)
            case "unlikely":
                drafted = Guess(int(row.argmin()), 1.0)
            case _:
                drafted = Guess((7 * at + 3) % vocabulary, 1.0)
        q = drafted.q
        if q is None and wide:
            first = (drafted.token + (kind == "outside its q")) % vocabulary
            ids = tuple((first + 5 * step) % vocabulary for step in range(min(32, vocabulary // 5)))
            q = DraftDistribution(ids, tuple(1 + 37 * step % 255 for step in range(len(ids))))
        hints.append(Hint(drafted.token, q))
    return hints


KINDS = ["drafted", "right", "right", "again", "unlikely", "any", "outside its q"]


@st.composite
def samplings(draw: st.DrawFn, vocabulary: int) -> Sampling:
    rule = draw(st.sampled_from(Rule))
    warm = st.sampled_from([0.0, 1e-300, 1e-3, 0.3, 0.7, 1.0, 1.0, 3.0, 100.0])
    penalty = st.sampled_from([0.0, 0.0, 0.0, 0.5, -0.25, 1.3])
    bias = st.tuples(st.integers(0, vocabulary - 1), st.sampled_from([-100.0, -3.1, 0.3, 2.7, 100.0]))
    return Sampling(
        rule,
        seed=draw(st.integers(0, (1 << 64) - 1)),
        temperature=0.0 if rule is Rule.GREEDY else draw(warm),
        top_k=draw(st.sampled_from([0, 0, 0, 1, 2, 5, 40, 1 << 24])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.999, 0.95, 0.6, 0.1, 1e-9])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.03, 0.4, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3, 0.7])),
        presence_penalty=draw(penalty),
        frequency_penalty=draw(penalty),
        # The same token may be given a bias twice.
        logit_bias=tuple(draw(st.lists(bias, max_size=4)) * draw(st.sampled_from([1, 1, 2]))),
    )


@st.composite
def sessions(draw: st.DrawFn, vocabulary: int) -> tuple[Rows, Matrix, Verdict]:
    """One session, its logits and what `verify` says of it."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    sampling = draw(samplings(vocabulary))
    kinds = draw(st.lists(st.sampled_from(KINDS), max_size=8))
    spread = draw(st.sampled_from([0.0, 0.01, 1.0, 3.0, 12.0]))
    logits = logits_of(rng, len(kinds) + 1, vocabulary, spread, draw(st.booleans()))
    tokens = rng.integers(0, vocabulary, draw(st.integers(0, 60))).tolist()
    prompt_len = draw(st.integers(0, len(tokens)))
    hints = hints_for(logits, sampling, tokens, prompt_len, kinds, draw(st.booleans()))
    rows = Rows(sampling, len(tokens), hints, prompt_len, tokens if sampling.penalised else ())
    return rows, logits, verify(logits, hints, sampling, tokens, prompt_len)


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[Rows, Matrix, Verdict]]:
    vocabulary = draw(st.sampled_from([50, 51, 300, 2000]))
    return draw(st.lists(sessions(vocabulary), min_size=1, max_size=6))


@settings(max_examples=300, deadline=None)
@given(batches(), st.sampled_from([torch_sampling.CPU_GROUP_BYTES, 40 * 2000 * 9, 1]))
def test_verdicts_are_those_of_numpy(batch: list[tuple[Rows, Matrix, Verdict]], group_bytes: int) -> None:
    logits = np.concatenate([each for _, each, _ in batch])
    tensor = torch.from_numpy(logits.copy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_sampling, "CPU_GROUP_BYTES", group_bytes)
        verdicts = verify_rows(tensor, [rows for rows, _, _ in batch])
    assert verdicts == [verdict for _, _, verdict in batch]
    assert np.array_equal(tensor.numpy(), logits)


def sole(logits: Matrix, hints: Sequence[Hint], sampling: Sampling, tokens: Sequence[int] = ()) -> Verdict:
    """The verdict on one session, which has to be `verify`'s, too."""
    (verdict,) = verify_rows(torch.from_numpy(logits), [Rows(sampling, len(tokens), hints, 0, tokens)])
    assert verdict == verify(logits, hints, sampling, tokens, 0)
    return verdict


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.99999])
def test_a_nucleus_wider_than_the_quick_search_is_whole(top_p: float) -> None:
    """Only some of the rows have such a nucleus."""
    rng = np.random.default_rng(5)
    logits = np.concatenate(
        [logits_of(rng, 8, 5000, spread, tied) for spread in (0.0, 0.2, 4.0, 0.2) for tied in (True, False)]
    )
    for seed in range(8):
        sampling = Sampling(Rule.COUPLED, seed=seed, temperature=1.0, top_p=top_p)
        drawn = [Hint(choose(row, sampling, at)) for at, row in enumerate(logits)]
        assert sole(logits, drawn[:-1], sampling).accepted == len(logits) - 1


@pytest.mark.parametrize("seed", range(6))
def test_rejection_agrees_over_many_positions(seed: int) -> None:
    """4 000 hints, each judged by itself: accepted with either kind of q^ and drawn from the residual."""
    rng = np.random.default_rng(seed)
    logits = logits_of(rng, 4000, 60, 2.0, tied=seed % 2 == 0)
    cuts: dict[str, Any] = [{}, {"top_p": 0.9}, {"top_k": 7}][seed % 3]
    sampling = Sampling(Rule.REJECTION, seed=seed, temperature=0.8, **cuts)
    batch = []
    for at in range(0, len(logits), 2):
        drafted = guess(logits[at] + rng.normal(size=60).astype(np.float32), sampling, at, (), 0)
        batch.append(Rows(sampling, at, [Hint(drafted.token, drafted.q if at % 4 else None)]))
    verdicts = verify_rows(torch.from_numpy(logits), batch)
    expected = [
        verify(logits[at : at + 2], rows.hints, sampling, [0] * at, 0)
        for at, rows in zip(range(0, len(logits), 2), batch, strict=True)
    ]
    assert verdicts == expected
    assert 0.4 < sum(verdict.accepted for verdict in verdicts) / len(verdicts) < 0.9


def test_a_hint_outside_its_own_q_is_refused() -> None:
    flat = np.zeros((2, 4), np.float32)
    tokens = set()
    for seed in range(60):
        sampling = Sampling(Rule.REJECTION, seed=seed, temperature=1.0)
        verdict = sole(flat, [Hint(3, DraftDistribution((0, 1), (9, 9)))], sampling)
        assert not verdict.accepted
        tokens.update(verdict.tokens)
    assert tokens == {2, 3}


def test_a_hint_outside_its_own_q_is_refused_where_that_leaves_nothing() -> None:
    """The whole of p is in q^, so that the residual is empty and p itself is drawn from."""
    certain = np.array([[0.0, 1.0, 90.0, 1.0]] * 2, np.float32)
    q = DraftDistribution((2,), (255,))
    for temperature in (0.0, 1e-3):
        sampling = Sampling(Rule.REJECTION, temperature=temperature)
        assert sole(certain, [Hint(1, q)], sampling) == Verdict((2,), 0)
        assert sole(certain, [Hint(2, DraftDistribution((1,), (9,)))], sampling) == Verdict((2,), 0)


def test_distributions_are_those_of_numpy() -> None:
    """To the last bits: the draws alone would not notice float32."""
    rng = np.random.default_rng(8)
    cuts: list[dict[str, Any]] = [{}, {"top_p": 0.8}, {"min_p": 0.05}]
    samplings = [Sampling(Rule.COUPLED, temperature=t, **cut) for t in (0.2, 1.0, 7.0) for cut in cuts]
    logits = logits_of(rng, len(samplings), 900, 4.0, tied=False)
    for sampling, row, found in zip(
        samplings, logits, torch_draws._shape(torch.from_numpy(logits), samplings).numpy(), strict=True
    ):
        expected = np.zeros(900)
        shaped = shape(row, sampling)
        expected[shaped.ids] = shaped.probs
        np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_equal_logits_go_by_id() -> None:
    flat = np.zeros((4, 3000), np.float32)
    assert sole(flat, [Hint(0), Hint(0), Hint(0)], Sampling()) == Verdict((0, 0, 0, 0), 3)
    for cut in ({"top_k": 3}, {"top_p": 0.001}, {"top_k": 50, "top_p": 0.05}):
        seen = set()
        for seed in range(60):
            sampling = Sampling(Rule.COUPLED, seed=seed, temperature=0.5, **cut)
            seen.update(sole(flat[:1], [], sampling).tokens)
        assert seen == {0, 1, 2}


def test_penalties_count_the_hints_before_a_row() -> None:
    logits = np.tile(np.array([3.0, 2.5, 2.0, 0.0], np.float32), (4, 1))
    hints = [Hint(0), Hint(1), Hint(2)]
    assert sole(logits, hints, Sampling(presence_penalty=2.0), [3]) == Verdict((0, 1, 2, 0), 3)
    assert sole(logits, hints, Sampling(frequency_penalty=0.3), [3]) == Verdict((0, 0), 1)
    assert sole(logits, hints, Sampling(repetition_penalty=1.3), [0]) == Verdict((1,), 0)


def test_long_histories_may_be_arrays() -> None:
    rng = np.random.default_rng(1)
    logits, tokens = logits_of(rng, 3, 500, 2.0, False), rng.integers(0, 500, 4000)
    sampling = Sampling(frequency_penalty=0.2, repetition_penalty=1.1)
    hints = [Hint(int(np.bincount(tokens).argmin())), Hint(1)]
    expected = verify(logits, hints, sampling, tokens.tolist(), 100)
    assert verify_rows(torch.from_numpy(logits), [Rows(sampling, 4000, hints, 100, tokens)]) == [expected]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_taken_for_what_they_are(dtype: Any) -> None:
    """bfloat16 has 8 bits: of 400 logits many are equal."""
    logits = torch.randn((30, 400), generator=torch.Generator().manual_seed(3)).to(dtype)
    for sampling in (Sampling(), Sampling(Rule.COUPLED, seed=4, temperature=1.0, top_k=20)):
        batch = [Rows(sampling, position) for position in range(30)]
        expected = [choose(row, sampling, at) for at, row in enumerate(logits.float().numpy())]
        assert [verdict.tokens for verdict in verify_rows(logits, batch)] == [(token,) for token in expected]


def test_uniforms_are_those_of_numpy() -> None:
    keys = [(0, 0), (1, 5), ((1 << 64) - 1, (1 << 31) - 1), (12345678901234567890, 1000)]
    for purpose in Noise:
        numbers = torch_draws._uniforms([noise_key(*key, purpose) for key in keys], torch.arange(2000))
        for (seed, position), row in zip(keys, numbers.numpy(), strict=True):
            assert np.array_equal(row, uniforms(seed, position, np.arange(2000), purpose))


def test_groups_are_whole_sessions_within_the_limit() -> None:
    sessions = [torch_sampling._Placed(0, Rows(Sampling(), 0, [Hint(0)] * n)) for n in (0, 1, 2, 8, 0, 0)]
    groups = list(torch_sampling._groups(sessions, 4))
    assert [[session.rows.count for session in group] for group in groups] == [[1, 2], [3], [9], [1, 1]]


def test_rows_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(EngineError, match="3 rows of logits where the sessions have 2"):
        verify_rows(torch.zeros((3, 10)), [Rows(Sampling(), 0, [Hint(1)])])


def test_no_sessions_no_verdicts() -> None:
    assert verify_rows(torch.zeros((0, 10)), []) == []


# --- log-probabilities


@pytest.mark.parametrize("count", [0, 1, 20])
@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
def test_logprobs_are_those_of_numpy(count: int, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(count)
    logits = logits_of(rng, 40, 700, 3.0, tied)
    logits[:5, 10:] = -np.inf
    tokens = rng.integers(0, 700, 40)
    monkeypatch.setattr(torch_sampling, "CPU_GROUP_BYTES", 40 * 700 * 7)
    found = token_logprobs(torch.from_numpy(logits), torch.from_numpy(tokens), count)
    assert (found.ids.dtype, found.logprobs.dtype, found.ranks.dtype) == (
        torch.int32,
        torch.float32,
        torch.int32,
    )
    for at, token in enumerate(tokens.tolist()):
        expected = ecd.logprobs.token_logprobs(logits[at], token, count)
        assert found.ids[at].tolist() == [token, *(each for each, _ in expected.top)]
        values = [expected.logprob, *(value for _, value in expected.top)]
        np.testing.assert_allclose(found.logprobs[at].numpy(), np.array(values, np.float32), rtol=1e-6)
        assert found.ranks[at] == (logits[at] >= logits[at, token]).sum()


def test_logits_without_a_distribution_have_no_logprobs() -> None:
    found = token_logprobs(torch.full((1, 30), torch.nan), torch.tensor([3]), 2)
    assert found.logprobs.isnan().all()
