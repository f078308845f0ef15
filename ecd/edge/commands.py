"""What an answer's state machine asks for: frames to send, tokens to show, the end."""

from dataclasses import dataclass

from ecd.logprobs import TokenLogprobs
from ecd.wire.messages import Commit, Draft, Finish, Open, Origin, Reset


@dataclass(frozen=True, slots=True)
class Send:
    """A frame for the cloud."""

    message: Open | Draft | Commit | Reset


@dataclass(frozen=True, slots=True)
class Emit:
    """Newly committed tokens, who chose each of them, and their logprobs if the request wants them."""

    ids: tuple[int, ...]
    origins: tuple[Origin, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete."""

    reason: Finish


Command = Send | Emit | Finished
