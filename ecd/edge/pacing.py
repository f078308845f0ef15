"""The pacing controller: how far to draft ahead, how long the cloud should wait, when not to draft.

Pure: numbers in, a `Pace` out. It knows what a link, a draft and a target step cost, and how long a run of
guesses stays right; it does not know tokens, frames or engines. docs/PACING.md explains every formula.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ecd.edge.survival import SESSION_MEMORY, Prior, Survival

# Drafting must promise this much, or it is not worth the heat.
WORTH_IT = 1.02
# Under `balanced` this much speed is given for fewer target forwards. How two forecasts compare is off by up
# to so much, docs/PACING.md tells where that was measured: of the loss only the rest is given knowingly.
BALANCED_LOSS, FORECAST_ERROR = 0.02, 0.01
# Under `cost` so many times the forwards of the fastest strict rounds are as good as theirs, and no step is
# to wait longer than this for its hints: text must flow.
AS_FEW, COST_WAIT_S = 1.05, 2.0
GATHERS = (1, 2, 3, 4, 6, 8, 12, 16)
# While nothing has been measured, copied text may run so far ahead: it costs nothing to find.
COPIES_AHEAD = 24
QUIET_FIRST, QUIET_LONGEST = 32, 512
# So many committed tokens a decision holds: to forecast all choices takes a millisecond.
DECIDED_FOR = 3
# What a copied guess takes.
NO_TIME_S = 1e-6
PROBE_GUESSES, PROBE_TOKENS, PROBE_AHEAD = 6, 16, 4


class Objective(StrEnum):
    """What a session is to be good at: speed, speed with an eye on cost, or few target forwards."""

    LATENCY = "latency"
    BALANCED = "balanced"
    COST = "cost"


@dataclass(frozen=True, slots=True)
class Conditions:
    """What was measured, in seconds.

    draft_s: one guess. step_s: a target forward without hints, token_s: what each hint adds to it. `sole`:
    whether no other session shares the target's forwards.
    """

    rtt_s: float
    jitter_s: float
    draft_s: float
    step_s: float
    token_s: float
    sole: bool = True

    def forward_s(self, hints: int) -> float:
        """A target forward that verifies so many hints."""
        return self.step_s + self.token_s * hints


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a pace would give."""

    tokens_per_s: float
    forwards_per_token: float


@dataclass(frozen=True, slots=True)
class Pace:
    """A decision. `ahead`: how far to draft beyond the committed text, 0: not at all; copied text may run on
    to `copies_ahead`.

    The cloud holds a step back for up to `patience_s` until `gather` hints are there. `send` is False while
    guesses are only compared with what the target says. `model` is False while only copied text is hinted.
    alternate_worth: what a hint behind an alternate is worth, where one on the main line is worth 1.
    """

    ahead: int
    gather: int = 1
    patience_s: float = 0.0
    send: bool = True
    model: bool = True
    alternate_worth: float = 0.0
    copies_ahead: int = COPIES_AHEAD
    forecast: Forecast | None = None
    plain_tokens_per_s: float | None = None


def forecast(
    conditions: Conditions, survival: Sequence[float], gather: int, patience_s: float, max_verify: int
) -> Forecast:
    """Tokens per second and forwards per token of one pace.

    A session renews itself at each fork: the cloud has just committed a token that no hint foretold, and the
    edge starts anew from it. Until the first wrong guess the cycle runs like clockwork: hint j reaches the
    cloud at RTT + draft/2 + j * draft (half a guess is thrown away at the fork), steps begin as soon as the
    last has ended or `gather` hints are there or patience is over, and one that verifies m hints commits m +
    1 tokens. So the time, tokens and forwards of a cycle whose guess J is the first wrong one are those of
    the step that commits position J, and by the renewal-reward theorem

        tokens per second = E[J] / E[time(J)],    forwards per token = E[forwards(J)] / E[J].

    survival: survival[j] is the chance that the first j guesses are all right; [0] is 1.
    """
    first = conditions.rtt_s + conditions.draft_s / 2
    time, committed, steps = 0.0, 0, 0
    tokens = seconds = forwards = 0.0
    patient = patience_s > 0
    while committed < len(survival) - 1:
        start = time
        if patient:
            wanted = first + (committed + gather) * conditions.draft_s
            start = max(time, min(wanted, time + patience_s))
        arrived = int((start - first) / conditions.draft_s + 1e-9) if start > first else 0
        there = min(arrived - committed, max_verify, len(survival) - 1 - committed)
        hints = _worth_verifying(conditions, survival, committed, there, patience_s) if there > 0 else 0
        time = start + conditions.forward_s(hints)
        steps += 1
        for position in range(committed + 1, committed + hints + 2):
            wrong = survival[position - 1] - (survival[position] if position < len(survival) else 0.0)
            tokens += wrong * position
            seconds += wrong * time
            forwards += wrong * steps
        committed += hints + 1
    left = survival[committed] if committed < len(survival) else 0.0
    tokens += left * committed
    seconds += left * time
    forwards += left * steps
    return Forecast(tokens / seconds, forwards / tokens)


def _worth_verifying(
    conditions: Conditions, survival: Sequence[float], committed: int, there: int, patience_s: float
) -> int:
    """How many of the hints that are there the cloud verifies: those that raise tokens per second."""
    if math.isinf(patience_s) or conditions.token_s <= 0:
        return there
    here = survival[committed] or 1.0
    best, best_rate, expected = 0, 1 / conditions.step_s, 1.0
    for hints in range(1, there + 1):
        expected += survival[committed + hints] / here
        rate = expected / conditions.forward_s(hints)
        if rate > best_rate:
            best, best_rate = hints, rate
    return best


def rounds_forecast(conditions: Conditions, survival: Sequence[float], k: int) -> Forecast:
    """Strict rounds of k (Leviathan et al. 2023, section 3.3, with a round trip added)."""
    expected = sum(survival[: k + 1])
    seconds = k * conditions.draft_s + conditions.rtt_s + conditions.forward_s(k)
    return Forecast(expected / seconds, 1 / expected)


def _may_wait(conditions: Conditions, gather: int, objective: Objective) -> bool:
    """Whether waiting for so many hints is to be looked at."""
    if objective is Objective.COST:
        return conditions.rtt_s + gather * conditions.draft_s <= COST_WAIT_S
    # Whoever is waited for while others go on misses a whole step.
    return conditions.sole


def _patience_s(conditions: Conditions, gather: int, objective: Objective) -> float:
    """Until so many hints can be there, with a margin; under `cost` without end."""
    if objective is Objective.COST:
        return math.inf
    return conditions.rtt_s + (gather + 1.5) * conditions.draft_s + 4 * conditions.jitter_s


# A forecast, how many hints are waited for, and for how long.
Choice = tuple[Forecast, int, float]


@functools.lru_cache(maxsize=4096)
def best_pace(
    conditions: Conditions,
    survival: tuple[float, ...],
    objective: Objective,
    max_verify: int,
    max_ahead: int,
) -> Pace:
    """The pace that serves the objective best, whether or not it beats not drafting."""
    choices: list[Choice] = [(forecast(conditions, survival, 1, 0.0, max_verify), 1, 0.0)]
    for gather in GATHERS:
        if gather <= max_verify and _may_wait(conditions, gather, objective):
            patience_s = _patience_s(conditions, gather, objective)
            overlap = not _too_slow_to_overlap(conditions, patience_s)
            made = (
                forecast(conditions, survival, gather, patience_s, max_verify)
                if overlap
                else rounds_forecast(conditions, survival, gather)
            )
            choices.append((made, gather, patience_s))
    match objective:
        case Objective.LATENCY:
            chosen = max(choices, key=lambda choice: choice[0].tokens_per_s)
            # Never waiting is the simpler half of what is equal.
            if choices[0][0].tokens_per_s >= 0.995 * chosen[0].tokens_per_s:
                chosen = choices[0]
        case Objective.BALANCED:
            fastest = max(choice[0].tokens_per_s for choice in choices)
            least = (1 - BALANCED_LOSS + FORECAST_ERROR) * fastest
            quick = [choice for choice in choices if choice[0].tokens_per_s >= least]
            chosen = min(quick, key=lambda choice: choice[0].forwards_per_token)
        case Objective.COST:
            chosen = _cheapest(conditions, survival, choices, max_verify)
    best, gather, patience_s = chosen
    return Pace(
        gather
        if _too_slow_to_overlap(conditions, patience_s)
        else _window(conditions, max_verify, max_ahead, gather),
        gather,
        patience_s,
        copies_ahead=_window(replace(conditions, draft_s=NO_TIME_S), max_verify, max_ahead, gather),
        # An alternate saves the round trip and the first guess after a fork, or a step if that takes as long.
        alternate_worth=min(1.0, (conditions.rtt_s + 1.5 * conditions.draft_s) / conditions.step_s),
        forecast=best,
        plain_tokens_per_s=1 / conditions.step_s,
    )


def _cheapest(
    conditions: Conditions, survival: Sequence[float], choices: Sequence[Choice], max_verify: int
) -> Choice:
    """Fewest forwards of what is faster than the fastest strict rounds.

    With a slow draft nothing is, or only what takes more forwards than they do. Then the fastest of those
    that take as few.
    """
    rounds = max(
        (rounds_forecast(conditions, survival, k) for k in GATHERS if k <= max_verify),
        key=lambda made: made.tokens_per_s,
        default=Forecast(0.0, 1.0),
    )
    as_few = [c for c in choices if c[0].forwards_per_token <= AS_FEW * rounds.forwards_per_token]
    quick = [c for c in as_few if c[0].tokens_per_s > WORTH_IT * rounds.tokens_per_s]
    if quick:
        return min(quick, key=lambda choice: choice[0].forwards_per_token)
    return max(as_few or choices, key=lambda choice: choice[0].tokens_per_s)


def _too_slow_to_overlap(conditions: Conditions, patience_s: float) -> bool:
    """Whether guesses behind those that the cloud waits for come too late to be of use.

    The first of them is for the token that the forward commits by itself, so that two must be made meanwhile.
    """
    return math.isinf(patience_s) and conditions.rtt_s + conditions.step_s < 2 * conditions.draft_s


def _window(conditions: Conditions, max_verify: int, max_ahead: int, gather: int) -> int:
    """As many as one forward can take, and what can be made and used up until the edge hears of it.

    With fewer the edge would stand still while the cloud verifies all it has.
    """
    hints = min(max_verify, int(conditions.step_s / conditions.draft_s) + 1)
    forward_s = conditions.forward_s(hints)
    rate = min(1 / conditions.draft_s, (hints + 1) / forward_s)
    needed = math.ceil((conditions.rtt_s + 4 * conditions.jitter_s + forward_s) * rate) + max_verify
    return max(gather, min(max_ahead, max(PROBE_AHEAD, needed)))


@dataclass(slots=True)
class Pacer:
    """One session's controller.

    Drafts while that pays, is quiet while it does not, and in between looks again by guessing without
    sending. `edge` is what all sessions of this edge have seen.
    """

    objective: Objective
    edge: Prior
    max_verify: int = 16
    session: Survival = field(default_factory=lambda: Survival(SESSION_MEMORY))
    _quiet: int = QUIET_FIRST
    _quiet_until: int = 0
    _probing_since: int | None = None
    _settled: int = 0
    _best: Pace | None = None
    _best_until: int = 0

    def at_cloud(self, max_verify: int) -> None:
        """The session is at another cloud, whose steps verify so many hints at most."""
        self.max_verify, self._best = max_verify, None

    def settle(self, place: int, right: bool) -> None:
        """A guess was compared with the committed token at its position."""
        self._settled += 1
        self.session.settle(place, right)
        self.edge.settle(place, right)

    def quiet_for(self, committed: int) -> int:
        """Tokens for which the draft model stays quiet."""
        return max(0, self._quiet_until - committed)

    def pace(self, conditions: Conditions | None, committed: int, max_ahead: int, unsure: Pace) -> Pace:
        """What to do from here on; `unsure` while nothing has been measured yet."""
        if conditions is None:
            return unsure
        best = self._best
        if best is None or committed >= self._best_until or best.ahead > max_ahead:
            best = self._best = best_pace(
                _coarse(conditions), self.session.curve(self.edge), self.objective, self.max_verify, max_ahead
            )
            self._best_until = committed + DECIDED_FOR
        assert best.forecast is not None
        assert best.plain_tokens_per_s is not None
        pays = best.forecast.tokens_per_s > WORTH_IT * best.plain_tokens_per_s
        if self.objective is Objective.COST:
            # Fewer forwards are what it is for, whatever the speed.
            pays = WORTH_IT * best.forecast.forwards_per_token < 1
        if committed < self._quiet_until:
            return self._quiet_pace(best)
        if self._probing_since is None and pays:
            return best
        if self._probing_since is None and self._quiet_until:
            self._probing_since, self._settled = committed, 0
        if self._probing_since is not None:
            if self._settled < PROBE_GUESSES and committed - self._probing_since < PROBE_TOKENS:
                return Pace(PROBE_AHEAD, send=False, plain_tokens_per_s=best.plain_tokens_per_s)
            self._probing_since = None
            if pays:
                self._quiet, self._quiet_until = QUIET_FIRST, 0
                return best
            self._quiet = min(2 * self._quiet, QUIET_LONGEST)
        self._quiet_until = committed + self._quiet
        return self._quiet_pace(best)

    @staticmethod
    def _quiet_pace(best: Pace) -> Pace:
        """Nothing but copied text."""
        ahead = best.copies_ahead
        return Pace(ahead, model=False, copies_ahead=ahead, plain_tokens_per_s=best.plain_tokens_per_s)


def _coarse(conditions: Conditions) -> Conditions:
    """Rounded to about 10 %, so that decisions can be remembered."""

    def rounded(value: float) -> float:
        return 0.0 if value < 1e-5 else math.exp(round(math.log(value) * 10) / 10)

    return Conditions(
        rounded(conditions.rtt_s),
        rounded(conditions.jitter_s),
        max(1e-4, rounded(conditions.draft_s)),
        max(1e-5, rounded(conditions.step_s)),
        rounded(conditions.token_s),
        conditions.sole,
    )
