"""Who commits next in an answer that the edge commits tokens to, and what the cloud is told of it.

Pure. Positions below `limit` are the cloud's, all others the edge's, and only the edge moves the limit:
docs/PROTOCOL.md, section 8. Knows guesses and COMMIT frames, and neither links nor drafters.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ecd.edge.ending import Ending
from ecd.edge.lines import Lines
from ecd.edge.pacing import Conditions, Objective
from ecd.edge.request import Mode, Request
from ecd.edge.threshold import Thresholds
from ecd.errors import Code, ProtocolError
from ecd.sampling import Guess, Noise, uniforms
from ecd.text import TextStream
from ecd.wire.messages import Audit, Commit, Finish, Origin, Reset

# So many tokens of the edge in a row are compared with the target's, or none of them.
BLOCK_TOKENS = 8
# At most so many positions are given to the cloud at once.
MOST_GIVEN = 16


def positions_given(conditions: Conditions | None, objective: Objective) -> int:
    """Positions for the cloud at a time: as many as it fills in a round trip, so that asking seldom pays.

    Under `cost` one: the edge may be sure again of the next.
    """
    if conditions is None or objective is Objective.COST:
        return 1
    return min(MOST_GIVEN, 1 + math.ceil(conditions.rtt_s / conditions.step_s))


@dataclass(slots=True)
class Turns:
    """The edge's part in one answer. It commits guesses of the model of at least `threshold`.

    `fixed`: the threshold, None for the one that `thresholds` finds for `agreement`. `audit_share`: of the
    edge's tokens, how many the cloud compares with its own. `alone`: no cloud has a part in the answer, for
    now or, in mode edge-only, for good: all tokens are the edge's, and none is too unsure. `told`: the cloud
    knows so many tokens. `pending`: confidences of tokens whose comparison is under way, by position.
    """

    limit: int
    ending: Ending
    thresholds: Thresholds
    fixed: float | None
    agreement: float
    audit_share: float
    seed: int
    alone: bool = False
    told: int = 0
    handovers: int = 0
    compared: int = 0
    agreed: int = 0
    pending: dict[int, float] = field(default_factory=dict)
    _block: list[float] = field(default_factory=list)
    _block_counts: bool = False

    @classmethod
    def of(
        cls,
        request: Request,
        thresholds: Thresholds,
        piece: Callable[[int], bytes],
        ends: frozenset[int],
        committed: Sequence[int] = (),
    ) -> "Turns":
        """Of an answer that has these tokens; the next is the edge's."""
        turns = cls(
            limit=len(request.prompt),
            ending=Ending(TextStream(request.stop), piece, ends, request.max_tokens),
            thresholds=thresholds,
            fixed=request.threshold,
            agreement=request.target_agreement,
            audit_share=request.audit_share,
            seed=request.sampling.seed,
            alone=request.mode is Mode.EDGE_ONLY,
        )
        for token in committed:
            turns.ending.after(token)
        return turns

    @property
    def threshold(self) -> float:
        """The confidence from which on a guess is committed."""
        if self.alone:
            return 0.0
        return self.thresholds.adaptive(self.agreement).value if self.fixed is None else self.fixed

    def is_edges(self, length: int) -> bool:
        """Whether the next of so many committed tokens is the edge's to commit."""
        return self.alone or length >= self.limit

    def opened(self, length: int) -> None:
        """A cloud was told all of so many tokens anew, and knows of no audit."""
        self.told, self.alone = length, False
        self.pending.clear()
        self._block.clear()

    def heard(self, length: int, ids: Sequence[int]) -> None:
        """The cloud committed these behind so many. Raises ProtocolError beyond the limit."""
        if length + len(ids) > self.limit:
            raise ProtocolError(
                f"TOKENS of {len(ids)} ids at {length} go beyond the cloud's end at {self.limit}"
            )
        self.told = length + len(ids)
        for token in ids:
            self.ending.after(token)

    def commit(self, tokens: list[int], lines: Lines) -> tuple[tuple[int, ...], Finish]:
        """In the edge's turn, moves guesses that are sure enough from the line to the text.

        Returns them, and whether the text ends with them.
        """
        ids: list[int] = []
        finish = Finish.NONE
        while finish is Finish.NONE and self.is_edges(len(tokens)) and (guess := _next(lines)) is not None:
            if guess.confidence < self.threshold:
                break
            if not self.alone:
                self._sample(len(tokens), guess.confidence)
            tokens.append(guess.token)
            lines.settle(guess.token)
            ids.append(guess.token)
            finish = self.ending.after(guess.token)
        if self.is_edges(len(tokens)) and lines.main.guesses and _next(lines) is None:
            # Of a copy nobody knows how sure to be: the model is to guess.
            lines.clear()
        return tuple(ids), finish

    def tell(
        self, stream: int, tokens: Sequence[int], lines: Lines, given: int, *, renews: bool
    ) -> list[Commit]:
        """Gives the cloud so many positions where the edge is unsure of the next token, and tokens to
        compare.

        `renews`: in the cloud's turn too, so that it never has to wait for the edge to find out.
        """
        length, guess = len(tokens), _next(lines)
        own = self.is_edges(length)
        unsure = guess is not None and guess.confidence < self.threshold
        if unsure and (own or (renews and length + given > self.limit)):
            self.handovers += own
            return [self.frame(stream, tokens, length + given)]
        return [self.frame(stream, tokens, self.limit)] if len(self._block) >= BLOCK_TOKENS else []

    def give_all(self, stream: int, tokens: Sequence[int], remaining: int) -> Commit:
        """All that is left is the cloud's."""
        return self.frame(stream, tokens, len(tokens) + remaining)

    def leave(self, stream: int, tokens: Sequence[int]) -> list[Commit | Reset]:
        """The edge has ended the text; the stream is kept while tokens are compared."""
        begun = [self.frame(stream, tokens, self.limit)] if self._block and self._block_counts else []
        return [*begun, *self.after_the_end(True, stream)]

    def after_the_end(self, ended: bool, stream: int) -> list[Reset]:
        """Nothing is wanted of the stream any more once the text has ended and all was compared."""
        over = ended and not self.pending
        return [Reset(stream, Code.CANCELLED, "the edge has ended the text")] if over else []

    def frame(self, stream: int, tokens: Sequence[int], limit: int) -> Commit:
        """All that the cloud does not know yet, with the limit from here on, which never falls."""
        self.limit = max(limit, self.limit)
        base, self.told = self.told, len(tokens)
        audit = len(self._block) if self._block_counts else 0
        first = len(tokens) - audit
        self.pending |= {first + index: confidence for index, confidence in enumerate(self._block[:audit])}
        self._block.clear()
        return Commit(stream, base, tuple(tokens[base:]), Origin.EDGE_CONFIDENT, self.limit, audit)

    def audited(self, message: Audit) -> list[tuple[float, bool]]:
        """Confidence of each compared token, and whether the target agrees.

        Raises ProtocolError for one that is not waited for.
        """
        told = []
        for position, agreed in enumerate(message.agreed, message.base):
            confidence = self.pending.pop(position, None)
            if confidence is None or agreed > 1:
                raise ProtocolError(f"AUDIT of position {position}, which was not asked for, or not 0 or 1")
            self.compared += 1
            self.agreed += agreed
            self.thresholds.audit(self.agreement if self.fixed is None else None, bool(agreed))
            told.append((confidence, bool(agreed)))
        return told

    def _sample(self, position: int, confidence: float) -> None:
        """Whether a block is compared depends on the seed and its place alone, so it is a fair sample."""
        if not self._block:
            (draw,) = uniforms(self.seed, position, np.zeros(1, dtype=np.int64), Noise.ACCEPT)
            self._block_counts = bool(draw < self.audit_share)
        self._block.append(confidence)
        if len(self._block) == BLOCK_TOKENS and not self._block_counts:
            self._block.clear()


def _next(lines: Lines) -> Guess | None:
    """The model's guess for the next token; None where there is none, or a copied one."""
    guesses = lines.main.guesses
    return guesses[0] if guesses and guesses[0].drafter == "model" else None
