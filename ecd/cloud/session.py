"""One session in the cloud: what is committed, what may be hinted, when it stops.

Pure. Time is passed in; it does not know engines, frames or other sessions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import assert_never

from ecd.cloud.board import MAX_ALTERNATES, Board
from ecd.cloud.depth import Calibration, Hinted
from ecd.cloud.tenants import Tenant
from ecd.cloud.turn import Turn
from ecd.errors import BadRequest
from ecd.journal import Hearing, stimulus
from ecd.logprobs import TokenLogprobs, check_top
from ecd.sampling import MAX_Q_TOKENS, DraftDistribution, Hint, Rule, Sampling, Verdict
from ecd.text import TextStream, check_stop
from ecd.wire.messages import ENDLESS_US, Alternate, Commit, Draft, Finish, Open, Pace

# Even strict rounds give up on an edge that never answers, and decode one token without it.
MAX_PATIENCE_S = 30.0
# What an alternate's tokens are taken to be worth until some were judged: it carries no confidence of its
# own.
ALTERNATE_CONFIDENCE = 0.8
# Under the rejection rule each hint counts alike. What is known of a later one depends on the token that was
# drawn for an earlier one, and whether that is looked at must not.
REJECTION_CONFIDENCE = 0.7


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a session must know of the target's vocabulary; `piece` gives a token's bytes."""

    size: int
    end_of_generation: frozenset[int]
    piece: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Committed:
    """What one forward added: `accepted` of the ids were hints, out of `verified` looked at.

    `cached`, told with the first: how many of the session's tokens the engine held when it began.
    """

    base: int
    ids: tuple[int, ...]
    accepted: int
    verified: int
    finish: Finish
    logprobs: tuple[TokenLogprobs, ...] | None = None
    cached: int | None = None


@dataclass(frozen=True, slots=True)
class Audited:
    """Which of the edge's tokens from `base` on the target would have chosen too.

    `forwards`: 1 if the forward that told committed nothing, else 0.
    """

    base: int
    agreed: tuple[bool, ...]
    forwards: int


class Step(Enum):
    """What a forward of a session is for: OWN tokens, an AUDIT of the edge's, READING the text ahead."""

    OWN = auto()
    AUDIT = auto()
    READING = auto()


@dataclass(slots=True)
class Session:
    """State of one session. `tokens` is prompt and answer; `waiting_since` is the time of its last step.

    `in_step`: confidences of the hints that its step, under way or last, looks at. `text` is followed only
    for its stop strings, so there is none without them. `step`: what the step under way, or the last, is for.
    `cached`: how many of its tokens the engine held when it began, until that is told.
    """

    prompt_len: int
    tokens: list[int]
    sampling: Sampling
    max_tokens: int
    pace: Pace
    text: TextStream | None
    board: Board
    vocabulary: Vocabulary
    waiting_since: float
    logprobs: int | None = None
    fresh: bool = False
    turn: Turn = field(default_factory=Turn)
    journal: Hearing | None = None
    calibration: Calibration = field(default_factory=Calibration)
    in_step: list[float] = field(default_factory=list)
    step: Step = Step.OWN
    read: bool = False
    decoding: bool = False
    invalid_hints: int = 0
    forwards: int = 0
    verified: int = 0
    accepted: int = 0
    tenant: Tenant | None = None
    cached: int = 0

    @classmethod
    def of(cls, request: Open, vocabulary: Vocabulary, max_ahead: int, now: float) -> "Session":
        """A session from its OPEN. Raises BadRequest for what cannot be done as asked."""
        tokens = [*request.prompt, *request.committed]
        if not request.prompt:
            raise BadRequest("the prompt is empty")
        if max(tokens) >= vocabulary.size:
            raise BadRequest(f"token id {max(tokens)} is not in the vocabulary of {vocabulary.size}")
        if len(request.committed) >= request.max_tokens:
            raise BadRequest(
                f"max_tokens {request.max_tokens} leaves nothing to do after {len(request.committed)} tokens"
            )
        check_stop(request.stop)
        check_top(request.logprobs)
        sampling = Sampling.from_map(request.sampling)
        sampling.check_vocabulary(vocabulary.size)
        if request.limit is not None and sampling.rule is Rule.REJECTION:
            raise BadRequest("rule rejection: the edge cannot commit tokens under it; leave out the limit")
        if request.limit is not None and request.logprobs is not None:
            raise BadRequest(
                "logprobs: there are none of the tokens that the edge commits; leave out the limit"
            )
        text = TextStream(request.stop) if request.stop else None
        if text is not None:
            for token in request.committed:
                text.feed(vocabulary.piece(token))
        return cls(
            prompt_len=len(request.prompt),
            tokens=tokens,
            sampling=sampling,
            max_tokens=request.max_tokens,
            pace=request.pace,
            text=text,
            board=Board(len(tokens), max_ahead),
            vocabulary=vocabulary,
            waiting_since=now,
            logprobs=request.logprobs,
            fresh=bool(request.fresh),
            turn=Turn(request.limit),
        )

    @property
    def remaining(self) -> int:
        """Tokens that the cloud may still commit."""
        return self.turn.left(len(self.tokens), self.prompt_len + self.max_tokens)

    @property
    def _end(self) -> int:
        return self.prompt_len + self.max_tokens

    @property
    def idle(self) -> bool:
        """Whether it is the edge's turn, and nothing is to be done meanwhile."""
        return not self.remaining and self.read and not self.turn.audits

    @property
    def strict(self) -> bool:
        """Whether it asks for strict rounds, which is fewest forwards; `depth` knows what they may cost."""
        return self.pace.patience_us == ENDLESS_US

    @stimulus(ids=lambda self, commit: len(commit.ids))
    def take(self, commit: Commit) -> None:
        """Takes a COMMIT. Raises BadRequest for one that is not in order; nothing of it has been taken then.

        Tokens come in the edge's turn only, and then no step works on the list of tokens itself.
        """
        ids = commit.ids
        self.turn.check(len(self.tokens), commit.base, len(ids), commit.limit, commit.audit)
        if ids and max(ids) >= self.vocabulary.size:
            raise BadRequest(f"token id {max(ids)} is not in the vocabulary of {self.vocabulary.size}")
        if len(self.tokens) + len(ids) > self._end:
            raise BadRequest(f"COMMIT goes beyond max_tokens {self.max_tokens}")
        for token in ids:
            self.tokens.append(token)
            self._stops_at(token)
        self.board.advance(ids)
        self.turn.move(len(self.tokens), commit.limit, commit.audit)

    @stimulus(ids=lambda self, draft: _ids_in(draft))
    def hint(self, draft: Draft) -> None:
        """Takes a DRAFT; whatever is wrong with it is dropped and counted."""
        if draft.pace is not None:
            self.pace = draft.pace
        hints = self._valid_hints(draft)
        self.invalid_hints += len(draft.ids) - len(hints)
        # An empty DRAFT has a meaning of its own, which neither a frame of garbage nor one of alternates must
        # get.
        if hints or (not draft.ids and not draft.alternates):
            self.board.offer(draft.seen, draft.base, hints, self.tokens)
        for alternate in self._valid_alternates(draft):
            branch = [Hint(token, confidence=ALTERNATE_CONFIDENCE) for token in alternate.ids]
            self.board.offer_alternate(draft.seen, alternate.position, branch, self.tokens)

    def _valid_hints(self, draft: Draft) -> list[Hint]:
        """The hints up to the first that no edge of good will can have sent."""
        count = len(draft.ids)
        if (
            count > self.board.max_ahead
            or draft.seen < self.prompt_len
            or (draft.q is not None and len(draft.q) != count)
            or (draft.confidence is not None and len(draft.confidence) != count)
        ):
            return []
        size, confidence = self.vocabulary.size, draft.confidence or b"\xff" * count
        hints: list[Hint] = []
        for index, token in enumerate(draft.ids):
            q = None
            if draft.q is not None:
                ids, weights = draft.q[index]
                if token not in ids or len(ids) > MAX_Q_TOKENS or max(ids) >= size:
                    break
                q = DraftDistribution(ids, tuple(weights))
            elif token >= size:
                break
            alike = self.sampling.rule is Rule.REJECTION
            hints.append(Hint(token, q, REJECTION_CONFIDENCE if alike else confidence[index] / 255))
        return hints

    def _valid_alternates(self, draft: Draft) -> list[Alternate]:
        """Those that an edge of good will can have sent; none under the rejection rule."""
        alternates = draft.alternates or ()
        if (
            self.sampling.rule is Rule.REJECTION
            or draft.seen < self.prompt_len
            or len(alternates) > MAX_ALTERNATES
        ):
            return []
        longest, size = self.board.max_ahead + 1, self.vocabulary.size
        return [a for a in alternates if 1 < len(a.ids) <= longest and max(a.ids) < size]

    def ready_at(self) -> float:
        """From when on it may take its next step: -inf or a past time for at once, inf in the edge's turn."""
        remaining = self.remaining
        if not remaining or self.turn.audits:
            return float("inf") if self.idle else float("-inf")
        patience_us, gather = self.pace
        hints_may_come = self.decoding and patience_us > 0 and remaining > 1 and not self.board.exhausted
        if not hints_may_come or len(self.board.line) >= min(
            max(1, gather), remaining - 1, self.board.max_ahead
        ):
            return float("-inf")
        return self.waiting_since + min(patience_us / 1e6, MAX_PATIENCE_S)

    def may_verify(self, now: float) -> bool:
        """Whether its hints may cost the target time: not while too many of its tenant's were wrong."""
        return self.tenant is None or self.tenant.may_verify(now)

    def hinted(self, at_most: int) -> Hinted:
        """Its part in the choice of how many hints to verify: what each that may be taken is worth.

        No more than could be committed beside the target's own token, and none before the prompt has been
        read.
        """
        # In a step that is not its own there is nothing left beside the target's token, or it is an audit.
        takes = self.decoding and not self.turn.audits
        hints = self.board.take(min(at_most, self.remaining - 1)) if takes else []
        return Hinted(self.calibration.chances([hint.confidence for hint in hints]), self.strict)

    def begin(self, count: int, max_verify: int) -> tuple[Sequence[int], list[Hint]]:
        """Tokens and hints for the forward that begins now: so many of the board's in an own one.

        The edge's tokens are compared as if they were hints, at most `max_verify` at a time: those that agree
        are read for good, and behind the last of them the target tells its own choice. Where that is for the
        cloud to commit, the audit has cost no forward.
        """
        step, hints = self.turn_to(count)
        match step:
            case Step.OWN:
                return self.tokens, hints
            case Step.AUDIT:
                first, end = self.turn.audits[0]
                goes_on = end == len(self.tokens) and self.remaining > 0
                last = min(first + max_verify, end if goes_on else end - 1)
                return self.tokens[:first], [Hint(token) for token in self.tokens[first:last]]
            case Step.READING:
                return self.tokens[:], []
            case unreachable:
                assert_never(unreachable)

    @stimulus()
    def turn_to(self, count: int) -> tuple[Step, list[Hint]]:
        """What the forward that begins now is for, and so many of the board's hints if it is an own one."""
        self.step = self._next_step()
        hints = self.board.take(count) if self.step is Step.OWN else []
        if self.step is Step.OWN:
            self.in_step = [hint.confidence for hint in hints]
        return self.step, hints

    def _next_step(self) -> Step:
        if self.turn.audits:
            return Step.AUDIT
        return Step.OWN if self.remaining else Step.READING

    @stimulus()
    def judged(
        self,
        verdict: Verdict,
        verified: int,
        now: float,
        logprobs: tuple[TokenLogprobs, ...] | None = None,
        cached: int = 0,
    ) -> list[Committed | Audited]:
        """What came of the forward that `begin` began."""
        if not self.read:
            self.cached = cached
        self.read = True
        match self.step:
            case Step.OWN:
                return [self.commit(verdict, verified, now, logprobs)]
            case Step.AUDIT:
                return self._audited(verdict, now)
            case Step.READING:
                # What the target would have said is the edge's to say.
                self.forwards += 1
                return []
            case unreachable:
                assert_never(unreachable)

    def _audited(self, verdict: Verdict, now: float) -> list[Committed | Audited]:
        first, end = self.turn.audits[0]
        position = first + verdict.accepted
        agreed = (True,) * verdict.accepted
        if position == end:
            self.turn.audited(end)
            self.in_step = []
            own = self.commit(Verdict(verdict.tokens[-1:], 0), 0, now)
            return [Audited(first, agreed, 0), own]
        self.turn.audited(position + 1)
        self.forwards += 1
        chosen = verdict.tokens[verdict.accepted]
        return [Audited(first, (*agreed, chosen == self.tokens[position]), 1)]

    @stimulus()
    def commit(
        self,
        verdict: Verdict,
        verified: int,
        now: float,
        logprobs: tuple[TokenLogprobs, ...] | None = None,
    ) -> Committed:
        """Adds a forward's tokens, and their logprobs, as far as they go before the text ends."""
        cached, self.cached = self.cached or None, 0
        base, finish, ids = len(self.tokens), Finish.NONE, []
        for token in verdict.tokens:
            ids.append(token)
            self.tokens.append(token)
            if token in self.vocabulary.end_of_generation or self._stops_at(token):
                finish = Finish.STOP
            elif len(self.tokens) == self._end:
                finish = Finish.LENGTH
            if finish is not Finish.NONE:
                break
        self.board.advance(ids)
        self.calibration.learn(self.in_step[:verified], verdict.accepted)
        accepted = min(verdict.accepted, len(ids))
        self.decoding, self.waiting_since = True, now
        self.forwards += 1
        self.verified += verified
        self.accepted += accepted
        if self.tenant is not None:
            self.tenant.reject(verified - accepted, now)
        told = None if logprobs is None else logprobs[: len(ids)]
        return Committed(base, tuple(ids), accepted, verified, finish, told, cached)

    def _stops_at(self, token: int) -> bool:
        """Whether the text, which goes on with this token, now has a stop string."""
        if self.text is None:
            return False
        self.text.feed(self.vocabulary.piece(token))
        return self.text.stopped


def _ids_in(draft: Draft) -> int:
    alternates = sum(len(alternate.ids) for alternate in draft.alternates or ())
    return len(draft.ids) + alternates + sum(len(weights.ids) for weights in draft.q or ())
