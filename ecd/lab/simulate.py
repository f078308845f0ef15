"""One answer through a link, as pure arithmetic: what each way of drafting would give under given costs.

Owns the physics: the edge drafts a token at a time as far ahead as it may, hints and tokens travel half an
RTT, the cloud steps as its patience says, and a step costs a little more for each hint in it. Knows no
daemon, no clock and no protocol; times are milliseconds. A drafted token either is right or is not, and
nothing behind a wrong one is.
"""

import math
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

ROUNDS_K = (1, 2, 3, 4, 6, 8, 12)
WAIT_AHEAD = 16  # how far the pipelined mode drafts ahead, as the bench asks for it
MAX_AHEAD = 64
MAX_VERIFY = 16
# Most hints of a step, where the cloud chooses; of equals the first.
DEPTHS = (MAX_VERIFY, 1, 2, 3, 5, 8)


@dataclass(frozen=True, slots=True)
class Regime:
    """What the link and the two models cost.

    `draft_ms` per drafted token, `step_ms` per target step of one token, `slope` the cost of each further
    token in the step as a share of `step_ms`.
    """

    rtt_ms: float
    draft_ms: float
    step_ms: float
    slope: float

    def forward_ms(self, tokens: int) -> float:
        """A target step with so many tokens."""
        return self.step_ms * (1 + self.slope * (tokens - 1))


@dataclass(frozen=True, slots=True)
class Setting:
    """How a session is paced.

    The cloud holds a step until `gather` hints are on the board or `patience_ms` have passed since its last
    step, and verifies at most `max_verify` of them. The edge drafts at most `ahead` tokens beyond what it has
    seen committed; 0 is plain streaming from the cloud.
    """

    patience_ms: float = 0.0
    gather: int = 1
    ahead: int = MAX_AHEAD
    max_verify: int = MAX_VERIFY


PLAIN = Setting(ahead=0)
WAIT = Setting(patience_ms=math.inf, ahead=WAIT_AHEAD)


def rounds(k: int) -> Setting:
    """Synchronous speculative decoding: draft k, send, wait for the verdict, and again."""
    return Setting(math.inf, k, k, k)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One simulated answer, counted as a client sees it.

    `decode_ms` is the time from the arrival of the first tokens to that of the last, in which `decoded`
    tokens arrived.
    """

    tokens: int
    decoded: int
    decode_ms: float
    forwards: int
    drafted: int
    verified: int
    accepted: int


def draws(acceptance: float, tokens: int, seed: int) -> list[bool]:
    """Right or wrong for each position, independently right with probability `acceptance`."""
    rng = random.Random(seed)
    return [rng.random() < acceptance for _ in range(tokens)]


class _Edge:
    """Drafts from where it is; `due` is when the token in work is ready. An epoch ends with a roll-back."""

    __slots__ = ("_ahead", "_draft_ms", "_right", "drafted", "due", "epoch", "known", "position", "wrong_at")

    def __init__(self, right: Sequence[bool], draft_ms: float, ahead: int):
        self._right, self._draft_ms, self._ahead = right, draft_ms, ahead
        self.epoch = self.position = self.known = self.drafted = 0
        self.wrong_at = math.inf  # the first wrong position of this epoch
        self.due = math.inf
        self._go_on(0.0)

    def draft(self, now: float) -> tuple[int, bool, int]:
        """The hint that is ready: its position, whether it is right, its epoch."""
        position = self.position
        if not self._right[position] and position < self.wrong_at:
            self.wrong_at = position
        self.drafted += 1
        self.position += 1
        self._go_on(now)
        return position, position < self.wrong_at, self.epoch

    def see(self, now: float, committed: int) -> None:
        """Tokens came: roll back if a guess was wrong or the cloud is past us, or go on after a pause."""
        self.known = committed
        if self.wrong_at < committed or self.position < committed:
            self.epoch += 1
            self.position, self.wrong_at = committed, math.inf
            self._go_on(now)
        elif self.due == math.inf:
            self._go_on(now)

    def _go_on(self, now: float) -> None:
        may = self.position < min(self.known + self._ahead, len(self._right))
        self.due = now + self._draft_ms if may else math.inf


class _Cloud:
    """Steps when it may; `due` is the end of the running step, or when patience is over."""

    __slots__ = (
        "_board", "_epoch", "_forward_ms", "_last_step", "_setting", "_take", "_tokens", "accepted", "busy",
        "committed", "due", "forwards", "verified",
    )  # fmt: skip

    def __init__(self, tokens: int, regime: Regime, setting: Setting):
        self._tokens, self._setting = tokens, setting
        self._forward_ms = [regime.forward_ms(n + 1) for n in range(setting.max_verify + 1)]
        self._board: deque[tuple[int, bool, int]] = deque()
        self._epoch = self._take = self.committed = 0
        self.forwards = self.verified = self.accepted = 0
        self._last_step = 0.0
        self.busy = False
        self.due = math.inf
        self.consider(0.0)

    def hint(self, now: float, hint: tuple[int, bool, int]) -> None:
        """A hint arrived; stale ones are dropped, as by the board's fork rule."""
        position, right, epoch = hint
        if epoch < self._epoch:
            return
        if position >= self.committed:
            self._board.append(hint)
            self.consider(now)
        elif not right:
            self._fork(epoch)

    def consider(self, now: float) -> None:
        """Begin a step if there is reason to, or note when patience ends."""
        if self.busy:
            return
        enough = min(self._setting.gather, self._setting.ahead, self._tokens - self.committed - 1)
        patience_over = self._last_step + self._setting.patience_ms
        if self.forwards and len(self._board) < enough and now < patience_over:  # no patience for the first
            self.due = patience_over
            return
        useful = min(len(self._board), self._setting.max_verify, self._tokens - self.committed - 1)
        self._take = useful
        self.busy = True
        self.due = now + self._forward_ms[useful]

    def commit(self, now: float) -> int:
        """The end of a step: the number of tokens committed now."""
        self.busy, self._last_step = False, now
        self.forwards += 1
        self.verified += self._take
        board = self._board
        for _ in range(self._take):
            if not board[0][1]:
                break
            board.popleft()
            self.committed += 1
            self.accepted += 1
        # The target's own token: what the board says of this position may be the same, or be wrong.
        self.committed += 1
        if board:
            _, right, epoch = board.popleft()
            if not right:
                self._fork(epoch)
        return self.committed

    def _fork(self, epoch: int) -> None:
        self._epoch = epoch + 1
        self._board.clear()


def simulate(right: Sequence[bool], regime: Regime, setting: Setting) -> Outcome:
    """One answer of `len(right)` tokens, at least one; `right[i]` tells whether the i-th guess is right."""
    tokens, way_ms = len(right), regime.rtt_ms / 2
    edge, cloud = _Edge(right, regime.draft_ms, setting.ahead), _Cloud(tokens, regime, setting)
    up: deque[tuple[float, tuple[int, bool, int]]] = deque()
    down: deque[tuple[float, int]] = deque()
    first: tuple[float, int] | None = None
    while True:
        arrives = up[0][0] if up else math.inf
        lands = down[0][0] if down else math.inf
        now = min(arrives, lands, cloud.due, edge.due)
        if now == cloud.due:  # first: a hint that arrives as a step begins is too late for it
            if cloud.busy:
                down.append((now + way_ms, cloud.commit(now)))
            if cloud.committed < tokens:
                cloud.consider(now)
            else:
                cloud.due = math.inf
        elif now == arrives:
            cloud.hint(now, up.popleft()[1])
        elif now == lands:
            committed = down.popleft()[1]
            if first is None:
                first = now, committed
            if committed == tokens:
                return Outcome(
                    tokens, tokens - first[1], now - first[0], cloud.forwards, edge.drafted, cloud.verified,
                    cloud.accepted,
                )  # fmt: skip
            edge.see(now, committed)
        else:
            up.append((now + way_ms, edge.draft(now)))


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a setting gives over a set of answers. `ratio` is tokens/s over that of plain cloud streaming."""

    setting: Setting
    tokens_per_s: float
    ratio: float
    forwards_per_token: float
    wasted_per_token: float


def predict(answers: Iterable[Sequence[bool]], regime: Regime, setting: Setting) -> Prediction:
    """One setting over answers as the bench aggregates them: all tokens over all time. Needs one token."""
    outcomes = [simulate(right, regime, setting) for right in answers if len(right)]
    decode_ms = sum(outcome.decode_ms for outcome in outcomes)
    tokens = sum(outcome.tokens for outcome in outcomes)
    tokens_per_s = 1000 * sum(outcome.decoded for outcome in outcomes) / decode_ms if decode_ms else 0.0
    return Prediction(
        setting,
        tokens_per_s,
        tokens_per_s * regime.step_ms / 1000,
        sum(outcome.forwards for outcome in outcomes) / tokens,
        sum(outcome.drafted - outcome.accepted for outcome in outcomes) / tokens,
    )


def best_rounds(
    answers: Sequence[Sequence[bool]], regime: Regime, ks: Iterable[int] = ROUNDS_K
) -> Prediction:
    """Synchronous rounds with the number of drafts that is fastest here."""
    return max((predict(answers, regime, rounds(k)) for k in ks), key=lambda p: p.ratio)


def streaming_settings(regime: Regime) -> list[Setting]:
    """The settings that a controller may choose from when only speed counts, plain streaming among them."""
    gathers = (1, 2, 3, 4, 6)
    patient = [Setting(math.inf, gather) for gather in gathers]
    bounded = [Setting(share * regime.step_ms, gather) for share in (0.25, 0.5) for gather in gathers[:4]]
    return [PLAIN, Setting(), *patient, *bounded]


def best_streaming(answers: Sequence[Sequence[bool]], regime: Regime) -> Prediction:
    """What `ecd` promises: the fastest of `streaming_settings`, verifying as many hints at once as pays."""
    best = max((predict(answers, regime, s) for s in streaming_settings(regime)), key=lambda p: p.ratio)
    return predict_at_best_depth(answers, regime, best.setting)


def predict_at_best_depth(answers: Sequence[Sequence[bool]], regime: Regime, setting: Setting) -> Prediction:
    """`predict` for a cloud that verifies as many hints at once as pays, whatever the setting says."""
    depths = DEPTHS if setting.ahead else (setting.max_verify,)
    return max(
        (predict(answers, regime, replace(setting, max_verify=n)) for n in depths), key=lambda p: p.ratio
    )


def predict_modes(answers: Sequence[Sequence[bool]], regime: Regime) -> dict[str, Prediction]:
    """Each mode of the bench by name, `rounds` with its best k."""
    modes = {
        "cloud": predict(answers, regime, PLAIN),
        "rounds": best_rounds(answers, regime),
        "wait": predict(answers, regime, WAIT),
    }
    return modes | {"ecd": max([*modes.values(), best_streaming(answers, regime)], key=lambda p: p.ratio)}
