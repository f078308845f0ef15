"""`ecd.sampling` and `ecd.logprobs` on torch tensors: many sessions' rows at once, where the logits are.

The numpy versions are the specification: the same verdicts from the same logits, float64 where they have it.
Knows nothing of the engine that made the logits, of sessions beyond one forward, or of the wire.

Rows that take the plain argmax cost no more than that; the others are copied out and shaped in groups of
whole sessions, so that the float64 they need stays within GROUP_BYTES. The chosen ids come to the host in one
transfer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecd.engine.torch_draws import BYTES_PER_LOGIT, Draw, column, drafted_from, draw, largest, upload
from ecd.errors import EngineError
from ecd.logprobs import LOWEST
from ecd.sampling import Hint, Rule, Sampling, Verdict

# A GPU wants few launches, a CPU's caches small groups: half the time of large ones.
GROUP_BYTES = 256 << 20
CPU_GROUP_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Rows:
    """One session's rows in a forward: the target's logits after the tokens so far and after each hint.

    `position`: of the token that the first row chooses, an index into prompt + answer. `tokens`: all
    `position` tokens before it, an array where there are many; empty unless `sampling.penalised`. `logprobs`:
    how many most likely tokens are wanted beside each committed one, None for no log-probabilities. Hints and
    the ids of their q^, which are distinct, are in the vocabulary, and so is what `sampling` has a bias on.
    """

    sampling: Sampling
    position: int
    hints: Sequence[Hint] = ()
    prompt_len: int = 0
    tokens: Sequence[int] | NDArray[np.int64] = ()
    logprobs: int | None = None

    @property
    def count(self) -> int:
        """How many rows it has."""
        return len(self.hints) + 1


class _Placed(NamedTuple):
    """A session whose first row is `first` of some matrix of logits."""

    first: int
    rows: Rows

    @property
    def span(self) -> range:
        """Its rows."""
        return range(self.first, self.first + self.rows.count)


class Logprobs(NamedTuple):
    """Natural logarithms of probabilities at temperature 1, whatever the sampling settings.

    `ids` int32[rows, count + 1]: the row's own token, then the most likely ones, the likeliest first, equal
    ones by id. `logprobs` float32[rows, count + 1]: theirs. `ranks` int32[rows]: how many tokens are at least
    as likely as the own.
    """

    ids: Tensor
    logprobs: Tensor
    ranks: Tensor


def verify_rows(logits: Tensor, sessions: Sequence[Rows]) -> list[Verdict]:
    """What `ecd.sampling.verify` says of each session.

    logits: float32, float16 or bfloat16 [rows of all sessions, vocabulary], in the sessions' order; not
    changed. Raises EngineError when the rows do not add up.
    """
    placed = _place(logits, sessions)
    chosen = logits.argmax(-1)
    special = [session for session in placed if not _takes_argmax(session.rows.sampling)]
    for group in _groups(special, _rows_at_once(logits)):
        index = upload([row for session in group for row in session.span], logits.device)
        chosen[index] = _choose(logits[index].float(), _packed(group))
    tokens = chosen.tolist()
    return [_verdict(session.rows, tokens[session.first :]) for session in placed]


def token_logprobs(logits: Tensor, tokens: Tensor, count: int) -> Logprobs:
    """Those of one token in each row, and of the row's `count` most likely ones.

    logits: [rows, vocabulary], raw. tokens: int64[rows], on the same device. Rows that make no distribution
    give NaN.
    """
    size = _rows_at_once(logits)
    parts = [
        _logprobs(some.double(), own[:, None], count)
        for some, own in zip(logits.split(size), tokens.split(size), strict=True)
    ]
    return Logprobs(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _place(logits: Tensor, sessions: Sequence[Rows]) -> list[_Placed]:
    """The sessions with their first rows in `logits`; raises EngineError when the rows do not add up."""
    *firsts, total = accumulate((rows.count for rows in sessions), initial=0)
    if total != len(logits):
        raise EngineError(f"the model gave {len(logits)} rows of logits where the sessions have {total}")
    return [_Placed(first, rows) for first, rows in zip(firsts, sessions, strict=True)]


def _rows_at_once(logits: Tensor) -> int:
    """How many of its rows may be worked on in float64 at a time."""
    group_bytes = CPU_GROUP_BYTES if logits.device.type == "cpu" else GROUP_BYTES
    return max(1, group_bytes // (BYTES_PER_LOGIT * int(logits.shape[-1])))


def _takes_argmax(sampling: Sampling) -> bool:
    return sampling.temperature == 0 and not sampling.logit_bias and not sampling.penalised


def _groups(placed: Sequence[_Placed], limit: int) -> Iterator[list[_Placed]]:
    """Whole sessions with at most `limit` rows together, or a single one that has more."""
    group: list[_Placed] = []
    rows = 0
    for session in placed:
        if group and rows + session.rows.count > limit:
            yield group
            group, rows = [], 0
        group.append(session)
        rows += session.rows.count
    if group:
        yield group


def _packed(group: Sequence[_Placed]) -> list[_Placed]:
    """The same sessions when only their rows are there."""
    firsts = accumulate((session.rows.count for session in group), initial=0)
    return [_Placed(first, session.rows) for first, session in zip(firsts, group, strict=False)]


def _verdict(rows: Rows, chosen: Sequence[int]) -> Verdict:
    """The hints up to the first that was not chosen.

    A hint that the rejection rule refused has nothing left in the residual, so that the draw from that is
    never the hint again.
    """
    for index, hint in enumerate(rows.hints):
        impossible = rows.sampling.rule is Rule.REJECTION and hint.token not in drafted_from(hint).ids
        if chosen[index] != hint.token or impossible:
            return Verdict(tuple(chosen[: index + 1]), index)
    return Verdict(tuple(chosen[: rows.count]), len(rows.hints))


def _choose(x: Tensor, sessions: Sequence[_Placed]) -> Tensor:
    """Each row's token, int64[rows]. x: float32[rows, vocabulary], is overwritten."""
    _add_bias_(x, [session for session in sessions if session.rows.sampling.logit_bias])
    _penalise_(x, [session for session in sessions if session.rows.sampling.penalised])
    drawn: list[int] = []
    draws: list[Draw] = []
    for session in sessions:
        sampling, position, hints = session.rows.sampling, session.rows.position, session.rows.hints
        if sampling.temperature == 0:
            continue
        judged = hints if sampling.rule is Rule.REJECTION else [None] * len(hints)
        drawn += session.span
        draws += [Draw(sampling, position + at, hint) for at, hint in enumerate([*judged, None])]
    if len(draws) == len(x):
        return draw(x, draws)
    chosen = x.argmax(-1)
    if draws:
        index = upload(drawn, x.device)
        chosen[index] = draw(x[index], draws)
    return chosen


# --- bias and penalties


def _add_bias_(x: Tensor, sessions: Sequence[_Placed]) -> None:
    layered = [(session.span, _bias_layers(session.rows.sampling.logit_bias)) for session in sessions]
    for depth in range(max((len(layers) for _, layers in layered), default=0)):
        entries = [(span, *layers[depth]) for span, layers in layered if depth < len(layers)]
        rows = np.concatenate([np.repeat(span, len(ids)) for span, ids, _ in entries])
        ids = np.concatenate([np.tile(ids, len(span)) for span, ids, _ in entries])
        values = np.concatenate([np.tile(values, len(span)) for span, _, values in entries])
        x[upload(rows, x.device), upload(ids, x.device)] += upload(values, x.device, torch.float32)


@lru_cache(maxsize=1024)
def _bias_layers(
    logit_bias: tuple[tuple[int, float], ...],
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The bias as ids and values to add one after the other: each token at most once in each."""
    layers: list[dict[int, float]] = []
    for token, value in logit_bias:
        layer = next((layer for layer in layers if token not in layer), None)
        if layer is None:
            layers.append(layer := {})
        layer[token] = value
    return [(np.array([*layer]), np.array([*layer.values()], dtype=np.float32)) for layer in layers]


def _penalise_(x: Tensor, sessions: Sequence[_Placed]) -> None:
    """Each row's penalties for the session's tokens and the hints before the row, see `sampling.adjust`."""
    if not sessions:
        return
    prompts = torch.zeros((len(sessions), x.shape[1]), dtype=torch.bool, device=x.device)
    answers = torch.zeros((len(sessions), x.shape[1]), dtype=torch.int32, device=x.device)
    texts = [(np.asarray(rows.tokens, dtype=np.int64), rows.prompt_len) for _, rows in sessions]
    prompts[_entries([tokens[:prompt_len] for tokens, prompt_len in texts], x.device)] = True
    _count_(answers, _entries([tokens[prompt_len:] for tokens, prompt_len in texts], x.device))

    # From sessions to rows.
    index = upload([row for session in sessions for row in session.span], x.device)
    owner = upload(np.repeat(np.arange(len(sessions)), [rows.count for _, rows in sessions]), x.device)
    counts = answers[owner]
    hinted = [np.array([hint.token for hint in rows.hints], dtype=np.int64) for _, rows in sessions]
    _count_(counts, _entries([ids[:at] for ids in hinted for at in range(len(ids) + 1)], x.device))
    answered = counts > 0

    settings = [rows.sampling for _, rows in sessions]
    repetition = upload([s.repetition_penalty for s in settings], x.device, torch.float32)[owner, None]
    presence = column([s.presence_penalty for s in settings], x.device)[owner]
    frequency = column([s.frequency_penalty for s in settings], x.device)[owner]
    part = x[index]
    repeated = torch.where(part > 0, part / repetition, part * repetition)
    part = torch.where(prompts[owner] | answered, repeated, part)
    x[index] = part - (presence * answered + frequency * counts).float()


def _entries(ids: Sequence[NDArray[np.int64]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each id, where `ids[i]` belong to row i."""
    rows = np.repeat(np.arange(len(ids)), [len(each) for each in ids])
    return upload(rows, device), upload(np.concatenate(ids), device)


def _count_(counts: Tensor, where: tuple[Tensor, Tensor]) -> None:
    rows, ids = where
    ones = torch.ones(len(ids), dtype=counts.dtype, device=counts.device)
    counts.view(-1).scatter_add_(0, rows * counts.shape[1] + ids, ones)


# --- log-probabilities


def _logprobs(logits: Tensor, own: Tensor, count: int) -> Logprobs:
    x = logits - logits.amax(-1, keepdim=True)
    x -= x.exp().sum(-1, keepdim=True).log_()
    ids = torch.cat([own, _likeliest(x, count)], dim=1)
    logprobs = x.gather(-1, ids).clamp_(min=LOWEST).float()
    return Logprobs(ids.int(), logprobs, (x >= x.gather(-1, own)).sum(-1).int())


def _likeliest(x: Tensor, count: int) -> Tensor:
    """Ids of each row's `count` largest, the largest first, equal ones by id."""
    if not count:
        return torch.empty((len(x), 0), dtype=torch.int64, device=x.device)
    least = x.topk(count).values[:, -1:]
    kept = largest(x, torch.full_like(least, count, dtype=torch.int64), least)
    by_id = kept.int().topk(count).indices.sort().values
    return by_id.gather(-1, x.gather(-1, by_id).sort(descending=True, stable=True).indices)
