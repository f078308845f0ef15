"""An answer's result as a table for a person. Owns names and units only."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[tuple[str, str]]


def table(rows: Rows) -> str:
    """Names and values in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def answer_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an answer took, from the result of `run`."""
    stats, usage = result["stats"], result["usage"]
    tokens = usage["completion_tokens"]
    rows = [
        ("tokens", f"{tokens}, after a prompt of {usage['prompt_tokens']}"),
        (
            "prompt",
            f"{stats['cached_tokens']} tokens held by the cloud, {stats['prefill_tokens']} read there, "
            f"{usage['prompt_tokens'] - stats['prefix_tokens']} sent",
        ),
        ("ended by", {"stop": "the model, or a stop text", "length": "max-tokens"}[result["finish_reason"]]),
        ("first token", f"after {stats['ttft_ms']:.0f} ms"),
        ("all of it", f"after {stats['total_ms'] / 1000:.2f} s"),
        ("speed", f"{stats['tokens_per_s']:.1f} tokens/s"),
        ("origins", _counted(result["origins"])),
        ("guesses", f"{stats['drafted']} made, {stats['hints_sent']} sent as hints"),
        ("acceptance", f"{stats['accepted']} of {stats['verified']} verified hints{_share(stats)}"),
        ("target forwards", f"{stats['target_forwards']}{_per(stats['target_forwards'], tokens)}"),
        ("target step", f"{stats['target_step_ms']:.1f} ms, the last one"),
        ("on the wire", f"{stats['wire_bytes_up']} bytes up, {stats['wire_bytes_down']} down"),
        ("round trip", "not measured" if stats["rtt_ms"] is None else f"{stats['rtt_ms']:.1f} ms"),
        ("seed", str(result["seed"])),
    ]
    if "handovers" in stats:
        compared = f"{stats['agreed']} of {stats['audited']} that were compared agree with the target"
        rows.append(
            ("the edge's own", f"above {stats['threshold']:.3f}, {stats['handovers']} hand-overs; {compared}")
        )
    if stats["resumed"]:
        rows.append(("resumed", f"{stats['resumed']} times after a lost link"))
    return rows


def broken_rows(origins: Sequence[str], reason: str) -> list[tuple[str, str]]:
    """What is known of an answer that was not completed."""
    return [
        ("tokens", str(len(origins))),
        ("ended by", reason),
        ("origins", _counted(origins)),
        ("the rest", "is known of complete answers only"),
    ]


def _counted(origins: Sequence[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(origins).most_common()) or "-"


def _share(stats: Mapping[str, Any]) -> str:
    return f" ({stats['acceptance_rate']:.0%})" if stats["verified"] else ""


def _per(count: int, tokens: int) -> str:
    return f", {count / tokens:.2f} per token" if tokens else ""
