"""From what was had under each condition to the report, as `ablation_report.json` has it.

Owns the metrics, their formulas and the names of the JSON. Pure: knows no process, no file and no plot.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ecd.lab.ablation.conditions import Condition
from ecd.lab.ablation.conversations import Conversation
from ecd.lab.ablation.records import Answer, Exchange
from ecd.lab.bootstrap import Amounts, Interval, rate_interval, ratio_interval


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that sums up answers: all of their `work` over all of their `per`.

    `of`: which answers have a part in it. `compared`: whether the baseline's is worth dividing by.
    """

    name: str
    work: Callable[[Answer], float]
    per: Callable[[Answer], float] = lambda answer: 1
    of: Callable[[Answer], bool] = lambda answer: answer.error is None
    compared: bool = False


def _tokens(answer: Answer) -> int:
    return len(answer.token_ids)


METRICS = (
    Metric("latency_ms", lambda a: a.latency_ms, compared=True),
    Metric("ttft_ms", lambda a: a.ttft_ms, compared=True),
    Metric("tokens_per_s", lambda a: 1000 * a.decoded, lambda a: a.decode_ms, compared=True),
    Metric("acceptance_rate", lambda a: a.accepted, lambda a: a.verified),
    Metric("forwards_per_token", lambda a: a.forwards, _tokens, compared=True),
    Metric("wire_bytes", lambda a: a.wire_bytes, compared=True),
    Metric("prefill_tokens", lambda a: a.prefill_tokens),
    Metric("cached_tokens", lambda a: a.cached_tokens),
    Metric("agreement", lambda a: a.agreed or 0, _tokens, lambda a: a.error is None and a.agreed is not None),
    Metric("audited_agreement", lambda a: a.audits_agreed, lambda a: a.audited),
    Metric("success_rate", lambda a: a.error is None, of=lambda a: True),
    Metric("exact_match", lambda a: bool(a.right), of=lambda a: a.error is None and a.right is not None),
    Metric("edge_share", lambda a: a.edge_tokens, _tokens),
    Metric("draft_prefill_tokens", lambda a: a.draft_prefill_tokens),
    Metric("draft_cached_tokens", lambda a: a.draft_cached_tokens),
    Metric("drafted_per_token", lambda a: a.drafted, _tokens),
    Metric("most_ahead", lambda a: a.most_ahead),
)


def experiments_of(
    conditions: Sequence[Condition],
    conversations: Sequence[Conversation],
    exchanges: Sequence[Exchange],
    seed: int,
) -> list[dict[str, Any]]:
    """One map for each condition. The first condition is what the others are compared with.

    `prompts` has all answers, `summary` the metrics over all of them, `intervals` 95 % around those,
    `to_baseline` ratios with intervals, `turns` the same for the first, second ... turn of conversations, and
    `classes` the metrics by class of conversation.
    """
    by_condition = {
        condition.name: [e for e in exchanges if e.asked.condition == condition.name]
        for condition in conditions
    }
    baseline = by_condition[conditions[0].name]
    texts = {
        (e.asked.repeat, e.asked.conversation, turn): answer.token_ids
        for e in baseline
        for turn, answer in enumerate(e.answers)
        if answer.error is None
    }
    kinds = list(dict.fromkeys(c.kind for c in conversations if c.kind))
    found = []
    for condition in conditions:
        had = by_condition[condition.name]
        found.append(
            {
                "name": condition.name,
                "description": condition.description,
                "config": condition.resolved,
                "changes": {
                    path: {"baseline": before, "here": after}
                    for path, (before, after) in condition.changes.items()
                },
                "prompts": [_told(answer, place) for place, answer in _places(had, conversations)],
                **_summed(had, baseline, seed),
                "same_text": _same_text(had, texts),
                "turns": [
                    {"turn": turn + 1, **_summed(_turn(had, turn), _turn(baseline, turn), seed)}
                    for turn in range(max(len(c.turns) for c in conversations))
                ],
                "classes": {
                    kind: _summary([e for e in had if conversations[e.asked.conversation].kind == kind])
                    for kind in kinds
                },
            }
        )
    return found


def _places(
    had: Sequence[Exchange], conversations: Sequence[Conversation]
) -> list[tuple[dict[str, Any], Answer]]:
    ordered = sorted(had, key=lambda e: (e.asked.conversation, e.asked.repeat))
    return [
        (
            {
                "conversation": exchange.asked.conversation,
                "class": conversations[exchange.asked.conversation].kind,
                "turn": turn + 1,
                "repeat": exchange.asked.repeat,
                "prompt": conversations[exchange.asked.conversation].turns[turn].content,
            },
            answer,
        )
        for exchange in ordered
        for turn, answer in enumerate(exchange.answers)
    ]


def _told(answer: Answer, place: Mapping[str, Any]) -> dict[str, Any]:
    """An answer with what follows from it, named as in the summary."""
    rates = {metric.name: _mean(metric, [answer]) for metric in METRICS}
    return {**place, **asdict(answer), **rates}


def _turn(had: Sequence[Exchange], turn: int) -> list[Exchange]:
    return [Exchange(e.asked, e.answers[turn : turn + 1]) for e in had]


def _summed(had: Sequence[Exchange], baseline: Sequence[Exchange], seed: int) -> dict[str, Any]:
    shape = (
        1 + max((e.asked.conversation for e in (*had, *baseline)), default=0),
        1 + max((e.asked.repeat for e in (*had, *baseline)), default=0),
    )
    amounts = {metric.name: _amounts(metric, had, shape) for metric in METRICS}
    return {
        "summary": _summary(had),
        "intervals": {name: _interval(rate_interval(each, seed)) for name, each in amounts.items()},
        "to_baseline": {
            metric.name: _interval(
                ratio_interval(amounts[metric.name], _amounts(metric, baseline, shape), seed)
            )
            for metric in METRICS
            if metric.compared
        },
    }


def _summary(had: Sequence[Exchange]) -> dict[str, float | None]:
    answers = [answer for exchange in had for answer in exchange.answers]
    return {metric.name: _mean(metric, answers) for metric in METRICS}


def _mean(metric: Metric, answers: Sequence[Answer]) -> float | None:
    """None where there is nothing to divide by."""
    counted = [answer for answer in answers if metric.of(answer)]
    per = sum(metric.per(answer) for answer in counted)
    return float(sum(metric.work(answer) for answer in counted) / per) if per else None


def _amounts(metric: Metric, had: Sequence[Exchange], shape: tuple[int, int]) -> Amounts:
    """By conversation and repeat: turns of a conversation follow from one another and are one unit."""
    work = np.full(shape, np.nan)
    per = work.copy()
    for exchange in had:
        counted = [answer for answer in exchange.answers if metric.of(answer)]
        if counted:
            place = exchange.asked.conversation, exchange.asked.repeat
            work[place] = sum(metric.work(answer) for answer in counted)
            per[place] = sum(metric.per(answer) for answer in counted)
    return Amounts(work, per)


def _same_text(
    had: Sequence[Exchange], texts: Mapping[tuple[int, int, int], tuple[int, ...]]
) -> float | None:
    """Of the answers that both have, the share whose tokens are all the baseline's."""
    same = [
        answer.token_ids == texts[place]
        for exchange in had
        for turn, answer in enumerate(exchange.answers)
        if answer.error is None
        and (place := (exchange.asked.repeat, exchange.asked.conversation, turn)) in texts
    ]
    return sum(same) / len(same) if same else None


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else asdict(interval)
