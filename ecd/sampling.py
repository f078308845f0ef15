"""How a token is chosen: shaping, and the greedy, coupled and rejection rules.

Pure numpy, used by both daemons and by the oracle. Knows nothing of engines, sessions or the wire: logits and
hints come in, token ids go out, and all randomness is a hash of (seed, position, token id, purpose).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from ecd.errors import BadRequest

Logits = NDArray[np.float32]

# As many as an array of a frame has room for: a longer one would cost its sender the connection.
MAX_BIASES = 4096

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Rule(StrEnum):
    """Which rule turns the target's distribution and the hints into committed tokens."""

    GREEDY = "greedy"
    COUPLED = "coupled"
    REJECTION = "rejection"


class Noise(IntEnum):
    """What a random number is for. Numbers for different purposes are independent of one another."""

    TARGET = 1
    DRAFT = 2
    ACCEPT = 3


@dataclass(frozen=True, slots=True)
class Sampling:
    """One request's sampling settings; the same on both sides and in the oracle.

    Raises BadRequest, naming the setting, for a value out of range.
    """

    rule: Rule = Rule.GREEDY
    seed: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        _within("seed", self.seed, 0, _MASK)
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_k", self.top_k, 0, 1 << 24)
        _within("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _within("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _within("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        if len(self.logit_bias) > MAX_BIASES:
            raise BadRequest(
                f"logit_bias: {len(self.logit_bias)} tokens are more than {MAX_BIASES}", param="logit_bias"
            )
        for token, bias in self.logit_bias:
            _within("logit_bias token id", token, 0, (1 << 24) - 1)
            _within("logit_bias", bias, -1000.0, 1000.0)
        if self.rule is Rule.GREEDY and self.temperature > 0:
            raise BadRequest(
                f"mode greedy means temperature 0, not {self.temperature}; drop one of the two",
                param="temperature",
            )

    @property
    def penalised(self) -> bool:
        """Whether the choice depends on which tokens came before, other than through the model."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def check_vocabulary(self, n_vocab: int) -> None:
        """Raises BadRequest for a bias on a token that the model does not have."""
        for token, _ in self.logit_bias:
            if token >= n_vocab:
                raise BadRequest(
                    f"logit_bias: token id {token} is not in the vocabulary of {n_vocab}", param="logit_bias"
                )

    @classmethod
    def of(cls, mode: str = "exact", temperature: float = 0.0, **settings: Any) -> "Sampling":
        """Sampling for a request's mode: `exact` is greedy at temperature 0 and coupled above it."""
        match mode:
            case "exact":
                rule = Rule.COUPLED if temperature > 0 else Rule.GREEDY
            case "greedy" | "coupled" | "rejection":
                rule = Rule(mode)
            case _:
                raise BadRequest(f"mode {mode!r} is not known; use exact, greedy, coupled or rejection")
        return cls(rule=rule, temperature=temperature, **settings)

    def to_map(self) -> dict[str, Any]:
        """The settings that differ from their defaults, as msgpack and JSON can carry them."""
        settings: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default or field.name == "rule":
                settings[field.name] = str(value) if field.name == "rule" else value
        return settings

    @classmethod
    def from_map(cls, settings: dict[str, Any]) -> "Sampling":
        """Inverse of `to_map`; raises BadRequest for a name or value that does not fit."""
        known = {field.name: field.type for field in fields(cls)}
        unknown = sorted(str(name) for name in settings if name not in known)
        if unknown:
            raise BadRequest(f"unknown sampling setting {', '.join(unknown)}; known: {', '.join(known)}")
        given = dict(settings)
        try:
            given["rule"] = Rule(given.get("rule", Rule.GREEDY))
            given["logit_bias"] = tuple(
                (int(token), float(bias)) for token, bias in given.get("logit_bias", ())
            )
            for name in ("seed", "top_k"):
                if type(given.get(name, 0)) is not int:
                    raise BadRequest(f"{name} must be a whole number, not {given[name]!r}")
            return cls(**given)
        except (TypeError, ValueError, OverflowError) as e:
            raise BadRequest(f"bad sampling settings: {e}") from None


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """`name` begins with the setting's."""
    setting = name.split()[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{name} must be a number, not {value!r}", param=setting)
    if not (low <= value <= high) or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise BadRequest(f"{name} must be in {bracket}{low:g}, {high:g}], not {value!r}", param=setting)


@dataclass(frozen=True, slots=True)
class Shaped:
    """A distribution over the ids that survived shaping: `ids` int64[n], `probs` float64[n], sum 1."""

    ids: NDArray[np.int64]
    probs: NDArray[np.float64]


def adjust(logits: Logits, sampling: Sampling, tokens: Sequence[int], prompt_len: int) -> Logits:
    """Logits after logit bias and penalties; `logits` itself when neither applies.

    The repetition penalty (Keskar et al. 2019, CTRL, section 4.1) looks at prompt and answer; the presence
    and frequency penalties (OpenAI API reference) at the answer only. `tokens` is everything before this
    position.
    """
    if not sampling.logit_bias and not sampling.penalised:
        return logits
    out = logits.copy()
    for token, bias in sampling.logit_bias:
        out[token] += bias
    if sampling.repetition_penalty != 1.0 and tokens:
        # Cut out as a list: a view would be read item by item.
        seen = np.unique(np.asarray(tokens[:], dtype=np.int64))
        x = out[seen]
        out[seen] = np.where(x > 0, x / sampling.repetition_penalty, x * sampling.repetition_penalty)
    if len(tokens) > prompt_len and (sampling.presence_penalty or sampling.frequency_penalty):
        seen, counts = np.unique(np.asarray(tokens[prompt_len:], dtype=np.int64), return_counts=True)
        out[seen] -= (sampling.presence_penalty + sampling.frequency_penalty * counts).astype(np.float32)
    return out


def shape(logits: Logits, sampling: Sampling, tokens: Sequence[int] = (), prompt_len: int = 0) -> Shaped:
    """The distribution a token is drawn from.

    In this order: logit bias, penalties, temperature, top-k, top-p (the smallest set of most likely tokens
    that holds at least top_p of the mass left by top-k), min-p (at least min_p times the most likely token's
    probability). Equal logits are ranked by token id, so that the result never depends on a sort's whim.
    """
    x = adjust(logits, sampling, tokens, prompt_len)
    if sampling.temperature == 0:
        return Shaped(np.array([int(x.argmax())]), np.ones(1))
    z = x.astype(np.float64)
    # The largest becomes 0 before the division, which then cannot overflow to two infinities.
    z = (z - z.max()) / sampling.temperature
    ids = np.arange(len(z)) if not sampling.top_k else largest(z, sampling.top_k)
    weights = np.exp(z[ids])
    if sampling.top_p < 1:
        ids, weights = _nucleus(ids, weights, sampling.top_p)
    if sampling.min_p > 0:
        kept = weights >= sampling.min_p
        ids, weights = ids[kept], weights[kept]
    return Shaped(ids, weights / weights.sum())


def largest(values: NDArray[np.floating[Any]], k: int) -> NDArray[np.int64]:
    """Indices of the k largest values, largest first, equal ones by index."""
    if k < len(values):
        kth = np.partition(values, len(values) - k)[len(values) - k]
        candidates = np.flatnonzero(values >= kth)
    else:
        candidates = np.arange(len(values))
    return candidates[np.lexsort((candidates, -values[candidates]))][:k]


def _nucleus(
    ids: NDArray[np.int64], weights: NDArray[np.float64], top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    needed = top_p * weights.sum()
    # Sorting a whole vocabulary costs more than a draft step; the nucleus nearly always lies in the first
    # thousand.
    for k in (1024, len(weights)):
        order = largest(weights, k)
        mass = np.cumsum(weights[order])
        if mass[-1] >= needed:
            break
    order = order[: int(np.searchsorted(mass, needed)) + 1]
    return ids[order], weights[order]


def _mix64(x: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014, 'Fast splittable pseudorandom number generators')."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def noise_key(seed: int, position: int, purpose: Noise) -> int:
    """The part of `uniforms`' hash that all token ids share, 64 bits."""
    key = _mix64((seed + _GOLDEN * purpose) & _MASK)
    return _mix64((key + _GOLDEN * (position + 1)) & _MASK)


def uniforms(seed: int, position: int, ids: NDArray[np.int64], purpose: Noise) -> NDArray[np.float64]:
    """One number in (0, 1) per token id: a hash of (seed, position, id, purpose), the same everywhere."""
    x = np.uint64(noise_key(seed, position, purpose)) + ids.astype(np.uint64) * np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    # 52 bits and a half: neither 0 nor, after rounding, 1 can come out.
    return ((x >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def race(
    ids: NDArray[np.int64], weights: NDArray[np.float64], seed: int, position: int, purpose: Noise
) -> int:
    """Draws an id with probability proportional to its weight: argmin of E_i / w_i with E_i ~ Exp(1).

    Two sides that race different weights with the same noise often agree (Daliri, Musco, Suresh 2024,
    'Coupling without communication and drafter-invariant speculative decoding').
    """
    with np.errstate(divide="ignore"):
        return int(ids[np.argmin(-np.log(uniforms(seed, position, ids, purpose)) / weights)])


def choose(
    logits: Logits, sampling: Sampling, position: int, tokens: Sequence[int] = (), prompt_len: int = 0
) -> int:
    """The target's own token at `position` (an index into prompt + answer), no hint considered."""
    if sampling.temperature == 0:
        return int(adjust(logits, sampling, tokens, prompt_len).argmax())
    p = shape(logits, sampling, tokens, prompt_len)
    return race(p.ids, p.probs, sampling.seed, position, Noise.TARGET)


@dataclass(frozen=True, slots=True)
class DraftDistribution:
    """q^ as it is shipped: `weights[i]` in 1..255 is proportional to the chance that `ids[i]` was drafted."""

    ids: tuple[int, ...]
    weights: tuple[int, ...]

    def as_arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids int64[n] and probabilities float64[n] summing to 1."""
        weights = np.array(self.weights, dtype=np.float64)
        return np.array(self.ids, dtype=np.int64), weights / weights.sum()


@dataclass(frozen=True, slots=True)
class Guess:
    """A drafted token and what is known of it.

    `confidence`: how sure its drafter was, in [0, 1]; it depends on the drafter's distribution and never on
    the token that was drawn from it, so that whoever decides by it leaves the rejection rule lossless.
    `second`: the runner-up, where there is one. `q`: what the token was drawn from, for the rejection rule.
    """

    token: int
    confidence: float
    drafter: str = "model"
    second: int | None = None
    q: DraftDistribution | None = None


MAX_Q_TOKENS = 32


def largest_prob(logits: Logits, temperature: float = 1.0) -> float:
    """The most likely token's probability at this temperature, above 0, whatever the request's settings."""
    below = logits - logits.max()
    return float(1 / np.exp(below if temperature == 1 else below / np.float32(temperature)).sum())


def guess(
    logits: Logits,
    sampling: Sampling,
    position: int,
    tokens: Sequence[int],
    prompt_len: int,
    confidence: Callable[[Logits], float] = largest_prob,
) -> Guess:
    """The draft's token at `position`, by the rule that makes the target most likely to agree.

    Under the rejection rule the distribution is truncated and quantised first and the token is drawn from
    what is left: the other order would not be lossless. Its runner-up would say something about the draw, so
    there is none.
    """
    sure = confidence(logits)
    if sampling.temperature == 0 and sampling.rule is not Rule.REJECTION:
        x = adjust(logits, sampling, tokens, prompt_len).copy()
        token = int(x.argmax())
        x[token] = -np.inf
        return Guess(token, sure, second=int(x.argmax()))
    p = shape(logits, sampling, tokens, prompt_len)
    if sampling.rule is Rule.REJECTION:
        q = quantise(p)
        ids, probs = q.as_arrays()
        return Guess(race(ids, probs, sampling.seed, position, Noise.DRAFT), sure, q=q)
    token = race(p.ids, p.probs, sampling.seed, position, Noise.TARGET)
    others = p.ids != token
    second = (
        race(p.ids[others], p.probs[others], sampling.seed, position, Noise.TARGET) if others.any() else None
    )
    return Guess(token, sure, second=second)


def quantise(p: Shaped) -> DraftDistribution:
    """The MAX_Q_TOKENS most likely tokens with 8-bit weights; those that round to nothing are left out."""
    order = largest(p.probs, MAX_Q_TOKENS)
    weights = np.rint(p.probs[order] / p.probs[order[0]] * 255).astype(int)
    kept = weights > 0
    return DraftDistribution(tuple(p.ids[order][kept].tolist()), tuple(weights[kept].tolist()))


@dataclass(frozen=True, slots=True)
class Hint:
    """A drafted token as the cloud sees it; `q` None means that the draft was certain (a one-hot q).

    `confidence`: the edge's estimate of the chance that it is accepted if the hints before it are.
    """

    token: int
    q: DraftDistribution | None = None
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one forward commits: `accepted` hints, then a token of the target's own."""

    tokens: tuple[int, ...]
    accepted: int


def verify(
    rows: NDArray[np.float32],
    hints: Sequence[Hint],
    sampling: Sampling,
    tokens: Sequence[int],
    prompt_len: int,
) -> Verdict:
    """Judges hints for the positions behind `tokens`.

    rows: float32[len(hints) + 1, vocabulary], the target's logits after `tokens` and after each hint. Returns
    the accepted hints and one token of the target's own.
    """
    position = len(tokens)
    committed: list[int] = []
    # Only penalties look at the tokens, and then a copy is the least of what they cost.
    context = tokens
    for row, hint in zip(rows, hints, strict=False):
        token, accepted = _judge(row, hint, sampling, position + len(committed), context, prompt_len)
        committed.append(token)
        if not accepted:
            return Verdict(tuple(committed), len(committed) - 1)
        if sampling.penalised:
            context = [*context, token]
    committed.append(choose(rows[len(hints)], sampling, position + len(committed), context, prompt_len))
    return Verdict(tuple(committed), len(hints))


def judge(
    row: Logits, hint: Hint, sampling: Sampling, context: Sequence[int], prompt_len: int
) -> tuple[int, bool]:
    """The token committed behind `context`, and whether that is the hint, accepted by the request's rule."""
    return _judge(row, hint, sampling, len(context), context, prompt_len)


def _judge(
    row: Logits, hint: Hint, sampling: Sampling, position: int, context: Sequence[int], prompt_len: int
) -> tuple[int, bool]:
    match sampling.rule:
        case Rule.GREEDY | Rule.COUPLED:
            token = choose(row, sampling, position, context, prompt_len)
            return token, token == hint.token
        case Rule.REJECTION:
            return _reject_or_accept(shape(row, sampling, context, prompt_len), hint, sampling.seed, position)
        case unreachable:
            assert_never(unreachable)


def _reject_or_accept(p: Shaped, hint: Hint, seed: int, position: int) -> tuple[int, bool]:
    """Leviathan et al. 2023, 'Fast inference from transformers via speculative decoding', algorithm 1."""
    q_ids, q_probs = (hint.q or DraftDistribution((hint.token,), (1,))).as_arrays()
    q = dict(zip(q_ids.tolist(), q_probs.tolist(), strict=True))
    here = np.flatnonzero(p.ids == hint.token)
    p_hint = float(p.probs[here[0]]) if len(here) else 0.0
    u = float(uniforms(seed, position, np.zeros(1, dtype=np.int64), Noise.ACCEPT)[0])
    # A hint outside its own q^ cannot have been drawn from it; only a broken or hostile edge sends one.
    if q.get(hint.token, 0.0) > 0 and u * q[hint.token] < p_hint:
        return hint.token, True
    residual = p.probs.copy()
    for index in np.flatnonzero(np.isin(p.ids, q_ids)):
        residual[index] = max(0.0, residual[index] - q[int(p.ids[index])])
    if not residual.any():
        residual = p.probs
    return race(p.ids, residual, seed, position, Noise.TARGET), False


def agreement_gap(
    logits: Logits, sampling: Sampling, position: int, token: int, tokens: Sequence[int], prompt_len: int
) -> float:
    """How far `token` is from being this rule's choice, in logits: 0 when it is the choice.

    Greedy: the largest logit less the token's. Coupled: the same of `logit - temperature * log E`. A token
    that truncation dropped is infinitely far, see `loosened`.
    """
    if sampling.temperature == 0:
        x = adjust(logits, sampling, tokens, prompt_len)
        return float(x.max() - x[token])
    p = shape(logits, sampling, tokens, prompt_len)
    here = np.flatnonzero(p.ids == token)
    if not len(here):
        return math.inf
    scores = np.log(p.probs) - np.log(-np.log(uniforms(sampling.seed, position, p.ids, Noise.TARGET)))
    return float((scores.max() - scores[here[0]]) * sampling.temperature)


def loosened(sampling: Sampling, tolerance: float) -> tuple[Sampling, ...]:
    """The given settings, and those whose truncation logits moved by `tolerance` could have meant.

    A tail mass or ratio r becomes at most r * e^(tolerance / temperature); top-k is widened and narrowed by
    one place.
    """
    if sampling.temperature == 0 or (sampling.top_p == 1 and sampling.min_p == 0 and sampling.top_k == 0):
        return (sampling,)
    factor = math.exp(min(700.0, tolerance / sampling.temperature))
    settings = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
    return (
        sampling,
        *(
            Sampling(
                **settings
                | {
                    "top_p": min(1.0, max(1e-9, 1 - (1 - sampling.top_p) * tail)),
                    "min_p": min(1.0, sampling.min_p * tail),
                    "top_k": max(1, sampling.top_k + step) if sampling.top_k else 0,
                }
            )
            for tail, step in ((1 / factor, 1), (factor, -1))
        ),
    )
