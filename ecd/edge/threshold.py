"""From which confidence on the edge commits by itself: a fixed number, or one found for an agreement.

Pure counting. Knows audited tokens as a verdict each, and nothing of text, positions or the wire.
"""

import math
from dataclasses import dataclass

# The threshold moves on the scale of log-odds, where 0.99 and 0.999 are as far apart as 0.9 and 0.99, and
# stays between these: confidences of less or more are all alike.
LOWEST, HIGHEST = -4.0, 9.0
# Confidence from which on a token is committed before anything was audited: 0.8.
FIRST = math.log(4.0)
# The step begins at 1 and shrinks to this. A smaller one wanders less and makes up for errors later: on
# recorded answers 0.2 came nearest to what was asked for within a few hundred tokens.
LAST_STEP = 0.2


@dataclass(slots=True)
class AdaptiveThreshold:
    """Keeps the share of committed tokens that agree with the target at `agreement`, whatever is asked.

    After each audited token the threshold's log-odds move by step * (wrong - (1 - agreement)), with wrong 1
    or 0. While they stay within bounds the mean of `wrong` over n tokens therefore differs from 1 - agreement
    by no more than their range / (step * n): the errors add up to a distance that cannot grow (Gibbs and
    Candes 2021, 'Adaptive conformal inference under distribution shift', proposition 4.1; shrinking steps:
    Angelopoulos, Barber, Bates 2024, 'Online conformal prediction with decaying step sizes').
    """

    agreement: float
    audited: int = 0
    _log_odds: float = FIRST

    @property
    def value(self) -> float:
        """The confidence from which on a token is committed."""
        return 1 / (1 + math.exp(-self._log_odds))

    def audit(self, agreed: bool) -> None:
        """A committed token was compared with what the target would have said."""
        self.audited += 1
        step = max(LAST_STEP, 1 / math.sqrt(self.audited))
        moved = self._log_odds + step * ((not agreed) - (1 - self.agreement))
        self._log_odds = min(HIGHEST, max(LOWEST, moved))


class Thresholds:
    """The adaptive thresholds of one edge, by the agreement that they are for; all its answers share them.

    `audited` and `agreed` count the tokens that were compared, under fixed thresholds too.
    """

    def __init__(self) -> None:
        self.audited = 0
        self.agreed = 0
        self._adaptive: dict[float, AdaptiveThreshold] = {}

    def adaptive(self, agreement: float) -> AdaptiveThreshold:
        """The one for this agreement, which is rounded so that there are few."""
        rounded = round(agreement, 3)
        if rounded not in self._adaptive:
            self._adaptive[rounded] = AdaptiveThreshold(rounded)
        return self._adaptive[rounded]

    def audit(self, agreement: float | None, agreed: bool) -> None:
        """One more token was compared; `agreement` is its adaptive threshold's, None under a fixed one."""
        self.audited += 1
        self.agreed += agreed
        if agreement is not None:
            self.adaptive(agreement).audit(agreed)

    def told(self) -> dict[str, object]:
        """As `stats` shows it. `thresholds`: the adaptive ones by agreement."""
        return {
            "audited": self.audited,
            "agreed": self.agreed,
            "agreement": self.agreed / self.audited if self.audited else None,
            "thresholds": {f"{one.agreement:g}": one.value for one in self._adaptive.values()},
        }
