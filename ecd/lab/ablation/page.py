"""An ablation's report as one HTML file that needs nothing else, and its plots as PNGs.

Owns the looks. matplotlib comes with the extra `lab` and is imported when something is drawn.
"""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ecd.lab.page import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Experiment = Mapping[str, Any]
# Metrics with their heading, digits, and what a number is multiplied by.
SHOWN: tuple[tuple[str, str, int, float], ...] = (
    ("latency_ms", "latency ms", 0, 1),
    ("ttft_ms", "TTFT ms", 0, 1),
    ("tokens_per_s", "tokens/s", 1, 1),
    ("forwards_per_token", "forwards/token", 3, 1),
    ("acceptance_rate", "accepted/verified", 3, 1),
    ("wire_bytes", "wire bytes", 0, 1),
    ("prefill_tokens", "prefill tokens", 1, 1),
    ("cached_tokens", "cached tokens", 1, 1),
    ("draft_prefill_tokens", "at the edge", 1, 1),
    ("draft_cached_tokens", "cached there", 1, 1),
    ("agreement", "agreement", 3, 1),
    ("audited_agreement", "of audited", 3, 1),
    ("exact_match", "exact match", 3, 1),
    ("edge_share", "edge's tokens", 3, 1),
    ("most_ahead", "most ahead", 1, 1),
    ("success_rate", "success %", 1, 100),
)
COMPARED = ("latency_ms", "ttft_ms", "tokens_per_s", "forwards_per_token", "wire_bytes")
TIMES = ("latency_ms", "ttft_ms", "tokens_per_s")
WORK = ("forwards_per_token", "wire_bytes", "prefill_tokens", "cached_tokens")
HEADINGS = {name: heading for name, heading, _, _ in SHOWN}
EXTRA_STYLE = """
img { max-width: 100% } td:first-child { text-align: left; font-weight: 600 }
summary { cursor: pointer; margin: .4em 0 } pre { white-space: pre-wrap; font-size: 13px } .lo { color: #777 }
td.text { white-space: normal; min-width: 20em; text-align: left } .wide { overflow-x: auto }
.words td { text-align: left; vertical-align: top }
"""


def pictures(experiments: Sequence[Experiment]) -> dict[str, bytes]:
    """The plots as PNGs, by file name."""
    drawn = {
        "times.png": _bars(experiments, TIMES),
        "work.png": _bars(experiments, WORK),
        "turns.png": _turns(experiments),
    }
    if confident := [e for e in experiments if fixed_threshold(e) is not None]:
        drawn["confident.png"] = _curve(experiments, confident)
    return {name: _png(figure) for name, figure in drawn.items()}


def fixed_threshold(experiment: Experiment) -> float | None:
    """Of an experiment in mode `confident` with a fixed threshold, that."""
    edge = experiment["config"]["edge"]
    if edge["mode"] != "confident" or not isinstance(edge["threshold"], int | float):
        return None
    return float(edge["threshold"])


def _figure(count: int, height: float) -> "tuple[Figure, Sequence[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _bars(experiments: Sequence[Experiment], metrics: Sequence[str]) -> "Figure":
    figure, places = _figure(len(metrics), 1.2 + 0.32 * len(experiments))
    names = [experiment["name"] for experiment in experiments]
    for number, (axes, metric) in enumerate(zip(places, metrics, strict=True)):
        values = [experiment["summary"][metric] or 0.0 for experiment in experiments]
        axes.barh(names, values, xerr=_errors(experiments, metric, values), color="#7fb0dc", capsize=3)
        axes.invert_yaxis()
        axes.set_title(HEADINGS[metric], loc="left")
        axes.grid(axis="x", alpha=0.3)
        if number:
            axes.set_yticklabels([])
    return figure


def _errors(
    experiments: Sequence[Experiment], metric: str, values: Sequence[float]
) -> tuple[list[float], list[float]]:
    """How far the intervals reach to the left and to the right of the values."""
    ends = [experiment["intervals"][metric] for experiment in experiments]
    pairs = list(zip(values, ends, strict=True))
    left = [max(0.0, value - end["lo"]) if end else 0.0 for value, end in pairs]
    return left, [max(0.0, end["hi"] - value) if end else 0.0 for value, end in pairs]


def _turns(experiments: Sequence[Experiment]) -> "Figure":
    """TTFT and cached tokens turn by turn."""
    figure, places = _figure(2, 3.6)
    for axes, metric in zip(places, ("ttft_ms", "cached_tokens"), strict=True):
        for experiment in experiments:
            told = [(t["turn"], t["summary"][metric]) for t in experiment["turns"]]
            told = [(turn, value) for turn, value in told if value is not None]
            axes.plot([t for t, _ in told], [v for _, v in told], marker="o", label=experiment["name"])
        axes.set(xlabel="turn", title=HEADINGS[metric], ylim=(0, None))
        axes.set_xticks([turn["turn"] for turn in experiments[0]["turns"]])
        axes.grid(alpha=0.3)
    places[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _curve(experiments: Sequence[Experiment], confident: Sequence[Experiment]) -> "Figure":
    """What mode `confident` gives up, and what for, by threshold."""
    figure, (left, right) = _figure(2, 3.8)
    ordered = sorted(confident, key=lambda e: fixed_threshold(e) or 0.0)
    ends = [e for e in experiments if e["name"] in ("baseline", "edge_only", "cloud_only")]
    for metric, colour in (("agreement", "#1f6fb5"), ("exact_match", "#d1782c")):
        points = [
            (e["summary"]["forwards_per_token"] or 0.0, e["summary"][metric], f"{fixed_threshold(e):g}")
            for e in ordered
            if e["summary"][metric] is not None
        ]
        left.plot(
            [x for x, _, _ in points], [y for _, y, _ in points],
            color=colour, marker="o", label=HEADINGS[metric],
        )  # fmt: skip
        marked = [
            (e["summary"]["forwards_per_token"] or 0.0, e["summary"][metric], e["name"])
            for e in ends
            if e["summary"][metric] is not None
        ]
        left.plot([x for x, _, _ in marked], [y for _, y, _ in marked], "x", color=colour)
        for x, y, text in (*points, *marked):
            left.annotate(text, (x, y), textcoords="offset points", xytext=(4, 4), fontsize="x-small")
    left.set(xlabel="target forwards per token", ylim=(0, 1.08))
    thresholds = [fixed_threshold(e) or 0.0 for e in ordered]
    for metric in ("edge_share", "forwards_per_token"):
        right.plot(
            thresholds, [e["summary"][metric] or 0.0 for e in ordered], marker="o", label=HEADINGS[metric]
        )
    right.set(xlabel="threshold", ylim=(0, None))
    for axes in (left, right):
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def _png(figure: "Figure") -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
    return drawn.getvalue()


def page(report: Mapping[str, Any], drawn: Mapping[str, bytes]) -> str:
    """The whole document for a report as `ablation_report.json` has it, with its plots."""
    experiments = report["experiments"]
    facts = {
        "pair": f"{report['draft']} for {report['target']}",
        "machine": report["machine"],
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        "command": report["command"],
        "written": report["written"],
        "asked": f"{report['conversations']} conversations of {report['prompts_file']}, "
        f"{report['repeats']} times in each of {len(experiments)} conditions; {report['failed']} answers "
        "failed",
        "link": f"emulated, RTT {report['rtt_ms']:g} ms",
        "intervals": report["intervals"],
    }
    turns = len(experiments[0]["turns"])
    kinds = list(experiments[0]["classes"])
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>ecd ablate</title>"
        f"<style>{STYLE}{EXTRA_STYLE}</style><h1>ecd ablate</h1><table>"
        + "".join(f"<tr><th>{n}</th><td class=text>{escape(str(v))}</td></tr>" for n, v in facts.items())
        + "</table><h2>Conditions</h2>"
        + _table(("condition", "what it is", "settings that differ"), map(_described, experiments), "words")
        + "<h2>Summary</h2><p>Per answer, over all turns; in grey the 95 % interval.</p>"
        + _metrics(experiments, lambda experiment: experiment)
        + _image(drawn, "times.png")
        + _image(drawn, "work.png")
        + "<h2>Over the baseline</h2><p>Ratios, 1 is the same; same text: the share of answers whose tokens "
        "are all the baseline's.</p>"
        + _table(
            ("condition", *(HEADINGS[m] for m in COMPARED), "same text"),
            (
                [e["name"], *(_ratio(e["to_baseline"][m]) for m in COMPARED), _number(e["same_text"], 3)]
                for e in experiments
            ),
        )
        + "".join(
            f"<h2>Turn {turn + 1}</h2>" + _metrics(experiments, _of_turn(turn))
            for turn in range(turns if turns > 1 else 0)
        )
        + _image(drawn, "turns.png")
        + ("<h2>Mode confident by threshold</h2>" if "confident.png" in drawn else "")
        + _image(drawn, "confident.png")
        + "<h2>Exact match by class</h2>"
        + _table(
            ("condition", *map(escape, kinds)),
            (
                [e["name"], *(_number(e["classes"][kind]["exact_match"], 3) for kind in kinds)]
                for e in experiments
            ),
        )
        + "<h2>All answers</h2>"
        + "".join(map(_answers, experiments))
        + "<h2>Settings</h2>"
        + "".join(
            f"<details><summary>{escape(e['name'])}</summary>"
            f"<pre>{escape(json.dumps(e['config'], indent=1))}</pre></details>"
            for e in experiments
        )
        + "</html>"
    )


def _of_turn(turn: int) -> Callable[[Any], Any]:
    return lambda experiment: experiment["turns"][turn]


def _image(drawn: Mapping[str, bytes], name: str) -> str:
    if name not in drawn:
        return ""
    return f'<p><img alt="{name}" src="data:image/png;base64,{base64.b64encode(drawn[name]).decode()}">'


def _table(heads: Sequence[str], rows: Any, kind: str = "") -> str:
    """Of cells that are HTML already; `kind` is a class of the style."""
    top = "".join(f"<th>{head}</th>" for head in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table class='{kind}'><tr>{top}</tr>{body}</table></div>"


def _described(experiment: Experiment) -> list[str]:
    changes = [
        f"{escape(path)} {escape(json.dumps(change['baseline']))} &rarr; {escape(json.dumps(change['here']))}"
        for path, change in experiment["changes"].items()
    ]
    return [escape(experiment["name"]), escape(experiment["description"]), "<br>".join(changes)]


def _metrics(experiments: Sequence[Experiment], of: Callable[[Any], Any]) -> str:
    return _table(
        ("condition", *(heading for _, heading, _, _ in SHOWN)),
        (
            [
                escape(experiment["name"]),
                *(
                    _with_interval(
                        of(experiment)["summary"][name], of(experiment)["intervals"][name], digits, times
                    )
                    for name, _, digits, times in SHOWN
                ),
            ]
            for experiment in experiments
        ),
    )


def _with_interval(value: float | None, interval: Mapping[str, Any] | None, digits: int, times: float) -> str:
    if value is None or interval is None:
        return "-"
    lo, hi = interval["lo"] * times, interval["hi"] * times
    return f"{value * times:.{digits}f} <span class=lo>[{lo:.{digits}f}, {hi:.{digits}f}]</span>"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ratio(ratio: Mapping[str, Any] | None) -> str:
    return "-" if ratio is None else f"{ratio['median']:.2f} [{ratio['lo']:.2f}, {ratio['hi']:.2f}]"


def _answers(experiment: Experiment) -> str:
    rows = (
        [
            f"{told['conversation']}.{told['turn']}.{told['repeat'] + 1}",
            escape(told["class"]),
            _number(told["latency_ms"], 0),
            _number(told["ttft_ms"], 0),
            str(told["forwards"]),
            str(told["cached_tokens"]),
            _number(told["agreement"], 3),
            {True: "right", False: "wrong", None: ""}[told["right"]],
            f"<details><summary>{escape(told['prompt'][:60])}</summary><pre>{escape(told['prompt'])}</pre>"
            f"<pre>{escape(told['error'] or told['text'])}</pre></details>",
        ]
        for told in experiment["prompts"]
    )
    heads = (
        "conversation.turn.repeat", "class", "latency ms", "TTFT ms", "forwards", "cached tokens",
        "agreement", "", "prompt and answer",
    )  # fmt: skip
    return f"<details><summary>{escape(experiment['name'])}</summary>{_table(heads, rows)}</details>"


def text_table(experiments: Sequence[Experiment]) -> str:
    """The summary for a terminal."""
    columns = [shown for shown in SHOWN if not shown[0].startswith("draft_")]
    rows = [["", *(heading for _, heading, _, _ in columns)]]
    for experiment in experiments:
        values = [(experiment["summary"][name], digits, times) for name, _, digits, times in columns]
        numbers = [_number(None if v is None else v * times, digits) for v, digits, times in values]
        rows.append([experiment["name"], *numbers])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
