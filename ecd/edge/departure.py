"""Until when hints may wait for company.

Pure. Knows what steps and the way to the cloud take, and neither hints nor frames.
"""

from ecd.edge.pacing import Conditions

# Hints are sent so long before they must be at the cloud: a share of its step, but at least what a timer may
# be off.
EARLY_STEPS, EARLY_S = 0.03, 0.002


def last_moment(conditions: Conditions, last_tokens_at: float, in_step: int, now: float) -> float:
    """When hints must leave to be there for the next step that they can be there for; `now` is at once.

    The cloud's steps are taken to begin one forward, of `in_step` hints, after another from its last TOKENS
    on, half a round trip before those came, and hints take the other half. What is ready a little too late to
    be sure of a step leaves at once: it may still make it.
    """
    forward_s = conditions.forward_s(in_step)
    early_s = 2 * conditions.jitter_s + max(EARLY_STEPS * forward_s, EARLY_S)
    first = last_tokens_at - conditions.rtt_s - early_s
    steps, into_s = divmod(now - first, forward_s)
    return now if into_s <= early_s else first + (steps + 1) * forward_s
