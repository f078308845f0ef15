"""A toy target and toy drafts, for edge and cloud together in virtual time: eight tokens, and an oracle."""

import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ecd.cloud.session import Vocabulary
from ecd.edge.drafter import DraftTask
from ecd.edge.request import Request
from ecd.sampling import DraftDistribution, Guess, Rule, choose, guess
from ecd.text import TextStream
from ecd.wire.messages import Finish

END = 7
SIZE = 8
VOCABULARY = Vocabulary(SIZE, frozenset({END}), lambda token: b"abcdefg"[token : token + 1])
NEVER_ENDING = ((END, -100.0),)


@lru_cache(maxsize=200_000)
def toy_logits(tail: tuple[int, ...], who: int) -> NDArray[np.float32]:
    seed = who
    for token in tail:
        seed = (seed * 1_000_003 + token + 11) % (1 << 61)
    row = np.random.default_rng(seed).normal(0, 2, SIZE).astype(np.float32)
    row[END] -= 2
    row.flags.writeable = False
    return row


def target_logits(context: Sequence[int]) -> NDArray[np.float32]:
    return toy_logits(tuple(context[-4:]), 1)


def draft_logits(context: Sequence[int]) -> NDArray[np.float32]:
    """Like the target's, near enough to be right about two times in three."""
    return target_logits(context) + toy_logits(tuple(context[-2:]), 2) * np.float32(0.4)


def target_only(request: Request) -> tuple[list[int], Finish]:
    """The plain loop: what the target alone says."""
    tokens, text = list(request.prompt), TextStream(request.stop)
    while True:
        token = choose(target_logits(tokens), request.sampling, len(tokens), tokens, len(request.prompt))
        tokens.append(token)
        answer = tokens[len(request.prompt) :]
        if token != END:
            text.feed(VOCABULARY.piece(token))
        if token == END or text.stopped:
            return answer, Finish.STOP
        if len(answer) == request.max_tokens:
            return answer, Finish.LENGTH


def guessed(task: DraftTask, kind: str, rng: random.Random) -> tuple[Guess, ...]:
    if (kind == "late" and rng.random() < 0.7) or not task.model:
        return ()
    run: list[Guess] = []
    for _ in range(rng.randrange(1, task.at_most + 1) if kind == "runs" else 1):
        context = [*task.context, *(g.token for g in run)]
        made = guess(draft_logits(context), task.sampling, len(context), context, task.prompt_len)
        if kind in ("wrong", "random"):
            right = choose(target_logits(context), task.sampling, len(context), context, task.prompt_len)
            token = (right + 1) % END if kind == "wrong" else rng.randrange(SIZE)
            q = DraftDistribution((token,), (255,)) if task.sampling.rule is Rule.REJECTION else None
            made = Guess(token, rng.choice((0.95, 0.99)), second=rng.randrange(SIZE), q=q)
        run.append(made)
    return tuple(run)
