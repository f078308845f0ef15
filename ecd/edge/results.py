"""The result of an answer, as the control socket gives it and the HTTP gateway draws on it.

Owns its shape, which docs/PROTOCOL.md lists, and what fits into one frame.
"""

from collections.abc import Sequence
from typing import Any

from ecd.edge.answer import Answer
from ecd.edge.generation import Generation
from ecd.edge.pacing_stats import learned
from ecd.errors import BadRequest
from ecd.logprobs import TokenLogprobs
from ecd.wire.frames import MAX_FRAME_BYTES
from ecd.wire.messages import Finish

# A result is one frame. This much of it, with some to spare, goes to a token with its logprob, and to each of
# the most likely ones.
TOKEN_BYTES, TOP_BYTES = 64, 16


def check_result_fits(max_tokens: int, logprobs: int | None) -> None:
    """Raises BadRequest for more logprobs than a result has room for."""
    if logprobs is None:
        return
    most = MAX_FRAME_BYTES // (TOKEN_BYTES + TOP_BYTES * logprobs)
    if max_tokens > most:
        raise BadRequest(
            f"logprobs {logprobs}: a result has room for {most} tokens with so many each, and not for "
            f"max_tokens {max_tokens}; lower one of the two"
        )


def result_of(answer: Answer, finish: Finish, model: dict[str, Any]) -> dict[str, Any]:
    """The result of a finished answer."""
    request, tally = answer.generation.request, answer.generation.tally
    ids = answer.generation.committed
    first, last = answer.first_at or answer.started_at, answer.last_at or answer.started_at
    drafted, draft = answer.drafted_at, answer.draft_prefill
    later = answer.later_tokens
    return {
        "id": answer.id,
        "model": model.get("name"),
        "mode": request.mode.value,
        "text": answer.text.text,
        "token_ids": list(ids),
        "prompt_token_ids": list(request.prompt),
        "origins": [origin.label for origin in answer.generation.origins],
        **logprobs_entry(answer.generation.logprobs if request.logprobs is not None else None),
        "finish_reason": finish.name.lower(),
        "seed": request.sampling.seed,
        "sampling": request.sampling.to_map(),
        "stop": list(request.stop),
        "max_tokens": request.max_tokens,
        "usage": {
            "prompt_tokens": len(request.prompt),
            "completion_tokens": len(ids),
            "total_tokens": len(request.prompt) + len(ids),
        },
        "stats": {
            "ttft_ms": (first - answer.started_at) * 1000,
            "total_ms": (last - answer.started_at) * 1000,
            "tokens_per_s": later / (last - first) if later and last > first else 0.0,
            "drafted": tally.drafted,
            "most_ahead": tally.most_ahead,
            "hints_sent": tally.sent,
            "settled": tally.settled,
            "right": tally.right,
            "alternates_sent": tally.alternates_sent,
            "alternates_used": tally.alternates_used,
            "quiet_tokens": tally.quiet_tokens,
            "probing_tokens": tally.probing_tokens,
            **learned(answer.generation),
            "verified": tally.verified,
            "accepted": tally.accepted,
            "acceptance_rate": tally.accepted / tally.verified if tally.verified else 0.0,
            "target_forwards": tally.forwards,
            "target_forwards_without_hints": tally.forwards_without_hints,
            "target_step_ms": tally.step_us / 1000,
            "wire_bytes_up": answer.wire_up,
            "wire_bytes_down": answer.wire_down,
            "rtt_ms": answer.rtt_ms,
            "resumed": tally.resumed,
            "cached_tokens": tally.cached_tokens,
            "prefill_tokens": answer.prefill_tokens,
            "prefix_tokens": tally.prefix_tokens,
            "open_bytes": answer.open_bytes,
            "draft_cached_tokens": draft.cached,
            "draft_prefill_tokens": draft.read,
            "draft_ready_ms": None if drafted is None else (drafted - answer.started_at) * 1000,
            **_shared(answer.generation),
        },
    }


def _shared(generation: Generation) -> dict[str, Any]:
    """Of an answer that the edge committed tokens to: how often it gave the turn, and what the cloud
    compared.
    """
    turns = generation.turns
    if turns is None:
        return {}
    return {
        "threshold": turns.threshold,
        "handovers": turns.handovers,
        "audited": turns.compared,
        "agreed": turns.agreed,
    }


def logprobs_entry(told: Sequence[TokenLogprobs] | None) -> dict[str, Any]:
    """The entry of a result or an event: there when they were asked for."""
    return {} if told is None else {"logprobs": [each.to_map() for each in told]}
