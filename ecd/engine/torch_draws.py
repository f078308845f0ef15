"""Drawing tokens from rows of logits in torch: temperature, cuts, noise, the coupled and the rejection rule.

As `ecd.sampling` does it, with float64 where that has float64. Knows rows, each with its settings, position
and at most one hint; nothing of sessions, penalties or engines.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecd.sampling import DraftDistribution, Hint, Noise, Sampling, noise_key

# What a row needs at the worst moment, which is the hash or the search of a nucleus: five float64 or int64
# numbers for each logit.
BYTES_PER_LOGIT = 5 * 8

# A nucleus nearly always lies in its row's first thousand; sorting a whole vocabulary costs far more.
_NUCLEUS_HEAD = 1024

# SplitMix64's constants as int64, whose products wrap like those of uint64.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


class Draw(NamedTuple):
    """A row's settings and absolute position; `hint` only where the rejection rule has one to judge."""

    sampling: Sampling
    position: int
    hint: Hint | None


def drafted_from(hint: Hint) -> DraftDistribution:
    """What the hint was drawn from."""
    return hint.q or DraftDistribution((hint.token,), (1,))


def draw(x: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Each row's token by the coupled or the rejection rule, int64[rows]. x: float32[rows, vocabulary]."""
    everything = torch.arange(x.shape[1], device=x.device)
    few = [row for row, (sampling, _, _) in enumerate(draws) if 0 < sampling.top_k < x.shape[1]]
    if not few:
        return _draw_among(everything, x, draws)
    tokens = torch.empty(len(draws), dtype=torch.int64, device=x.device)
    rows = upload(few, x.device)
    some = [draws[row] for row in few]
    tokens[rows] = _draw_among(*_most_likely(x[rows], [sampling.top_k for sampling, _, _ in some]), some)
    if len(few) < len(draws):
        others = sorted(set(range(len(draws))) - set(few))
        rows = upload(others, x.device)
        tokens[rows] = _draw_among(everything, x[rows], [draws[row] for row in others])
    return tokens


def _most_likely(x: Tensor, top_k: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Ids, ascending, and logits of each row's `top_k` largest, both [rows, the largest top_k].

    The rest of rows with a smaller one has logits of -inf. Of equal logits the smaller ids stay.
    """
    most, counts = max(top_k), upload(top_k, x.device)[:, None]
    kept = largest(x, counts, x.topk(most).values.gather(-1, counts - 1))
    ids = kept.int().topk(most).indices.sort().values
    return ids, x.gather(-1, ids).masked_fill_(~kept.gather(-1, ids), -torch.inf)


def _draw_among(ids: Tensor, x: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The drawn ids. ids: int64[n] or int64[rows, n], ascending. x: their logits, float32[rows, n]."""
    weights = _shape(x, [sampling for sampling, _, _ in draws])
    hints = [-1 if hint is None else hint.token for _, _, hint in draws]
    accepted = None
    if any(hint >= 0 for hint in hints):
        accepted, weights = _judge(ids, weights, draws)
    keys = [noise_key(sampling.seed, position, Noise.TARGET) for sampling, position, _ in draws]
    # The race's largest -E_i / w_i, where a weight of 0 gives -inf.
    winners = _uniforms(keys, ids).log_().div_(weights).argmax(-1, keepdim=True)
    tokens = ids.expand_as(weights).gather(-1, winners)[:, 0]
    return tokens if accepted is None else torch.where(accepted, upload(hints, x.device), tokens)


def _judge(ids: Tensor, p: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """Which hints the rejection rule accepts, bool[rows], and what to draw from where it does not.

    Rows without a hint accept nothing and keep their p.
    """
    shipped = [None if hint is None else drafted_from(hint) for _, _, hint in draws]
    # In column 0 the hint, then what it was drawn from; the rest is empty.
    tokens = np.full((len(draws), 1 + max(len(q.ids) for q in shipped if q)), -1)
    chances = np.zeros(tokens.shape)
    for row, ((_, _, hint), q) in enumerate(zip(draws, shipped, strict=True)):
        if hint is not None and q is not None:
            tokens[row, : 1 + len(q.ids)] = (hint.token, *q.ids)
            chances[row, 1 : 1 + len(q.ids)] = np.array(q.weights) / sum(q.weights)
    chances[:, 0] = np.where(tokens[:, 1:] == tokens[:, :1], chances[:, 1:], 0).sum(-1)

    wanted, chance = upload(tokens, p.device), upload(chances, p.device, torch.float64)
    columns = torch.searchsorted(ids, wanted).clamp_(max=p.shape[1] - 1)
    present = ids.expand_as(p).gather(-1, columns) == wanted
    keys = [noise_key(sampling.seed, position, Noise.ACCEPT) for sampling, position, _ in draws]
    u = _uniforms(keys, torch.zeros(1, dtype=torch.int64, device=p.device))[:, 0]
    p_hint = p.gather(-1, columns[:, :1])[:, 0] * present[:, 0]
    accepted = (chance[:, 0] > 0) & (u * chance[:, 0] < p_hint)

    q_here = torch.zeros_like(p).scatter_add_(-1, columns[:, 1:], (chance * present)[:, 1:])
    residual = q_here.neg_().add_(p).clamp_(min=0.0)
    return accepted, torch.where(residual.any(-1, keepdim=True), residual, p)


def _shape(x: Tensor, settings: Sequence[Sampling]) -> Tensor:
    """The distributions of `sampling.shape` among what top-k left, float64[rows, n], 0 where dropped."""
    weights = x.double()
    weights -= weights.amax(-1, keepdim=True)
    weights /= column([s.temperature for s in settings], x.device)
    weights.exp_()
    rows = [row for row, s in enumerate(settings) if s.top_p < 1]
    if rows:
        top_p = column([settings[row].top_p for row in rows], x.device)
        _keep_nucleus_(weights, upload(rows, x.device), top_p, _NUCLEUS_HEAD)
    if any(s.min_p for s in settings):
        weights.masked_fill_(weights < column([s.min_p for s in settings], x.device), 0.0)
    weights /= weights.sum(-1, keepdim=True)
    return weights


def _keep_nucleus_(weights: Tensor, rows: Tensor, top_p: Tensor, head: int) -> None:
    """Drops what is outside the nucleus; only where that is larger than `head` is the whole row sorted."""
    part = weights[rows]
    needed = top_p * part.sum(-1, keepdim=True)
    head = min(head, part.shape[1])
    values = part.topk(head).values
    mass = values.cumsum(-1)
    counts = ((mass < needed).sum(-1, keepdim=True) + 1).clamp_(max=head)
    kept = largest(part, counts, values.gather(-1, counts - 1))
    if head == part.shape[1]:
        weights[rows] = part.masked_fill_(~kept, 0.0)
        return
    wider = mass[:, -1:] < needed
    weights[rows] = part.masked_fill_(~(kept | wider), 0.0)
    wide = wider[:, 0].nonzero()[:, 0]
    if len(wide):
        _keep_nucleus_(weights, rows[wide], top_p[wide], part.shape[1])


def largest(values: Tensor, counts: Tensor, least: Tensor) -> Tensor:
    """Which of each row's values are its `counts` largest, of equal ones those with the smaller index.

    values: [rows, n]. counts: int64[rows, 1]. least: [rows, 1], the smallest of the row's `counts` largest.
    """
    above, equal = values > least, values == least
    room = counts - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room))


def _uniforms(keys: Sequence[int], ids: Tensor) -> Tensor:
    """`sampling.uniforms` of the ids for each key, float64[keys, n]. ids: int64[n] or int64[keys, n]."""
    key = upload(np.array(keys, dtype=np.uint64).view(np.int64), ids.device)
    x = key[:, None] + ids * _GOLDEN
    x ^= _shifted(x, 30)
    x *= _MIX_1
    x ^= _shifted(x, 27)
    x *= _MIX_2
    x ^= _shifted(x, 31)
    return _shifted(x, 12).double().add_(0.5).mul_(2.0**-52)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own copies the sign of an int64."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def upload(
    values: Sequence[Any] | NDArray[Any], device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """The values on the device, without waiting for what that has still to do."""
    return torch.as_tensor(values, dtype=dtype).to(device, non_blocking=True)


def column(values: Sequence[float], device: torch.device) -> Tensor:
    """One float64 a row, [rows, 1]."""
    return upload(values, device, torch.float64)[:, None]
