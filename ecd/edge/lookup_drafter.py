"""Drafting without a model: what followed when the text's last tokens occurred before.

Prompt lookup (Saxena 2023, 'Prompt lookup decoding', github.com/apoorvumang/prompt-lookup-decoding), with a
suffix automaton in place of the search for n-grams (Hu et al. 2024, 'SAM decoding: speculative decoding via
suffix automaton'). It guesses well where prompt or answer is copied: edits, quotations, summaries, tables.
"""

from collections.abc import Sequence

from ecd.edge.drafter import DraftTask
from ecd.edge.suffix import SuffixAutomaton
from ecd.sampling import DraftDistribution, Guess, Rule

# Of guesses behind a repeat of 2 tokens in new code or prose fewer than a third come true, see docs/LOG.md.
MIN_REPEAT_TOKENS = 3


class LookupDrafter:
    """`Drafter` with an automaton for each slot, over its committed tokens only.

    A guess that comes out wrong is therefore never part of it; guesses are followed from the automaton's end
    anew each time.
    """

    def __init__(self, *, slots: int, branches: int, slot_tokens: int):
        self.slots = slots
        self.branches = branches
        self.slot_tokens = slot_tokens
        self._texts: dict[int, SuffixAutomaton] = {}

    def draft(self, tasks: Sequence[DraftTask]) -> list[tuple[Guess, ...]]:
        """A copied run for each task whose end has occurred before, none for the others."""
        return [self._run(task) for task in tasks]

    def _run(self, task: DraftTask) -> tuple[Guess, ...]:
        text = self._texts.setdefault(task.slot, SuffixAutomaton())
        for token in task.context[len(text) : task.committed]:
            text.extend(token)
        if not task.copies:
            return ()
        repeat = text.repeat(task.context[task.committed :])
        if repeat.length < MIN_REPEAT_TOKENS:
            return ()
        copied = task.context[repeat.end : repeat.end + task.at_most]
        certain = task.sampling.rule is Rule.REJECTION
        return tuple(
            Guess(
                token,
                confidence(repeat.length + index),
                "lookup",
                q=DraftDistribution((token,), (255,)) if certain else None,
            )
            for index, token in enumerate(copied)
        )

    def release(self, slot: int) -> None:
        """Forgets the slot's text."""
        self._texts.pop(slot, None)

    def close(self) -> None:
        """Forgets everything."""
        self._texts.clear()


def confidence(repeat_tokens: int) -> float:
    """n / (n + 3) for a repeat of n tokens: near what source code shows, and `Acceptance` corrects it."""
    return repeat_tokens / (repeat_tokens + 3)
