"""What is guessed ahead of the committed text: the main line, and alternates that leave it.

Pure. Owns which guesses still hold and which line is worth extending next; it does not know frames.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ecd.decayed_rate import DecayedRate
from ecd.edge.acceptance import Rates
from ecd.sampling import Guess

# A guess that is this unlikely to be reached is not made.
LEAST_CHANCE = 0.03
# One more line makes a forward longer by about so much: a line worth less than this share of the best waits.
LINE_COST = 0.3
# An alternate that is this unlikely to be used is not begun.
LEAST_WORTH = 0.03
# Hints behind an alternate's first token: what a forward may verify before the edge's next hints arrive.
ALTERNATE_HINTS = 6
SECOND_PRIOR, SECOND_WEIGHT, SECOND_MEMORY = 0.4, 4.0, 64.0


@dataclass(slots=True, eq=False)
class Line:
    """Guesses for the positions from `first` on, `sent` of them sent.

    `chances`: of each, if those before it are right. `dry`: nothing can be copied here.
    """

    first: int
    branch: int = 0
    guesses: list[Guess] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    sent: int = 0
    dry: bool = False

    @property
    def end(self) -> int:
        """The position that the next guess is for."""
        return self.first + len(self.guesses)

    @property
    def unsent(self) -> int:
        return len(self.guesses) - self.sent

    @property
    def copied(self) -> int:
        """So many of its guesses, at the end, are copies."""
        at_end = itertools.takewhile(lambda guess: guess.drafter == "lookup", reversed(self.guesses))
        return sum(1 for _ in at_end)

    @property
    def reach(self) -> float:
        """The chance that all of it is right."""
        return math.prod(self.chances)

    def worth_going_on(self, *, model: bool) -> bool:
        """Whether the next guess has a chance to matter; without the model, whether there is one."""
        return (model or not self.dry) and self.reach >= LEAST_CHANCE

    def extend(self, guesses: Sequence[Guess], acceptance: Rates, slot: int | None = None) -> None:
        """Adds guesses at the end; `slot` is the answer's, which has its own record of copies."""
        before = self.copied
        for guess in guesses:
            is_copy = guess.drafter == "lookup"
            self.guesses.append(guess)
            self.chances.append(
                acceptance.copy_rate(slot, guess.confidence, before)
                if is_copy
                else acceptance.rate(guess.drafter, guess.confidence)
            )
            before = before + 1 if is_copy else 0

    def shift(self) -> None:
        """Its first token was committed."""
        self.first += 1
        if self.guesses:
            del self.guesses[0], self.chances[0]
        self.sent = max(0, self.sent - 1)
        self.dry = False


@dataclass(frozen=True, slots=True)
class Settled:
    """What a committed token said of the guess at its position, the `place`-th since the last fork."""

    guess: Guess | None
    place: int
    right: bool
    switched: bool


class Lines:
    """The main line from position `first` on and its alternates."""

    def __init__(self, first: int, acceptance: Rates):
        self.main = Line(first)
        self._acceptance = acceptance
        self._alternates: list[Line] = []
        self._place = 0
        self._seconds = DecayedRate(SECOND_MEMORY)

    def holds(self, line: Line) -> bool:
        """Whether the line has not been given up since."""
        return line is self.main or line in self._alternates

    def clear(self) -> None:
        """Gives up all guesses."""
        self.main = Line(self.main.first)
        self._alternates.clear()

    def unsend(self, max_ahead: int) -> None:
        """There is a new receiver: it has seen nothing, and takes so many hints."""
        self.main.sent = 0
        del self.main.guesses[max_ahead:], self.main.chances[max_ahead:]
        self._alternates.clear()

    def settle(self, token: int) -> Settled:
        """The token at the main line's first position is committed."""
        main = self.main
        position = main.first
        guess = main.guesses[0] if main.guesses else None
        place = self._place
        if guess is None or guess.token == token:
            self._place = place + 1 if guess is not None else 0
            self._alternates = [line for line in self._alternates if line.first != position]
            main.shift()
            return Settled(guess, place, guess is not None, False)
        if guess.second is not None:
            self._seconds.add(guess.second == token)
        self._place = 0
        taken = [a for a in self._alternates if a.first == position and a.guesses[0].token == token]
        self._alternates.clear()
        self.main = taken[0] if taken else Line(position)
        self.main.shift()
        # The cloud may have missed the switch, if the alternate came too late: it is told again.
        self.main.sent = self.main.branch = 0
        return Settled(guess, place, False, bool(taken))

    @property
    def second_rate(self) -> float:
        """How often the runner-up is right where the first choice is wrong."""
        return self._seconds.estimate(SECOND_PRIOR, SECOND_WEIGHT)

    def to_extend(self, main: bool, alternates: int, worth: float, remaining: int) -> list[Line]:
        """The lines whose next guess is worth most, for one batch.

        `main`: whether the main line may go on. `alternates`: how many there may be. `worth`: what a hint
        behind an alternate is worth, where one on the main line is worth 1.
        """
        candidates: list[tuple[float, Line]] = []
        if main:
            candidates.append((self.main.reach, self.main))
        if alternates and worth > 0:
            candidates += self._alternates_worth(alternates, worth, remaining)
        best = max((value for value, _ in candidates), default=0.0)
        chosen = [line for value, line in candidates if value >= max(LINE_COST * best, 1e-9)]
        self._alternates += [line for line in chosen if not self.holds(line)]
        return chosen

    def _alternates_worth(self, limit: int, worth: float, remaining: int) -> list[tuple[float, Line]]:
        """Alternates that may go on, and the best new ones, with what their next guess is worth."""
        main, reach, places = self.main, 1.0, []
        for chance in main.chances:
            places.append(reach * (1 - chance) * self.second_rate * worth)
            reach *= chance
        found = [
            (places[line.first - main.first] * math.prod(line.chances[1:]), line)
            for line in self._alternates
            if len(line.guesses) <= ALTERNATE_HINTS and line.end - main.first < remaining - 1
        ]
        taken = {line.first for line in self._alternates}
        free = sorted(set(range(1, limit + 1)) - {line.branch for line in self._alternates})
        fresh = sorted(
            (
                (value, main.first + index)
                for index, value in enumerate(places)
                if value >= LEAST_WORTH
                and main.guesses[index].second is not None
                and main.first + index not in taken
                and index + 1 < remaining - 1
            ),
            reverse=True,
        )
        for branch, (value, position) in zip(free, fresh, strict=False):
            first = main.guesses[position - main.first]
            assert first.second is not None
            start = Guess(first.second, 1.0, first.drafter)
            found.append((value, Line(position, branch, [start], [1.0])))
        return found

    def unsent(self, *, alternates: bool) -> bool:
        """Whether there is anything to send."""
        return self.main.unsent > 0 or (alternates and bool(self._unsent_alternates()))

    def send_alternates(self) -> list[Line]:
        """Alternates that are to be sent; they count as sent from here on."""
        lines = self._unsent_alternates()
        for line in lines:
            line.sent = len(line.guesses)
        return lines

    def _unsent_alternates(self) -> list[Line]:
        """As soon as they have a hint, and once more when they are complete: each time they travel whole."""
        return [
            line
            for line in self._alternates
            if line.unsent
            and len(line.guesses) > 1
            and (not line.sent or len(line.guesses) > ALTERNATE_HINTS)
        ]
