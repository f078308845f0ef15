"""One session in the cloud: what is committed, what may be hinted, when it stops.

Pure. Time is passed in; it does not know engines, frames or other sessions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ecd.cloud.board import Board
from ecd.errors import BadRequest
from ecd.sampling import MAX_Q_TOKENS, DraftDistribution, Hint, Sampling, Verdict
from ecd.text import TextStream, check_stop
from ecd.wire.messages import Draft, Finish, Open

# Even strict rounds give up on an edge that never answers, and decode one token without it.
MAX_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a session must know of the target's vocabulary; `piece` gives a token's bytes."""

    size: int
    end_of_generation: frozenset[int]
    piece: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Committed:
    """What one forward added: `accepted` of the ids were hints, out of `verified` looked at."""

    base: int
    ids: tuple[int, ...]
    accepted: int
    verified: int
    finish: Finish


@dataclass(slots=True)
class Session:
    """State of one session. `tokens` is prompt and answer; `waiting_since` is the time of its last step."""

    prompt_len: int
    tokens: list[int]
    sampling: Sampling
    max_tokens: int
    patience_s: float
    text: TextStream
    board: Board
    vocabulary: Vocabulary
    waiting_since: float
    decoding: bool = False
    invalid_hints: int = 0
    forwards: int = 0
    verified: int = 0
    accepted: int = 0

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
        sampling = Sampling.from_map(request.sampling)
        sampling.check_vocabulary(vocabulary.size)
        text = TextStream(request.stop)
        for token in request.committed:
            text.feed(vocabulary.piece(token))
        return cls(
            prompt_len=len(request.prompt),
            tokens=tokens,
            sampling=sampling,
            max_tokens=request.max_tokens,
            patience_s=min(request.patience_us / 1e6, MAX_PATIENCE_S),
            text=text,
            board=Board(len(tokens), max_ahead),
            vocabulary=vocabulary,
            waiting_since=now,
        )

    @property
    def remaining(self) -> int:
        """Tokens that may still be committed."""
        return self.prompt_len + self.max_tokens - len(self.tokens)

    def hint(self, draft: Draft) -> None:
        """Takes a DRAFT; whatever is wrong with it is dropped and counted."""
        hints = self._valid_hints(draft)
        self.invalid_hints += len(draft.ids) - len(hints)
        # An empty DRAFT has a meaning of its own, which a frame of garbage must not get.
        if hints or not draft.ids:
            self.board.offer(draft.seen, draft.base, hints, self.tokens)

    def _valid_hints(self, draft: Draft) -> list[Hint]:
        """The hints up to the first that no edge of good will can have sent."""
        too_many = len(draft.ids) > self.board.max_ahead
        if (
            too_many
            or draft.seen < self.prompt_len
            or (draft.q is not None and len(draft.q) != len(draft.ids))
        ):
            return []
        hints: list[Hint] = []
        for index, token in enumerate(draft.ids):
            q = None
            if draft.q is not None:
                weights = draft.q[index]
                q = DraftDistribution(weights.ids, tuple(weights.weights))
            ids: Sequence[int] = (token,) if q is None else q.ids
            if token not in ids or len(ids) > MAX_Q_TOKENS or max(ids) >= self.vocabulary.size:
                break
            hints.append(Hint(token, q))
        return hints

    def ready_at(self) -> float:
        """From when on it may take its next step; a past time or -inf when at once."""
        hints_may_come = (
            self.decoding and self.patience_s > 0 and self.remaining > 1 and not self.board.exhausted
        )
        if not hints_may_come or self.board.line:
            return float("-inf")
        return self.waiting_since + self.patience_s

    def take_hints(self, at_most: int) -> list[Hint]:
        """Hints for the next forward: no more than could be committed beside the target's own."""
        return self.board.take(min(at_most, self.remaining - 1))

    def commit(self, verdict: Verdict, verified: int, now: float) -> Committed:
        """Adds a forward's tokens as far as they go before the text ends."""
        base, finish, ids = len(self.tokens), Finish.NONE, []
        for token in verdict.tokens:
            ids.append(token)
            self.tokens.append(token)
            if token in self.vocabulary.end_of_generation:
                finish = Finish.STOP
            else:
                self.text.feed(self.vocabulary.piece(token))
                if self.text.stopped:
                    finish = Finish.STOP
                elif not self.remaining:
                    finish = Finish.LENGTH
            if finish is not Finish.NONE:
                break
        self.board.advance(ids)
        accepted = min(verdict.accepted, len(ids))
        self.decoding, self.waiting_since = True, now
        self.forwards += 1
        self.verified += verified
        self.accepted += accepted
        return Committed(base, tuple(ids), accepted, verified, finish)
