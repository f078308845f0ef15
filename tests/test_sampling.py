"""Shaping, noise and the three rules, against independent references and against theory.

All draws use fixed seeds, so nothing here can fail by chance. Every chi-square test says which total
variation it would find with a probability of at least 0.99, and is shown to reject a wrong distribution.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ecd.errors import BadRequest
from ecd.sampling import (
    MAX_BIASES,
    MAX_Q_TOKENS,
    DraftDistribution,
    Hint,
    Noise,
    Rule,
    Sampling,
    Shaped,
    Verdict,
    adjust,
    agreement_gap,
    choose,
    guess,
    judge,
    loosened,
    quantise,
    race,
    shape,
    uniforms,
    verify,
)
from ecd.wire.frames import FrameReader, encode_frame

Floats = NDArray[np.float64]

# --- statistics, by hand

Z_ALPHA = 4.7534  # the normal quantile of 1 - 1e-6: one false alarm in a million
Z_POWER = 2.3263  # of 0.99


def critical(freedom: int) -> float:
    """The chi-square value exceeded with probability 1e-6 (Wilson and Hilferty 1931)."""
    a = 2 / (9 * freedom)
    return freedom * (1 - a + Z_ALPHA * math.sqrt(a)) ** 3


def chi_square(counts: Sequence[float], probs: Sequence[float]) -> float:
    """Pearson's statistic. Infinite for a draw that cannot be; every other cell must expect at least five."""
    n = sum(counts)
    total = 0.0
    for count, p in zip(counts, probs, strict=True):
        if p == 0:
            total += math.inf if count else 0.0
        else:
            assert n * p >= 5, "too few draws for this cell"
            total += (count - n * p) ** 2 / (n * p)
    return total


def detectable(n: int, freedom: int) -> float:
    """The total variation that n draws find with probability 0.99 or more, whatever its direction.

    A shift d has non-centrality L = n * sum(d^2 / p), at least n * (sum |d|)^2 = 4 n TV^2 (Cauchy-Schwarz).
    The statistic then has mean freedom + L and variance 2 * (freedom + 2 L) and is nearly normal.
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        mid = (low + high) / 2
        enough = freedom + mid - critical(freedom) >= Z_POWER * math.sqrt(2 * (freedom + 2 * mid))
        low, high = (low, mid) if enough else (mid, high)
    return math.sqrt(high / (4 * n))


def shifted(probs: Sequence[float], amount: float) -> list[float]:
    """The distribution with `amount` of mass moved from the likeliest cell to the likeliest but one."""
    order = sorted(range(len(probs)), key=lambda i: -probs[i])
    moved = list(probs)
    moved[order[0]] -= amount
    moved[order[1]] += amount
    return moved


def assert_drawn_from(counts: Sequence[float], probs: Sequence[float], stated_power: float) -> None:
    """The counts fit `probs`, and refute probabilities that are wrong by twice the stated power.

    Twice, because a fixed sample that was drawn from `probs` lies a little to one side of it; at the stated
    distance the test rejects 99 of 100 samples, see `test_the_chi_square_test_has_the_power_it_claims`.
    """
    freedom = sum(p > 0 for p in probs) - 1
    assert detectable(int(sum(counts)), freedom) <= stated_power
    assert chi_square(counts, probs) < critical(freedom)
    assert chi_square(counts, shifted(probs, 2 * stated_power)) > critical(freedom)


def test_the_chi_square_test_has_the_power_it_claims() -> None:
    probs = [0.4, 0.25, 0.15, 0.1, 0.06, 0.04]
    n, amount = 10_000, detectable(10_000, 5)
    rng = np.random.default_rng(11)
    right = [chi_square(list(rng.multinomial(n, probs)), probs) for _ in range(400)]
    # The least favourable shift of this size, proportional to the cell's own mass, on two halves of the mass.
    signs = np.array([1.25, -1 / 1.2, -1 / 1.2, 1.25, -1 / 1.2, 1.25]) * np.array(probs)
    signs -= np.array(probs) * signs.sum()
    wrong = np.array(probs) + signs * (2 * amount / np.abs(signs).sum())
    found = [chi_square(list(rng.multinomial(n, wrong)), probs) > critical(5) for _ in range(400)]
    assert max(right) < critical(5)
    assert sum(found) >= 0.98 * 400


@pytest.mark.parametrize("freedom", [2, 4, 8, 12, 64, 256])
def test_the_critical_values_are_rarely_exceeded(freedom: int) -> None:
    # With an even number of degrees the exact tail is that of a Poisson sum.
    half = critical(freedom) / 2
    tail = math.fsum(math.exp(-half + k * math.log(half) - math.lgamma(k + 1)) for k in range(freedom // 2))
    assert 1e-7 < tail < 1.2e-6


# --- builders


def logits_of(probs: Sequence[float]) -> NDArray[np.float32]:
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(np.asarray(probs, dtype=np.float64)), -1000.0).astype(np.float32)


def coupled(seed: int, **settings: Any) -> Sampling:
    return Sampling(Rule.COUPLED, seed, **({"temperature": 1.0} | settings))


def rejection(seed: int, **settings: Any) -> Sampling:
    return Sampling(Rule.REJECTION, seed, **({"temperature": 1.0} | settings))


def counts_of(tokens: Sequence[int], size: int) -> list[int]:
    found = Counter(tokens)
    assert set(found) <= set(range(size))
    return [found[token] for token in range(size)]


# --- shaping


def reference_shape(
    logits: NDArray[np.float32],
    s: Sampling,
    tokens: Sequence[int],
    prompt_len: int,
    on_no_edge: Callable[[bool], object] = bool,
) -> dict[int, float]:
    """Shaping as one would explain it: a plain loop over (logit, id) pairs.

    `on_no_edge` is told whether rounding can decide a cut either way.
    """
    values = []
    for token, logit in enumerate(logits):
        x = np.float32(logit)
        for biased, bias in s.logit_bias:
            if biased == token:
                x = np.float32(x + np.float32(bias))
        if token in tokens and s.repetition_penalty != 1:
            r = np.float32(s.repetition_penalty)
            x = np.float32(x / r) if x > 0 else np.float32(x * r)
        count = list(tokens[prompt_len:]).count(token)
        if count:
            x = np.float32(x - np.float32(s.presence_penalty + s.frequency_penalty * count))
        values.append(float(x))
    ranked = sorted(range(len(values)), key=lambda token: (-values[token], token))
    if s.temperature == 0:
        return {ranked[0]: 1.0}
    if s.top_k:
        ranked = ranked[: s.top_k]
    weight = {token: math.exp((values[token] - values[ranked[0]]) / s.temperature) for token in ranked}
    if s.top_p < 1:
        needed, mass, kept = s.top_p * math.fsum(weight.values()), 0.0, []
        for token in ranked:
            on_no_edge(abs(mass - needed) > 1e-9 * needed)
            if mass >= needed:
                break
            kept.append(token)
            mass += weight[token]
        ranked = kept
    for token in ranked:
        on_no_edge(s.min_p in (0, 1) or abs(weight[token] - s.min_p) > 1e-9)
    ranked = [token for token in ranked if weight[token] >= s.min_p]
    total = math.fsum(weight[token] for token in ranked)
    return {token: weight[token] / total for token in ranked}


@st.composite
def shaping_cases(draw: st.DrawFn) -> tuple[NDArray[np.float32], Sampling, list[int], int]:
    size = draw(st.integers(1, 12))
    # Quarters make equal logits common.
    logits = draw(st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=size, max_size=size))
    token = st.integers(0, size - 1)
    tokens = draw(st.lists(token, max_size=8))
    penalty = st.sampled_from([0.0, 0.0, 0.5, -0.25, 1.3])
    sampling = Sampling(
        Rule.COUPLED,
        temperature=draw(st.sampled_from([0.0, 0.25, 0.7, 1.0, 3.0])),
        top_k=draw(st.sampled_from([0, 0, 1, 2, 5, 100])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.95, 0.6, 0.3, 1e-6])),
        min_p=draw(st.sampled_from([0.0, 0.0, 0.03, 0.4, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3, 0.7])),
        presence_penalty=draw(penalty),
        frequency_penalty=draw(penalty),
        logit_bias=tuple(draw(st.lists(st.tuples(token, st.sampled_from([-3.0, 0.5, 100.0])), max_size=3))),
    )
    return np.array(logits, np.float32), sampling, tokens, draw(st.integers(0, len(tokens)))


@settings(max_examples=400, deadline=None)
@given(shaping_cases())
def test_shaping_is_the_plain_reference(case: tuple[NDArray[np.float32], Sampling, list[int], int]) -> None:
    logits, sampling, tokens, prompt_len = case
    before = logits.copy()
    shaped = shape(logits, sampling, tokens, prompt_len)
    assert dict(zip(shaped.ids.tolist(), shaped.probs.tolist(), strict=True)) == pytest.approx(
        reference_shape(logits, sampling, tokens, prompt_len, assume), abs=1e-9
    )
    assert np.array_equal(logits, before), "the caller's logits are left alone"


@settings(max_examples=200, deadline=None)
@given(shaping_cases(), st.integers(0, 1000))
def test_the_choice_is_among_the_shaped_tokens(
    case: tuple[NDArray[np.float32], Sampling, list[int], int], position: int
) -> None:
    logits, sampling, tokens, prompt_len = case
    token = choose(logits, sampling, position, tokens, prompt_len)
    assert token in shape(logits, sampling, tokens, prompt_len).ids
    assert agreement_gap(logits, sampling, position, token, tokens, prompt_len) == 0


def test_equal_logits_are_ranked_by_id() -> None:
    flat = np.zeros(8, np.float32)
    assert shape(flat, coupled(0, top_k=3)).ids.tolist() == [0, 1, 2]
    assert shape(flat, coupled(0, top_p=0.5)).ids.tolist() == [0, 1, 2, 3]
    assert shape(flat, Sampling()).ids.tolist() == [0]
    assert choose(flat, Sampling(), 0) == 0
    steps = np.array([1, 2, 2, 1, 2, 0], np.float32)
    assert shape(steps, coupled(0, top_k=2)).ids.tolist() == [1, 2]
    assert shape(steps, coupled(0, top_k=4)).ids.tolist() == [1, 2, 4, 0]


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    logits = logits_of([0.4, 0.3, 0.2, 0.1])
    assert set(shape(logits, coupled(0, top_p=0.5)).ids.tolist()) == {0, 1}
    # Of 0.7 the first token holds 0.57.
    assert set(shape(logits, coupled(0, top_k=2, top_p=0.5)).ids.tolist()) == {0}


def test_min_p_is_relative_to_the_likeliest_token() -> None:
    logits = logits_of([0.5, 0.26, 0.24])
    assert set(shape(logits, coupled(0, min_p=0.5)).ids.tolist()) == {0, 1}
    assert set(shape(logits, coupled(0, min_p=1.0)).ids.tolist()) == {0}


def test_temperature_comes_before_the_cuts() -> None:
    logits = logits_of([0.5, 0.3, 0.2])
    assert set(shape(logits, coupled(0, temperature=1.0, top_p=0.6)).ids.tolist()) == {0, 1}
    assert set(shape(logits, coupled(0, temperature=0.2, top_p=0.6)).ids.tolist()) == {0}
    assert set(shape(logits, coupled(0, temperature=100.0, top_p=0.7)).ids.tolist()) == {0, 1, 2}


def test_bias_comes_before_the_repetition_penalty() -> None:
    biased = Sampling(repetition_penalty=2.0, logit_bias=((0, 2.0),))
    # 1 + 2 = 3 is halved to 1.5; the other order would give 0.5 + 2.
    assert choose(np.array([1.0, 2.0], np.float32), biased, 1, [0], 1) == 1


def test_presence_and_frequency_look_at_the_answer_only() -> None:
    logits = np.array([1.0, 0.5], np.float32)
    for penalty in ({"presence_penalty": 1.0}, {"frequency_penalty": 0.5}):
        s = Sampling(**penalty)
        assert choose(logits, s, 2, [0, 0], 2) == 0
        assert choose(logits, s, 4, [1, 0, 0, 0], 1) == 1
    assert choose(logits, Sampling(repetition_penalty=3.0), 2, [0, 0], 2) == 1


def test_a_bias_outside_the_vocabulary_is_refused() -> None:
    sampling = Sampling(logit_bias=((2, 1.0),))
    sampling.check_vocabulary(3)
    with pytest.raises(BadRequest, match="token id 2 is not in the vocabulary of 2"):
        sampling.check_vocabulary(2)


def test_more_biases_than_a_frame_can_carry_are_refused() -> None:
    most = [(token, 1.0) for token in range(MAX_BIASES)]
    sampling = Sampling(logit_bias=tuple(most))
    # The link would be closed for all answers on it.
    (_, _, told), _ = next(FrameReader().feed(encode_frame([1, 1, sampling.to_map()])))
    assert Sampling.from_map(told) == sampling
    with pytest.raises(BadRequest, match="logit_bias: 4097 tokens are more than 4096"):
        Sampling(logit_bias=(*most, (0, 1.0)))


def test_a_nucleus_wider_than_the_quick_search_is_whole() -> None:
    shaped = shape(np.zeros(5000, np.float32), coupled(0, top_p=0.9))
    assert shaped.ids.tolist() == list(range(4500))
    assert shaped.probs == pytest.approx(np.full(4500, 1 / 4500))


def test_very_low_temperatures_are_sharp_and_not_broken() -> None:
    logits = np.array([1.0, 20.0, 19.9], np.float32)
    assert shape(logits, coupled(0, temperature=1e-4)).probs.tolist() == [0.0, 1.0, 0.0]
    assert choose(logits, coupled(3, temperature=1e-200), 7) == 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_lowest_temperatures_still_give_a_distribution() -> None:
    assert shape(np.array([1.0, 2.0, 20.0], np.float32), coupled(0, temperature=1e-310)).probs.sum() == 1


# --- noise


def test_uniforms_never_change_between_releases() -> None:
    ids = np.array([0, 1, 2])
    golden = {
        Noise.TARGET: ["0x1.693568ef770d1p-1", "0x1.1c13ade1c7e5cp-3", "0x1.f1344acd6b045p-1"],
        Noise.DRAFT: ["0x1.a9a43d8e205e5p-1", "0x1.0157d005583c3p-1", "0x1.293e9183d3d71p-1"],
        Noise.ACCEPT: ["0x1.ca84d90014971p-1", "0x1.f6fdd494092bcp-3", "0x1.a5973efadcfd9p-1"],
    }
    for purpose, values in golden.items():
        assert [x.hex() for x in uniforms(0, 0, ids, purpose).tolist()] == values
    far = uniforms(12345678901234567890, 1000, np.array([0, 1, 151935]), Noise.TARGET)
    assert far.tolist() == [0.8330321125726413, 0.6900046467754962, 0.5495242876200591]


def plain_uniform(seed: int, position: int, token: int, purpose: int) -> float:
    """The same hash in Python's integers."""

    def mix(x: int) -> int:
        x %= 1 << 64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % (1 << 64)
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    key = mix(mix(seed + golden * purpose) + golden * (position + 1))
    return ((mix(key + golden * token) >> 12) + 0.5) / 2**52


@given(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 32) - 1),
    st.lists(st.integers(0, (1 << 24) - 1), min_size=1, max_size=5),
    st.sampled_from(Noise),
)
def test_uniforms_depend_on_nothing_but_their_arguments(
    seed: int, position: int, ids: list[int], purpose: Noise
) -> None:
    values = uniforms(seed, position, np.array(ids), purpose).tolist()
    assert values == [plain_uniform(seed, position, token, purpose) for token in ids]
    assert all(0 < value < 1 for value in values)


def test_uniforms_are_uniform() -> None:
    """100 000 numbers in 64 cells: finds a total variation of 0.025."""
    n = 100_000
    by_id = uniforms(7, 3, np.arange(n), Noise.TARGET)
    one = np.zeros(1, np.int64)
    by_position = np.concatenate([uniforms(7, position, one, Noise.ACCEPT) for position in range(20_000)])
    by_seed = np.concatenate([uniforms(seed, 5, one, Noise.ACCEPT) for seed in range(20_000)])
    assert detectable(n, 63) <= 0.025
    for values, cells in ((by_id, 64), (by_position, 16), (by_seed, 16)):
        counts = np.bincount((values * cells).astype(int), minlength=cells).tolist()
        assert chi_square(counts, [1 / cells] * cells) < critical(cells - 1)
    slanted = np.bincount((by_id**1.1 * 64).astype(int), minlength=64).tolist()
    assert chi_square(slanted, [1 / 64] * 64) > critical(63)


def test_uniforms_of_other_seeds_positions_and_purposes_are_independent() -> None:
    """Pearson's r, and pairs in an 8 x 8 grid, of 50 000 numbers: finds r = 0.032, total variation 0.035."""
    n = 50_000
    ids = np.arange(n)
    base = uniforms(100, 10, ids, Noise.TARGET)
    others = {
        f"{seed} {position} {purpose.name}": uniforms(seed, position, ids, purpose)
        for seed, position, purpose in product((100, 101, 100 + (1 << 32)), (10, 11, 12), Noise)
        if (seed, position, purpose) != (100, 10, Noise.TARGET)
    } | {"next id": uniforms(100, 10, ids + 1, Noise.TARGET)}
    assert (Z_ALPHA + Z_POWER) / math.sqrt(n) < 0.032
    assert detectable(n, 63) <= 0.035

    def pairs(a: Floats, b: Floats) -> float:
        cells = (a * 8).astype(int) * 8 + (b * 8).astype(int)
        return chi_square(np.bincount(cells, minlength=64).tolist(), [1 / 64] * 64)

    for name, other in others.items():
        r = float(np.corrcoef(base, other)[0, 1])
        assert abs(r) < Z_ALPHA / math.sqrt(n), name
        assert pairs(base, other) < critical(63), name
    slightly = np.where(ids % 12 == 0, base, others["101 10 TARGET"])
    assert abs(float(np.corrcoef(base, slightly)[0, 1])) > Z_ALPHA / math.sqrt(n)
    assert pairs(base, slightly) > critical(63)


def test_a_race_without_weight_is_never_won() -> None:
    ids, weights = np.array([4, 5, 6]), np.array([0.0, 1e-300, 0.0])
    assert {race(ids, weights, seed, 0, Noise.TARGET) for seed in range(200)} == {5}


# --- the target's own draw


@pytest.mark.parametrize(
    ("settings", "tokens", "prompt_len"),
    [
        ({}, [], 0),
        ({"temperature": 0.7, "top_k": 5, "top_p": 0.95}, [], 0),
        ({"min_p": 0.1, "logit_bias": ((5, 2.0),)}, [], 0),
        ({"presence_penalty": 0.5, "frequency_penalty": 0.4, "repetition_penalty": 1.2}, [0, 1, 0, 0], 1),
    ],
    ids=["plain", "cut", "biased", "penalised"],
)
def test_draws_follow_the_shaped_distribution(
    settings: dict[str, Any], tokens: list[int], prompt_len: int
) -> None:
    """20 000 draws: finds a total variation of 0.032."""
    logits = logits_of([0.4, 0.22, 0.15, 0.1, 0.08, 0.05])
    want = reference_shape(logits, coupled(0, **settings), tokens, prompt_len)
    drawn = [
        choose(logits, coupled(n // 4, **settings), 10 + n % 4, tokens, prompt_len) for n in range(20_000)
    ]
    assert_drawn_from(counts_of(drawn, 6), [want.get(token, 0.0) for token in range(6)], 0.032)


def test_consecutive_draws_of_one_seed_are_independent() -> None:
    """20 000 pairs in 9 cells: finds a total variation of 0.033."""
    probs = [0.5, 0.3, 0.2]
    drawn = [choose(logits_of(probs), coupled(99), position) for position in range(20_001)]
    cells = counts_of([3 * a + b for a, b in pairwise(drawn)], 9)
    assert_drawn_from(cells, [a * b for a in probs for b in probs], 0.033)


# --- the rejection rule

PEAKED = DraftDistribution((2, 0, 1), (255, 2, 1))
FLAT = DraftDistribution((0, 1, 2, 3), (200, 200, 200, 200))
DISJOINT = DraftDistribution((3,), (9,))
LOPSIDED = DraftDistribution((1, 3), (80, 240))
TARGET_P = (0.5, 0.3, 0.2, 0.0)
NEXT_P = {
    0: (0.1, 0.6, 0.1, 0.2),
    1: (0.4, 0.1, 0.4, 0.1),
    2: (0.25, 0.25, 0.25, 0.25),
    3: (0.7, 0.1, 0.1, 0.1),
}


def target_row(context: Sequence[int]) -> NDArray[np.float32]:
    """The target's logits after a prompt of one token, and after any one token behind that."""
    return _ROWS[context[1] if len(context) == 2 else None] if len(context) < 3 else _ROWS[None]


_ROWS = {None: logits_of(TARGET_P)} | {token: logits_of(p) for token, p in NEXT_P.items()}

Draws = Callable[[Sequence[int], Sampling], Hint]


def from_q(*by_position: DraftDistribution) -> Draws:
    def draw(context: Sequence[int], sampling: Sampling) -> Hint:
        q = by_position[min(len(context) - 1, len(by_position) - 1)]
        ids, probs = q.as_arrays()
        return Hint(race(ids, probs, sampling.seed, len(context), Noise.DRAFT), q)

    return draw


def from_a_draft_model(*by_position: Sequence[float]) -> Draws:
    def draw(context: Sequence[int], sampling: Sampling) -> Hint:
        logits = logits_of(by_position[min(len(context) - 1, len(by_position) - 1)])
        drafted = guess(logits, sampling, len(context), context, 1)
        return Hint(drafted.token, drafted.q)

    return draw


def one_hot(*by_position: int) -> Draws:
    return lambda context, sampling: Hint(by_position[min(len(context) - 1, len(by_position) - 1)])


def two_tokens(draw: Draws, sampling: Sampling, hints: int) -> tuple[int, int]:
    """The first two tokens behind the prompt, hinted `hints` at a time."""
    context = [0]
    while len(context) < 3:
        line = list(context)
        sent = []
        for _ in range(hints):
            sent.append(draw(line, sampling))
            line.append(sent[-1].token)
        rows = np.stack([target_row(line[: len(context) + i]) for i in range(hints + 1)])
        verdict = verify(rows, sent, sampling, context, 1)
        assert verdict.tokens[: verdict.accepted] == tuple(h.token for h in sent[: verdict.accepted])
        assert len(verdict.tokens) == verdict.accepted + 1
        context.extend(verdict.tokens)
    return context[1], context[2]


@pytest.mark.parametrize(
    ("draw", "hints"),
    [
        (from_q(PEAKED, FLAT), 2),
        (from_q(FLAT, PEAKED), 1),
        (from_q(DISJOINT, LOPSIDED), 2),
        (from_q(LOPSIDED, DISJOINT), 2),
        (from_a_draft_model((0.02, 0.25, 0.15, 0.58), (0.1, 0.2, 0.6, 0.1)), 2),
        (one_hot(1, 2), 2),
        (one_hot(3, 0), 1),
    ],
    ids=["peaked", "flat", "disjoint", "lopsided", "draft model", "one-hot", "one-hot impossible"],
)
def test_rejection_commits_first_and_second_tokens_of_the_target(draw: Draws, hints: int) -> None:
    """7 000 texts of two tokens, 12 possible: finds a total variation of 0.06, of the first token 0.05."""
    n = 7_000
    drawn = [two_tokens(draw, rejection(seed), hints) for seed in range(n)]
    joint = [TARGET_P[a] * NEXT_P[a][b] for a in range(4) for b in range(4)]
    assert_drawn_from(counts_of([4 * a + b for a, b in drawn], 16), joint, 0.06)
    assert_drawn_from(counts_of([a for a, _ in drawn], 4), TARGET_P, 0.05)


def test_the_rejection_test_finds_a_sampler_that_quantises_too_late() -> None:
    """Drawing from q and shipping a rounded q^ is the classical mistake: the text is wrong, and it shows."""
    q, shipped = (0.3, 0.3, 0.4), DraftDistribution((0, 1, 2), (1, 1, 2))
    probs = (0.3, 0.3, 0.4)

    def text(seed: int) -> int:
        drawn = race(np.arange(3), np.array(q), seed, 1, Noise.DRAFT)
        return judge(logits_of(probs), Hint(drawn, shipped), rejection(seed), [0], 1)[0]

    assert chi_square(counts_of([text(seed) for seed in range(9_000)], 3), probs) > critical(2)


def test_the_drafted_token_follows_the_quantised_distribution() -> None:
    """20 000 drafts in 5 cells: finds a total variation of 0.031; the unquantised one is 0.08 away."""
    logits = logits_of([0.9, 0.005, 0.0053, 0.0047, 0.00001] + [0.085 / 60] * 60)
    drafts = [guess(logits, rejection(seed), 4, [0] * 4, 1) for seed in range(20_000)]
    q = drafts[0].q
    assert q is not None
    assert q == quantise(shape(logits, rejection(0)))
    assert len(q.ids) == len(q.weights) <= MAX_Q_TOKENS
    assert all(draft.q == q for draft in drafts), "q^ must not depend on the drawn token"
    probs = dict(zip(q.ids, (w / sum(q.weights) for w in q.weights), strict=True))
    assert len({(draft.confidence, draft.second) for draft in drafts}) == 1, "nor may anything else"
    cells = [0, 1, 2, 3]
    counts = Counter(draft.token for draft in drafts)
    assert set(counts) <= set(q.ids)
    assert_drawn_from(
        [*(counts[c] for c in cells), len(drafts) - sum(counts[c] for c in cells)],
        [*(probs[c] for c in cells), 1 - sum(probs[c] for c in cells)],
        0.031,
    )
    unquantised = shape(logits, rejection(0)).probs[:4].tolist()
    assert chi_square(
        [*(counts[c] for c in cells), len(drafts) - sum(counts[c] for c in cells)],
        [*unquantised, 1 - sum(unquantised)],
    ) > critical(4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=80).filter(lambda weights: sum(weights) > 1e-6))
def test_quantised_weights_fit_a_byte_and_keep_the_likeliest(weights: list[float]) -> None:
    probs = np.array(weights) / sum(weights)
    q = quantise(Shaped(np.arange(len(probs)) * 3 + 5, probs))
    assert 1 <= len(q.ids) == len(q.weights) <= MAX_Q_TOKENS
    assert len(set(q.ids)) == len(q.ids)
    assert all(1 <= weight <= 255 for weight in q.weights)
    assert q.weights[0] == 255
    assert q.ids[0] == int(probs.argmax()) * 3 + 5
    assert list(q.weights) == sorted(q.weights, reverse=True)
    for token, weight in zip(q.ids, q.weights, strict=True):
        assert abs(weight / 255 - probs[(token - 5) // 3] / probs.max()) <= 0.5 / 255 + 1e-12


@pytest.mark.parametrize(
    "hint",
    [
        Hint(3, DraftDistribution((0, 1, 2), (1, 1, 1))),
        Hint(900_000),
        Hint(0, DraftDistribution((900_000,), (7,))),
    ],
    ids=["outside its q", "outside the vocabulary", "q outside the vocabulary"],
)
def test_hints_that_cannot_have_been_drafted_are_rejected(hint: Hint) -> None:
    logits = logits_of([0.25, 0.25, 0.25, 0.25])
    for seed in range(300):
        token, accepted = judge(logits, hint, rejection(seed), [0], 1)
        assert not accepted
        assert 0 <= token < 4


def test_a_draft_that_is_the_target_is_always_accepted() -> None:
    logits = logits_of([0.5, 0.25, 0.25])
    q = DraftDistribution((0, 1, 2), (100, 50, 50))
    for seed in range(500):
        drawn = race(*q.as_arrays(), seed, 1, Noise.DRAFT)
        token, accepted = judge(logits, Hint(drawn, q), rejection(seed), [0], 1)
        # float32 logits put p a hair off the exact fractions.
        assert (token, accepted) == (drawn, True)


# --- acceptance rates against theory


def assert_rate(hits: int, n: int, rate: float) -> None:
    """Within four sigma. 10 000 trials find a rate that is 0.032 off with a probability of 0.99."""
    sigma = math.sqrt(rate * (1 - rate) / n)
    assert (4 + Z_POWER) * sigma < 0.032
    assert abs(hits / n - rate) < 4 * sigma


P = [0.45, 0.3, 0.15, 0.1]


@pytest.mark.parametrize("weights", [(255, 1, 1, 1), (60, 60, 60, 60), (10, 30, 100, 200), (90, 60, 30, 20)])
def test_rejection_accepts_the_overlap(weights: tuple[int, ...]) -> None:
    n, q = 10_000, DraftDistribution((0, 1, 2, 3), weights)
    ids, probs = q.as_arrays()
    hits = 0
    for seed in range(n):
        hint = Hint(race(ids, probs, seed, 5, Noise.DRAFT), q)
        hits += judge(logits_of(P), hint, rejection(seed), [0] * 5, 1)[1]
    overlap = sum(min(a, b) for a, b in zip(P, probs.tolist(), strict=True))
    if overlap > 0.999:
        assert hits >= n - 2
    else:
        assert_rate(hits, n, overlap)


@pytest.mark.parametrize("token", [0, 3])
def test_rejection_accepts_a_certain_draft_with_the_targets_probability(token: int) -> None:
    hits = sum(judge(logits_of(P), Hint(token), rejection(seed), [0], 1)[1] for seed in range(10_000))
    assert_rate(hits, 10_000, P[token])


@pytest.mark.parametrize("q", [[0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
def test_coupled_draws_agree_as_often_as_theory_says(q: list[float]) -> None:
    """Daliri, Musco, Suresh 2024: sum over j of 1 / sum over i of max(p_i / p_j, q_i / q_j)."""
    hits = 0
    for seed in range(10_000):
        drafted = guess(logits_of(q), coupled(seed), 5, [0] * 5, 1)
        assert drafted.q is None
        token, accepted = judge(logits_of(P), Hint(drafted.token), coupled(seed), [0] * 5, 1)
        assert accepted == (token == drafted.token)
        hits += accepted
    theory = sum(1 / sum(max(P[i] / P[j], q[i] / q[j]) for i in range(4)) for j in range(4))
    assert theory >= sum(map(min, P, q)) / (2 - sum(map(min, P, q))), "the paper's lower bound"
    assert_rate(hits, 10_000, theory)


def test_a_coupled_guess_with_the_targets_own_logits_is_always_right() -> None:
    for seed in range(300):
        s = coupled(seed, temperature=0.8, top_p=0.9)
        assert guess(logits_of(P), s, 5, [0] * 5, 1).token == choose(logits_of(P), s, 5, [0] * 5, 1)


# --- what a guess tells of itself

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12).map(
    lambda values: np.array(values, np.float32)
)
GUESSED_BY = [
    Sampling(),
    Sampling(repetition_penalty=1.4, logit_bias=((1, 2.0),)),
    Sampling(Rule.COUPLED, 3, 0.0),
    coupled(7),
    coupled(7, temperature=0.3, top_k=3),
    coupled(7, top_p=0.8, frequency_penalty=0.5),
    rejection(7),
]


@given(LOGITS, st.sampled_from(GUESSED_BY), st.integers(1, 50))
def test_confidence_is_the_drafts_largest_probability_whatever_is_drawn(
    logits: NDArray[np.float32], sampling: Sampling, position: int
) -> None:
    made = guess(logits, sampling, position, [0] * position, 1)
    weights = np.exp(logits.astype(np.float64))
    assert made.confidence == pytest.approx(weights.max() / weights.sum(), rel=1e-4)
    assert made.confidence == guess(logits, sampling, position + 1, [0] * (position + 1), 1).confidence
    assert made.drafter == "model"


def test_confidence_stays_while_the_drawn_token_changes() -> None:
    drawn = {guess(logits_of(P), coupled(seed), 5, [0] * 5, 1) for seed in range(50)}
    assert len({made.token for made in drawn}) == 4
    (confidence,) = {made.confidence for made in drawn}
    assert confidence == pytest.approx(0.45)


@given(LOGITS, st.sampled_from([s for s in GUESSED_BY if s.rule is not Rule.REJECTION]), st.integers(1, 50))
def test_the_runner_up_is_what_would_win_without_the_first(
    logits: NDArray[np.float32], sampling: Sampling, position: int
) -> None:
    context = [0] * position
    made = guess(logits, sampling, position, context, 1)
    if sampling.temperature == 0:
        ranked = np.lexsort((np.arange(len(logits)), -adjust(logits, sampling, context, 1)))
        assert (made.token, made.second) == (ranked[0], ranked[1])
        return
    p = shape(logits, sampling, context, 1)
    left = p.ids != made.token
    assert made.second == (
        race(p.ids[left], p.probs[left], sampling.seed, position, Noise.TARGET) if left.any() else None
    )


@pytest.mark.parametrize("q", [[0.25, 0.25, 0.25, 0.25], [0.4, 0.4, 0.1, 0.1]])
def test_the_runner_up_is_often_right_where_the_first_is_not(q: list[float]) -> None:
    """Or an alternate behind it would be worth little; any other token is right less often."""
    wrong = second = 0
    for seed in range(4_000):
        made = guess(logits_of(q), coupled(seed), 5, [0] * 5, 1)
        token = choose(logits_of(P), coupled(seed), 5, [0] * 5, 1)
        wrong += token != made.token
        second += token == made.second
    assert second > 0.5 * wrong > 200


def test_a_token_without_rival_has_no_runner_up() -> None:
    assert guess(logits_of(P), coupled(1, top_k=1), 5, [0] * 5, 1).second is None


def test_under_rejection_nothing_but_the_token_depends_on_the_draw() -> None:
    """A runner-up would: it cannot be the token that was drawn."""
    made = [guess(logits_of(P), rejection(seed), 5, [0] * 5, 1) for seed in range(100)]
    assert len({m.token for m in made}) > 1
    assert len({(m.confidence, m.second, m.q) for m in made}) == 1
    assert made[0].second is None


# --- hints cannot change the text


@lru_cache(maxsize=100_000)
def _toy_row(tail: tuple[int, ...]) -> NDArray[np.float32]:
    seed = 1
    for token in tail:
        seed = seed * 1_000_003 + token + 7
    row = np.random.default_rng(seed).normal(0, 2, 8).astype(np.float32)
    row.flags.writeable = False
    return row


def toy_row(context: Sequence[int]) -> NDArray[np.float32]:
    """A target whose logits depend on the last three tokens."""
    return _toy_row(tuple(context[-3:]))


def plain_text(sampling: Sampling, prompt: list[int], length: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + length:
        tokens.append(choose(toy_row(tokens), sampling, len(tokens), tokens, len(prompt)))
    return tokens


SAMPLINGS = [
    Sampling(),
    Sampling(repetition_penalty=1.5, presence_penalty=0.7, frequency_penalty=0.3),
    coupled(5),
    coupled(6, temperature=0.8, top_k=4, top_p=0.9, min_p=0.02),
    coupled(7, repetition_penalty=1.4, presence_penalty=1.0, frequency_penalty=0.5, logit_bias=((3, 1.0),)),
]


def rows_behind(tokens: list[int], hints: Sequence[int]) -> NDArray[np.float32]:
    return np.stack([toy_row([*tokens, *hints[:i]]) for i in range(len(hints) + 1)])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SAMPLINGS),
    st.lists(st.integers(0, 7), min_size=1, max_size=4),
    st.lists(st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=5), max_size=20),
)
def test_the_text_is_the_same_whatever_is_hinted(
    sampling: Sampling, prompt: list[int], schedule: list[list[int | None]]
) -> None:
    """None stands for a right hint, so that acceptance, rejection and mixtures all come up."""
    length = 14
    want = plain_text(sampling, prompt, length + 6)
    tokens, steps = list(prompt), iter(schedule)
    while len(tokens) < len(prompt) + length:
        wish = next(steps, [])
        ids = [want[len(tokens) + i] if hint is None else hint for i, hint in enumerate(wish)]
        verdict = verify(rows_behind(tokens, ids), [Hint(i) for i in ids], sampling, tokens, len(prompt))
        right = 0
        while right < len(ids) and ids[right] == want[len(tokens) + right]:
            right += 1
        assert verdict.accepted == right
        assert len(verdict.tokens) == right + 1
        tokens.extend(verdict.tokens)
        assert tokens == want[: len(tokens)]


def test_greedy_accepts_exactly_the_argmax_prefix() -> None:
    rows = np.eye(5, dtype=np.float32)[[3, 1, 4, 0]]
    for hints, accepted in (([3, 1, 4], 3), ([3, 1, 2], 2), ([3, 0, 4], 1), ([0, 1, 4], 0)):
        verdict = verify(rows, [Hint(h) for h in hints], Sampling(), [9], 1)
        assert verdict == Verdict((3, 1, 4, 0)[: accepted + 1], accepted)
    assert verify(rows[:1], [], Sampling(), [9], 1) == Verdict((3,), 0)


def test_greedy_and_coupled_do_not_look_at_q() -> None:
    q = DraftDistribution((1, 2), (255, 1))
    logits = logits_of(P)
    for sampling in (Sampling(), coupled(4)):
        token = choose(logits, sampling, 1, [0], 1)
        for hint in range(4):
            assert judge(logits, Hint(hint, q), sampling, [0], 1) == (token, token == hint)


# --- the oracle's measures


def test_the_gap_is_the_distance_to_the_choice() -> None:
    logits = np.array([1.0, 3.5, 3.0, -2.0], np.float32)
    assert [agreement_gap(logits, Sampling(), 0, t, [], 0) for t in range(4)] == [2.5, 0, 0.5, 5.5]
    biased = Sampling(logit_bias=((2, 1.0),))
    assert agreement_gap(logits, biased, 0, 1, [], 0) == 0.5
    for seed in range(50):
        s = coupled(seed, temperature=0.6, top_k=3)
        gaps = [agreement_gap(logits, s, 9, t, [0] * 9, 1) for t in range(4)]
        token = choose(logits, s, 9, [0] * 9, 1)
        assert gaps[token] == 0
        assert min(gaps) == 0
        assert math.isinf(gaps[3]), "top-k dropped it"
        # Lifting a token by more than its gap makes it the choice, by less does not.
        for other in {0, 1, 2} - {token}:
            for lift, chosen in ((gaps[other] + 0.01, True), (gaps[other] - 0.01, False)):
                moved = logits.copy()
                moved[other] += lift
                assert (choose(moved, coupled(seed, temperature=0.6), 9, [0] * 9, 1) == other) is chosen


def test_loosening_moves_every_cut_both_ways() -> None:
    given_, wide, narrow = loosened(coupled(3, temperature=0.5, top_p=0.9, min_p=0.1, top_k=10), 0.25)
    factor = math.exp(0.5)
    assert given_ == coupled(3, temperature=0.5, top_p=0.9, min_p=0.1, top_k=10)
    assert (wide.top_k, narrow.top_k) == (11, 9)
    assert wide.top_p == pytest.approx(1 - 0.1 / factor)
    assert narrow.top_p == pytest.approx(1 - 0.1 * factor)
    assert wide.min_p == pytest.approx(0.1 / factor)
    assert narrow.min_p == pytest.approx(0.1 * factor)
    assert {s.seed for s in (wide, narrow)} == {3}
    assert [s.top_k for s in loosened(coupled(0, top_k=1), 0.1)] == [1, 2, 1]
    assert min(s.top_p for s in loosened(coupled(0, top_p=0.05), 5.0)) > 0


def test_nothing_to_loosen_without_cuts() -> None:
    for sampling in (Sampling(top_k=5), coupled(0), rejection(0)):
        assert loosened(sampling, 0.5) == (sampling,)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.3]))
def test_loosening_covers_whatever_moved_logits_can_cut(seed: int, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, 12).astype(np.float32)
    moved = logits + rng.uniform(-tolerance / 2, tolerance / 2, 12).astype(np.float32)
    for cut in ({"top_p": 0.8}, {"min_p": 0.1}):
        s = coupled(seed, temperature=0.9, **cut)
        wide = shape(moved, loosened(s, tolerance)[1]).ids
        assert set(shape(logits, s).ids[:1].tolist()) <= set(wide.tolist())
        if "min_p" in cut:
            assert set(shape(logits, s).ids.tolist()) <= set(wide.tolist())


def test_a_low_temperature_can_be_loosened() -> None:
    for sampling in loosened(coupled(0, temperature=0.001, top_p=0.9, min_p=0.1), 1.0):
        assert shape(np.array([1.0, 2.0], np.float32), sampling).probs.sum() == pytest.approx(1)


# --- settings


@pytest.mark.parametrize(
    ("mode", "temperature", "rule"),
    [
        ("exact", 0.0, Rule.GREEDY),
        ("exact", 0.8, Rule.COUPLED),
        ("greedy", 0.0, Rule.GREEDY),
        ("coupled", 0.8, Rule.COUPLED),
        ("coupled", 0.0, Rule.COUPLED),
        ("rejection", 0.8, Rule.REJECTION),
    ],
)
def test_a_mode_gives_a_rule(mode: str, temperature: float, rule: Rule) -> None:
    sampling = Sampling.of(mode, temperature, seed=4, top_k=3)
    assert sampling == Sampling(rule, 4, temperature, 3)
    assert Sampling.of() == Sampling()


def test_unknown_and_contradicting_modes_are_refused() -> None:
    with pytest.raises(BadRequest, match="'confident' is not known"):
        Sampling.of("confident")
    with pytest.raises(BadRequest, match="greedy means temperature 0"):
        Sampling.of("greedy", 0.5)


@given(
    st.builds(
        Sampling,
        rule=st.sampled_from([Rule.COUPLED, Rule.REJECTION]),
        seed=st.integers(0, (1 << 64) - 1),
        temperature=st.floats(0, 100),
        top_k=st.integers(0, 1 << 24),
        top_p=st.floats(0, 1, exclude_min=True),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(0.01, 100),
        presence_penalty=st.floats(-100, 100),
        frequency_penalty=st.floats(-100, 100),
        logit_bias=st.lists(st.tuples(st.integers(0, (1 << 24) - 1), st.floats(-1000, 1000)), max_size=3).map(
            tuple
        ),
    )
)
def test_settings_survive_their_map(sampling: Sampling) -> None:
    sent = sampling.to_map()
    assert Sampling.from_map(sent) == sampling
    assert type(sent["rule"]) is str
    # Arrays come back from msgpack and JSON as lists.
    as_lists = sent | (
        {"logit_bias": [list(pair) for pair in sent["logit_bias"]]} if "logit_bias" in sent else {}
    )
    assert Sampling.from_map(as_lists) == sampling


def test_the_map_holds_what_differs_from_the_defaults() -> None:
    assert Sampling().to_map() == {"rule": "greedy"}
    assert coupled(0, top_k=4).to_map() == {"rule": "coupled", "temperature": 1.0, "top_k": 4}
    assert Sampling.from_map({}) == Sampling()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 1 << 64),
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.nan),
        ("presence_penalty", 101),
        ("frequency_penalty", -101),
        ("logit_bias", [[-1, 0.0]]),
        ("logit_bias", [[1 << 24, 0.0]]),
        ("logit_bias", [[1, 1001.0]]),
        ("logit_bias", [[1, math.nan]]),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=f"^{name}"):
        Sampling.from_map({"rule": "coupled", name: value})


def test_unknown_settings_are_refused_by_name() -> None:
    with pytest.raises(BadRequest, match="unknown sampling setting beams, topk; known: rule, seed"):
        Sampling.from_map({"topk": 1, "beams": 2})


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "best"},
        {"rule": ["greedy"]},
        {"seed": "x"},
        {"temperature": "hot"},
        {"temperature": None},
        {"logit_bias": 5},
        {"logit_bias": [[1]]},
        {"logit_bias": [["a", 1.0]]},
        {"top_k": [1]},
        {"seed": math.nan},
    ],
)
def test_values_of_the_wrong_kind_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        Sampling.from_map(settings)


@pytest.mark.parametrize(
    "settings", [{"seed": math.inf}, {"top_k": math.inf}, {"logit_bias": [[math.inf, 1.0]]}], ids=str
)
def test_infinite_integers_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        Sampling.from_map(settings)


@pytest.mark.parametrize("name", ["temperature", "top_p", "seed"])
def test_values_of_the_wrong_kind_are_refused_by_name(name: str) -> None:
    with pytest.raises(BadRequest, match=name):
        Sampling.from_map({"rule": "coupled", name: "hot"})


@pytest.mark.parametrize("name", ["seed", "top_k"])
@pytest.mark.parametrize("value", [1.0, True, "1", None], ids=repr)
def test_whole_numbers_are_asked_for_by_name(name: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=f"^{name} must be a whole number"):
        Sampling.from_map({"rule": "coupled", name: value})
