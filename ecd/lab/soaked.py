"""What a soak found: answers, what is left over, memory; and whether that is as promised.

Pure. Knows no processes and no network.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

# What resident memory may grow by between warm-up and end: allocators breathe.
MAX_GROWTH_BYTES = 12 << 20
# A soak of so long that tells nothing of a daemon's memory has not shown what it was made for.
JUDGED_S = 600.0


class Outcome(StrEnum):
    """How an answer ended."""

    RIGHT = "right"  # every token as the target alone says them, each once
    ENDED = "ended"  # with the error that its cause has: its edge was killed
    REFUSED = "refused"  # likewise: its edge's token had expired
    LEFT = "left"  # its client went away on purpose
    WRONG = "wrong"
    FAILED = "failed"  # with an error that nothing explains
    HUNG = "hung"


BAD = (Outcome.WRONG, Outcome.FAILED, Outcome.HUNG)


@dataclass(slots=True)
class Answers:
    """All answers of a soak. `pauses_s` has the longest wait for tokens of every answer that was resumed."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    resumed: int = 0
    pauses_s: list[float] = field(default_factory=list)

    def end(self, outcome: Outcome, reason: str = "") -> None:
        """One answer is over; `reason` says what was wrong, for a person."""
        self.outcomes[outcome] += 1
        if outcome in BAD:
            self.reasons[f"{outcome}: {reason}"] += 1


@dataclass(frozen=True, slots=True)
class Held:
    """A daemon while nobody asks it anything, at its first start and at the end, and its memory between.

    `exceptions`: those that its log has with a traceback. `states_lost`: KV states that found no room on the
    disk. `early_bytes` and `late_bytes` are of its last process, None where that lived too short to tell.
    """

    name: str
    starts: int
    idle_fds: int
    left_fds: int
    idle_tasks: int
    left_tasks: int
    left_sessions: int
    exceptions: tuple[str, ...]
    states_lost: int
    early_bytes: int | None
    late_bytes: int | None

    @property
    def growth_bytes(self) -> int | None:
        """How much its memory grew after the warm-up."""
        return (
            None
            if self.early_bytes is None or self.late_bytes is None
            else self.late_bytes - self.early_bytes
        )


@dataclass(frozen=True, slots=True)
class Soaked:
    """A whole soak; `faults` by kind."""

    seconds: float
    sessions: int
    faults: Counter[str]
    answers: Answers
    daemons: Sequence[Held]

    def problems(self) -> list[str]:
        """What is not as promised; none for a good soak."""
        answers = self.answers
        found = [f"{count} answers {reason}" for reason, count in answers.reasons.items()]
        if not answers.outcomes[Outcome.RIGHT]:
            found.append("not one answer was completed")
        for held in self.daemons:
            for what, idle, left in (
                ("fds", held.idle_fds, held.left_fds),
                ("tasks", held.idle_tasks, held.left_tasks),
                ("sessions", 0, held.left_sessions),
            ):
                if left > idle:
                    found.append(f"{held.name}: {left} {what}, and {idle} at its first start")
            for exception, count in Counter(held.exceptions).items():
                found.append(f"{held.name}: {count} times in its log: {exception}")
            if held.growth_bytes is not None and held.growth_bytes > MAX_GROWTH_BYTES:
                found.append(f"{held.name}: memory grew by {_mib(held.growth_bytes)} MiB after the warm-up")
        if self.seconds >= JUDGED_S:
            found += [f"{name}: no figure for its memory after the warm-up" for name in self._not_judged()]
        return found

    def _not_judged(self) -> list[str]:
        """The daemons of whose memory it tells nothing."""
        return [held.name for held in self.daemons if held.growth_bytes is None]

    def pause_s(self) -> dict[str, float]:
        """Percentiles of resumed answers' longest waits, seconds; empty when none was resumed."""
        waits = sorted(self.answers.pauses_s)
        return {name: waits[int(share * (len(waits) - 1))] for name, share in PERCENTILES if waits}

    def to_map(self) -> dict[str, Any]:
        """As written to a file."""
        return {
            "emulated_faults": dict(self.faults),
            "seconds": self.seconds,
            "sessions": self.sessions,
            "answers": {str(outcome): self.answers.outcomes[outcome] for outcome in Outcome},
            "tokens": self.answers.tokens,
            "resumed": self.answers.resumed,
            "pause_s": self.pause_s(),
            "daemons": [asdict(held) | {"growth_bytes": held.growth_bytes} for held in self.daemons],
            "problems": self.problems(),
        }

    def table(self) -> str:
        """For a person."""
        answers, pause = self.answers, self.pause_s()
        lines = [
            f"{self.seconds:.0f} s, {self.sessions} sessions, {sum(self.faults.values())} faults: "
            + ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items())),
            "answers: "
            + ", ".join(f"{answers.outcomes[outcome]} {outcome}" for outcome in Outcome)
            + f"; {answers.tokens} tokens",
            f"resumed {answers.resumed} times"
            + "".join(f", {name} {seconds:.2f} s" for name, seconds in pause.items()),
            "",
            "daemon    starts   fds idle  left   tasks idle  left   sessions left   MiB early    late   "
            "states lost",
        ]
        for held in self.daemons:
            lines.append(
                f"{held.name:<8}  {held.starts:>6}   {held.idle_fds:>8}  {held.left_fds:>4}   "
                f"{held.idle_tasks:>10}  {held.left_tasks:>4}   {held.left_sessions:>13}   "
                f"{_mib(held.early_bytes):>9}  {_mib(held.late_bytes):>6}   {held.states_lost:>11}"
            )
        memory = f"memory flat within {MAX_GROWTH_BYTES >> 20} MiB after the warm-up"
        if names := self._not_judged():
            memory += f", not judged of {', '.join(names)}"
        verdict = [f"NOT AS PROMISED: {problem}" for problem in self.problems()] or [
            f"as promised: no answer wrong, failed or hung; no session, fd or task left over; {memory}"
        ]
        return "\n".join([*lines, "", *verdict])


def exceptions_in(log: str) -> tuple[str, ...]:
    """The last line of every traceback in a daemon's log."""
    return tuple(
        re.findall(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n)*(\S.*)$", log, re.MULTILINE)
    )


def states_lost_in(log: str) -> int:
    """How often a daemon's log says that a KV state could not be kept."""
    return len(re.findall(r"WARNING .* a KV state could not be kept", log))


PERCENTILES = (("median pause", 0.5), ("p95", 0.95), ("longest", 1.0))


def _mib(number: int | None) -> str:
    return "" if number is None else f"{number / (1 << 20):.1f}"
