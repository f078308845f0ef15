"""What is asked of one answer.

Owns the request's settings, the pace that they fix and how OPEN says them. Knows no links and no engines.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from ecd.edge.pacing import Objective, Pace
from ecd.sampling import Sampling
from ecd.wire.messages import ENDLESS_US, Open
from ecd.wire.messages import Pace as WirePace

# Before anything is measured; the second asks for fewest forwards.
UNSURE = Pace(ahead=16)
UNSURE_AND_PATIENT = Pace(ahead=16, patience_s=math.inf)


class LinkLoss(StrEnum):
    """What an answer does while no cloud takes it: WAIT for one for a time, FAIL at once, or DEGRADE: go on
    from the draft model's own tokens.
    """

    WAIT = "wait"
    DEGRADE = "degrade"
    FAIL = "fail"


class Mode(StrEnum):
    """Who chooses the tokens: the target, the target without hints, the draft model, or each where it is
    sure.

    EXACT and CLOUD_ONLY give the target's text. CONFIDENT: the edge commits what it is sure enough of, the
    cloud the rest. EDGE_ONLY: the draft model alone; nothing crosses the link.
    """

    EXACT = "exact"
    CONFIDENT = "confident"
    EDGE_ONLY = "edge-only"
    CLOUD_ONLY = "cloud-only"

    @property
    def edge_commits(self) -> bool:
        """Whether tokens may be committed that the target has not chosen."""
        return self in (Mode.CONFIDENT, Mode.EDGE_ONLY)


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for, as token ids and settings.

    In mode CONFIDENT guesses of at least `threshold` are committed; None: of the threshold that the edge
    finds for `target_agreement`. `audit_share` of those are compared with what the target would have said.

    `ahead`, `patience_us` and `hint_tokens` (hints gathered into a frame, and waited for by a patient cloud)
    are the pacing controller's to decide where they are None. With patience or hint_tokens given there is no
    controller. Without `alternates` the draft's second choices are not followed.
    `logprobs`: how many of the most likely tokens to tell with each committed one, None for no logprobs.
    `fresh`: nothing that was computed for earlier texts may be used, here or at the cloud.
    `link_loss`: what to do without a cloud.
    `timeline`: keep what happens and when, for a reader that draws it. `committed`: tokens of the answer that
    there are already, when it comes from another edge.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    draft: bool = True
    mode: Mode = Mode.EXACT
    threshold: float | None = None
    target_agreement: float = 0.95
    audit_share: float = 0.0
    alternates: bool = True
    objective: Objective = Objective.BALANCED
    ahead: int | None = None
    patience_us: int | None = None
    hint_tokens: int | None = None
    logprobs: int | None = None
    fresh: bool = False
    link_loss: LinkLoss = LinkLoss.WAIT
    timeline: bool = False
    committed: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Those of the prompt and the longest answer together."""
        return len(self.prompt) + self.max_tokens

    def opening(
        self,
        stream: int,
        committed: tuple[int, ...],
        pace: WirePace,
        prefix: tuple[bytes, int] | None,
        limit: int | None,
    ) -> Open:
        """The frame that asks a cloud for what follows `committed`.

        `prefix`: hash and length of a beginning of the prompt that the cloud may have. `limit`: where the
        cloud's positions end; None: nowhere.
        """
        prefix_hash, prefix_len = prefix or (None, 0)
        return Open(
            stream,
            prefix_hash,
            prefix_len,
            self.prompt[prefix_len:],
            committed,
            self.sampling.to_map(),
            self.max_tokens,
            self.stop,
            pace,
            self.logprobs,
            1 if self.fresh else None,
            limit,
        )

    @property
    def first_pace(self) -> Pace:
        """The controller's before anything is measured."""
        return UNSURE_AND_PATIENT if self.objective is Objective.COST else UNSURE

    @property
    def fixed_pace(self) -> Pace | None:
        """The pace of a request that leaves nothing to the controller."""
        if not self.draft:
            return Pace(0, send=False)
        if self.patience_us is None and self.hint_tokens is None:
            return None
        patience_us = self.patience_us or 0
        return Pace(
            UNSURE.ahead if self.ahead is None else self.ahead,
            self.hint_tokens or 1,
            math.inf if patience_us >= ENDLESS_US else patience_us / 1e6,
        )
