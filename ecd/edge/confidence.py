"""How sure the draft model is of its next token: a number in [0, 1] from its distribution alone.

Pure numpy. No strategy sees the token that was drawn, so that whoever decides by confidence leaves the
rejection rule lossless. Knows nothing of engines, thresholds or what is decided.

In the formulas z are the logits, p = softmax(z) at temperature 1 whatever the request's, and V is the size of
the vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

import numpy as np

from ecd.sampling import Logits, largest_prob

# Logits further below the largest add nothing to any sum; -inf has no place in a product.
_LOWEST = np.float32(-1e4)


class Strategy(StrEnum):
    """Formulas of confidence.

    max_prob: max p, the maximum softmax probability (Hendrycks and Gimpel 2017, 'A baseline for detecting
    misclassified and out-of-distribution examples in neural networks'). entropy: 1 - H(p) / ln V, with H the
    entropy (Shannon 1948) and ln V the most it can be. temperature: max softmax(z / T), temperature scaling;
    T is fitted on data (Guo et al. 2017, 'On calibration of modern neural networks', section 4.2). top_k_agg:
    the sum of the k largest p, the mass that top-k sampling would draw from (Fan, Lewis, Dauphin 2018,
    'Hierarchical neural story generation'). margin: the largest p less the second largest (Scheffer,
    Decomain, Wrobel 2001, 'Active hidden Markov models for information extraction'). ensemble: the mean of
    others by weight, a linear opinion pool (Stone 1961, 'The opinion pool'). none: 1 whatever the
    distribution: guesses are told apart by their drafter and place only.
    """

    MAX_PROB = "max_prob"
    ENTROPY = "entropy"
    TEMPERATURE = "temperature"
    TOP_K_AGG = "top_k_agg"
    MARGIN = "margin"
    ENSEMBLE = "ensemble"
    NONE = "none"


PURE = (Strategy.MAX_PROB, Strategy.ENTROPY, Strategy.TEMPERATURE, Strategy.TOP_K_AGG, Strategy.MARGIN)


@dataclass(frozen=True, slots=True)
class Confidence:
    """A strategy with its numbers: T of `temperature`, k of `top_k_agg`, the weights of `ensemble`.

    Weights are of the strategies in PURE, not below 0, and one of them is above.
    """

    strategy: Strategy = Strategy.MAX_PROB
    temperature: float = 1.0
    top_k: int = 5
    weights: Mapping[Strategy, float] = field(
        default_factory=lambda: {Strategy.MAX_PROB: 1.0, Strategy.ENTROPY: 1.0, Strategy.MARGIN: 1.0}
    )

    def of(self, logits: Logits) -> float:
        """The confidence in the token that follows; `logits` float32[V], as the draft model gave them."""
        match self.strategy:
            case Strategy.MAX_PROB:
                return largest_prob(logits)
            case Strategy.NONE:
                return 1.0
            case Strategy.TEMPERATURE:
                return largest_prob(logits, self.temperature)
            case Strategy.ENSEMBLE:
                every = self.all_of(logits)
                total = sum(self.weights.values())
                return _bounded(sum(every[name] * weight for name, weight in self.weights.items()) / total)
            case Strategy.ENTROPY | Strategy.TOP_K_AGG | Strategy.MARGIN:
                return self.all_of(logits)[self.strategy]
            case unreachable:
                assert_never(unreachable)

    def all_of(self, logits: Logits) -> dict[Strategy, float]:
        """Each strategy in PURE, from one pass over the distribution."""
        below = np.maximum(logits - logits.max(), _LOWEST)
        weights = np.exp(below)
        total = float(weights.sum(dtype=np.float64))
        entropy = math.log(total) - float(np.dot(weights, below)) / total
        k = min(max(2, self.top_k), len(weights))
        top = np.sort(np.partition(weights, len(weights) - k)[len(weights) - k :])[::-1].astype(np.float64)
        second = float(top[1]) if k > 1 else 0.0
        return {
            Strategy.MAX_PROB: largest_prob(logits),
            Strategy.ENTROPY: _bounded(1 - entropy / math.log(len(weights))) if len(weights) > 1 else 1.0,
            Strategy.TEMPERATURE: largest_prob(logits, self.temperature),
            Strategy.TOP_K_AGG: _bounded(float(top[: self.top_k].sum()) / total),
            Strategy.MARGIN: _bounded((float(top[0]) - second) / total),
        }


MAX_PROB = Confidence()


def _bounded(value: float) -> float:
    """Rounding may leave [0, 1] by a hair."""
    return min(1.0, max(0.0, value))
