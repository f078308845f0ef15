"""How many hints of each session a step verifies.

Pure: what steps cost is learned from the times of past ones, what hints are worth from the verdicts on past
ones, and the counts are those that promise most committed tokens per second. Hints are known here as the
chance that each is accepted; sessions, tokens and engines are not known at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecd.decayed_rate import DecayedRate

Floats = NDArray[np.float64]

# The curve has a knot at each power of two up to 4096 tokens in a batch.
_KNOTS = 13
# Standard deviations of natural logarithms: of one measurement, and of what is not known before the first
# one: the time of one token, the step from one knot to the next, the power of the number of passes.
_NOISE, _LEVEL, _RISE, _SPLIT = 0.1, 10.0, 0.5, 0.5
# What is expected of that step: optimistic, 16 tokens cost 1.8 times one.
_EXPECTED_RISE = 0.15
# Variance that a step adds to each. With _NOISE the first makes the memory of the level about 50 steps; the
# second lets what has not been seen for a hundred steps be doubted.
_LEVEL_DRIFT, _RISE_DRIFT, _SPLIT_DRIFT = 1.6e-5, 1e-4, 1e-4
# A step that was slower than expected by more standard deviations counts as one that was slower by so many.
_CLIP = 3.0
# What such a step adds to the variance: if the next is as slow, it is believed more.
_JUMP = 0.02
# Tokens in a batch that may be tried before any was measured.
_FIRST_TOKENS = 32
# Steps in a row that all verified hints, or none although there were some, until the other is tried: none at
# first; either, when the choice has changed lately; at most.
_TRY_FIRST, _TRY_CHANGED, _TRY_LAST = 4, 128, 1024

# Of steps that took as long as expected only one in so many is learned from, once so many were.
_OF_EXPECTED, _SETTLED = 4, 64
# Batches whose times are kept as plain numbers.
_TABLE = np.arange(1.0, 65.0)

_RANK = np.arange(float(_KNOTS))
# Covariance of a random walk over the knots.
_WALK: Floats = np.minimum.outer(_RANK, _RANK)


def _covariance(level: float, rise: float, split: float) -> Floats:
    """Of the state: knots that share a level and walk away from each other, and the power of passes."""
    out = np.zeros((_KNOTS + 1, _KNOTS + 1))
    out[:_KNOTS, :_KNOTS] = level + rise * _WALK
    out[_KNOTS, _KNOTS] = split
    return out


_LEVEL_ONLY = _covariance(1.0, 0.0, 0.0)
_STEP_DRIFT = _covariance(_LEVEL_DRIFT, _RISE_DRIFT, _SPLIT_DRIFT)


class StepCost:
    """Seconds of a step by what is in its batch: curve(tokens) * passes ** power.

    `tokens` are those of all sessions. `passes` is the number of different counts among the sessions:
    llama.cpp cuts a batch into passes of equal counts, other engines do not, and the power comes out near 0.
    The curve is linear between its knots in logarithms of both. A Kalman filter (Kalman 1960; recursive least
    squares with a model of the drift) follows the logarithms: all knots share a level, which drifts most, so
    that a machine that has become slower is slower everywhere.
    """

    def __init__(self) -> None:
        self.measured = 0
        self._largest = 0
        self._state = np.append(_EXPECTED_RISE * _RANK, 0.0)
        self._variance = _covariance(_LEVEL**2, _RISE**2, _SPLIT**2)
        self._mean = self._hoped = self._state
        self._tables: tuple[list[float], list[float]] = ([], [])
        self._as_expected = 0

    def learn(self, tokens: int, passes: int, seconds: float) -> None:
        """A step with so many tokens, in `passes` different counts, took so long."""
        if tokens < 1 or passes < 1 or seconds <= 0 or not math.isfinite(seconds):
            return
        if self._is_no_news(tokens, passes, seconds):
            return
        x, p = self._state, self._variance
        p += _STEP_DRIFT
        h = np.zeros(_KNOTS + 1)
        at = min(math.log2(tokens), _KNOTS - 1.0)
        low = min(int(at), _KNOTS - 2)
        h[low], h[low + 1], h[_KNOTS] = 1 - (at - low), at - low, math.log(passes)
        error = math.log(seconds) - float(h @ x)
        variance = float(h @ p @ h) + _NOISE**2
        bound = _CLIP * math.sqrt(variance)
        if error < -bound:
            # No step is fast by accident, so what was believed of this kind of step was wrong.
            p += error**2 * _surprise(h)
            variance = float(h @ p @ h) + _NOISE**2
        ph = p @ h
        x += ph * (min(bound, error) / variance)
        p -= np.outer(ph, ph) / variance
        if error < -bound:
            # Nor do fewer tokens take longer.
            x[:low] = np.minimum(x[:low], float(h[:_KNOTS] @ x[:_KNOTS]))
        elif error > bound:
            p += _JUMP * _surprise(h)
        self.measured += 1
        self._largest = max(self._largest, tokens)
        self._mean = _possible(x)
        self._hoped = _possible(x - np.sqrt(p.diagonal()))
        self._tables = (_time(self._mean, _TABLE, 1).tolist(), _time(self._hoped, _TABLE, 1).tolist())

    def _is_no_news(self, tokens: int, passes: int, seconds: float) -> bool:
        """Whether the step took as long as expected, as the last few did: most of these teach nothing."""
        if self.measured < _SETTLED or passes > 1 or tokens > len(_TABLE):
            return False
        if abs(math.log(seconds / self._tables[0][tokens - 1])) > _NOISE:
            return False
        self._as_expected += 1
        return self._as_expected % _OF_EXPECTED != 0

    def seconds(self, tokens: int, passes: int = 1) -> float:
        """Predicted time of a step; 0 before anything is measured."""
        if passes == 1 and tokens <= len(self._tables[0]):
            return self._tables[0][tokens - 1]
        return float(_time(self._mean, tokens, passes)) if self.measured else 0.0

    def hoped_alone(self, tokens: int) -> float:
        """`hoped` for one session, whose tokens are few: plain numbers are quicker than arrays."""
        if tokens <= len(self._tables[1]):
            return self._tables[1][tokens - 1]
        return float(_time(self._hoped, tokens, 1))

    def hoped(self, tokens: Floats, passes: Floats | float) -> Floats:
        """The time of steps that is to be hoped for, one standard deviation less than predicted.

        Who chooses by it tries what is not known well and may be cheap (Lai and Robbins 1985). Element by
        element; in no known unit before anything is measured.
        """
        return np.asarray(_time(self._hoped, tokens, passes))

    @property
    def passes_are_free(self) -> bool:
        """Whether it is to be hoped that steps take no longer for the passes that they are cut into."""
        return not self._hoped[_KNOTS]

    def most_tokens(self, sessions: int) -> int:
        """The largest batch to try: at most twice what is known."""
        return max(_FIRST_TOKENS, 2 * self._largest, 2 * sessions)


def _surprise(h: Floats) -> Floats:
    """Covariance of what a surprise may mean: the level has changed, or the cost of this kind of step has.

    The same in both directions, or a load that comes and goes would make what is not measured drift away.
    """
    return 0.5 * (_LEVEL_ONLY + np.outer(h, h))


def _possible(state: Floats) -> Floats:
    """More tokens or passes never take less time, whatever the noise says."""
    return np.append(np.maximum.accumulate(state[:_KNOTS]), max(0.0, state[_KNOTS]))


def _time(state: Floats, tokens: Any, passes: Any) -> Any:
    return np.exp(np.interp(np.log2(tokens), _RANK, state[:_KNOTS]) + state[_KNOTS] * np.log(passes))


class Calibration:
    """What one session's claims are worth: the chance of acceptance by what the edge says it is.

    Counts of judged and accepted hints by bucket of claimed confidence, with the claim as the prior. They
    fade with the hints judged and, slowly, with every step: so claims that were found false are tried again
    now and then.
    """

    BUCKETS = 8
    PRIOR = 4.0
    MEMORY_JUDGED = 200.0
    MEMORY_STEPS = 500.0

    def __init__(self) -> None:
        self._rates = [DecayedRate(self.MEMORY_JUDGED) for _ in range(self.BUCKETS)]
        # A bucket fades when it is looked at: `_faded` is the step up to which each has.
        self._steps, self._faded = 0, [0] * self.BUCKETS

    def chances(self, claims: Sequence[float]) -> list[float]:
        """Chance that each hint is accepted if those before it are, from claims in [0, 1]."""
        return [self._rate(claim).estimate(claim, self.PRIOR) for claim in claims]

    def learn(self, claims: Sequence[float], accepted: int) -> None:
        """A step looked at hints with these claims and accepted the first so many of them."""
        self._steps += 1
        # What stands behind a rejected hint was not judged.
        for index, claim in enumerate(claims[: accepted + 1]):
            self._rate(claim).add(index < accepted)

    def _rate(self, claim: float) -> DecayedRate:
        bucket = int(claim * (self.BUCKETS - 1e-9))
        rate = self._rates[bucket]
        if steps := self._steps - self._faded[bucket]:
            rate.keep((1 - 1 / self.MEMORY_STEPS) ** steps)
            self._faded[bucket] = self._steps
        return rate


@dataclass(frozen=True, slots=True)
class Hinted:
    """One session's part in a choice: the chance of each of its hints if those before it are accepted.

    `all_of_them`: it wants fewest forwards, whatever they cost. It gets that where all in the step want it.
    """

    chances: Sequence[float]
    all_of_them: bool = False


def best_counts(sessions: Sequence[Hinted], cost: StepCost, at_most: int, at_least: int = 0) -> list[int]:
    """Hints to verify of each session, so that expected committed tokens per second are most.

    At most `at_most` of each and at least `at_least` in all, as far as there are any. Where every session
    wants all of its hints verified that is done; one alone would have the others pay for its fewer forwards.
    A session with k hints commits 1 + c1 + c1 c2 + ... + c1 ... ck tokens (Leviathan et al. 2023, section
    3.1, with a chance for each). Looked at are: the m most probable hints of all, for each m, which is best
    when passes cost nothing; and k hints of the q sessions where these are worth most, for each k and q,
    which takes two passes at most.
    """
    if all(s.all_of_them for s in sessions):
        return [len(s.chances) for s in sessions]
    if len(sessions) == 1:
        return [_best_alone(sessions[0], cost, at_most, at_least)]
    counts = [0] * len(sessions)
    base = len(sessions)
    # gains[i, j]: tokens that hint j of the i-th session that has any adds; each row falls, so any best m
    # begin each row.
    hinted = [i for i, s in enumerate(sessions) if s.chances]
    room = cost.most_tokens(base) - base
    if not hinted or at_most < 1 or room < 1:
        return counts
    width = min(at_most, max(len(sessions[i].chances) for i in hinted))
    gains = np.zeros((len(hinted), width))
    for row, i in enumerate(hinted):
        chances = sessions[i].chances[:width]
        gains[row, : len(chances)] = chances
    np.cumprod(gains, axis=1, out=gains)

    # Ragged: hints in the order of what they add.
    order = np.argsort(-gains, axis=None, kind="stable")
    order = order[: min(room, int(np.count_nonzero(gains)))]
    free = cost.passes_are_free
    passes: Floats | float = 1.0 if free else _passes(order // width, len(hinted), base - len(hinted))
    ragged = (base + np.concatenate(([0.0], np.cumsum(gains.flat[order])))) / cost.hoped(
        base + np.arange(len(order) + 1.0), passes
    )
    ragged[:at_least] = 0.0
    best = int(ragged.argmax())
    for row in (order[:best] // width).tolist():
        counts[hinted[row]] += 1
    if free or len(hinted) == 1:
        return counts

    # Level: k hints of the q sessions where these are worth most.
    sums = np.where(gains > 0, np.cumsum(gains, axis=1), -np.inf)
    ranked = np.argsort(-sums, axis=0, kind="stable")
    depth, chosen = np.arange(1.0, width + 1), np.arange(1.0, len(hinted) + 1)[:, None]
    size = chosen * depth
    passes = np.broadcast_to(np.where(chosen < base, 2.0, 1.0), size.shape)
    level = (base + np.cumsum(np.take_along_axis(sums, ranked, axis=0), axis=0)) / cost.hoped(
        base + size, passes
    )
    level[(size > room) | (size < at_least)] = -np.inf
    q, k = np.unravel_index(int(level.argmax()), level.shape)

    if level[q, k] > ragged[best]:
        counts = [0] * base
        for row in ranked[: q + 1, k]:
            counts[hinted[row]] = int(k) + 1
    return counts


def _best_alone(session: Hinted, cost: StepCost, at_most: int, at_least: int) -> int:
    """`best_counts` of one session."""
    most = min(len(session.chances), at_most, cost.most_tokens(1) - 1)
    best, best_rate, expected, reached = 0, 0.0, 1.0, 1.0
    for count in range(most + 1):
        if count:
            reached *= session.chances[count - 1]
            expected += reached
        rate = expected / cost.hoped_alone(count + 1)
        if rate > best_rate and count >= min(at_least, most):
            best, best_rate = count, rate
    return best


def _passes(rows: NDArray[np.int64], sessions: int, others: int) -> Floats:
    """Different token counts among sessions before each hint is dealt to its row, and after the last.

    `others` are sessions that get no hint.
    """
    tokens = [1] * sessions
    having = {1: sessions + others}
    out = np.empty(len(rows) + 1)
    out[0] = kinds = 1
    for index, row in enumerate(rows.tolist(), 1):
        old = tokens[row]
        tokens[row] = old + 1
        having[old] -= 1
        now = having.get(old + 1, 0)
        kinds += (not now) - (not having[old])
        having[old + 1] = now + 1
        out[index] = kinds
    return out


@dataclass(slots=True)
class Depth:
    """The choice of step after step; `at_most` hints of each session.

    When step after step verified hints, or none although there were some, the other is tried once, none at
    all or a single one: a cost that has changed or was never known is found out so. Each such try makes the
    next one rarer.
    """

    at_most: int
    cost: StepCost = field(default_factory=StepCost)
    _verifying: bool = True
    _in_a_row: int = 0
    _interval: int = _TRY_FIRST

    def choose(self, sessions: Sequence[Hinted]) -> list[int]:
        """How many hints of each session to verify in the step that comes now."""
        counts = best_counts(sessions, self.cost, self.at_most)
        strict = all(s.all_of_them for s in sessions)
        if not self.at_most or strict or not any(s.chances for s in sessions):
            if self._verifying:
                # A step without hints has come by itself.
                self._in_a_row = 0
            return counts
        verifying = any(counts)
        if verifying != self._verifying:
            self._verifying, self._in_a_row = verifying, 0
            self._interval = min(self._interval, _TRY_CHANGED)
        self._in_a_row += 1
        # Waste is a step that tries a hint; one without hints loses little, and without it nothing is to
        # compare.
        if self._in_a_row < (self._interval if verifying else max(self._interval, _TRY_CHANGED)):
            return counts
        self._in_a_row, self._interval = 0, min(_TRY_LAST, 2 * self._interval)
        if verifying:
            return best_counts(sessions, self.cost, 0)
        return best_counts(sessions, self.cost, 1, at_least=1)
