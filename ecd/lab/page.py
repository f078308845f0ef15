"""A streaming benchmark's report as one HTML file that needs nothing else.

Owns the looks. matplotlib is imported here and in `calibrate`; it comes with the extra `lab`.
"""

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from ecd.errors import ConfigError
from ecd.lab.runs import ALL

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { border-bottom: 1px solid #ddd; padding: .2em .6em; text-align: right; white-space: nowrap }
th { position: sticky; top: 0; background: #f4f4f4 }
svg { max-width: 100%; height: auto } code { font-size: 13px } .ecd td { background: #eef6ff }
"""
COLOURS = {
    "cloud": "#777777",
    "rounds": "#d1782c",
    "wait": "#8a5bb5",
    "ecd": "#1f6fb5",
    "ecd-no-alternates": "#58a65c",
}


def check_matplotlib(what: str = "--html") -> None:
    """Raises ConfigError that says how to get matplotlib, which `what` draws with, if it is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f"{what} draws with matplotlib, which is not installed: pip install 'ecd[lab]'")


def page(report: Mapping[str, Any]) -> str:
    """The whole document for a report as `--json` has it."""
    results = report["results"]
    kinds = list(dict.fromkeys(line["class"] for line in results))
    gains = [line for line in results if line.get("ratio_to_no_alternates")]
    title = "ecd bench stream" + (", emulated" if report["emulated"] else "")
    facts = {
        "machine": report["machine"],
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        "command": report["command"],
        "begun": report["started"],
        "runs": f"{len(report['runs'])} of {report['planned']}, {report['failed']} failed"
        + (", interrupted" if report["interrupted"] else ""),
        "answers": f"{report['differing']} of {report['answers']} differ from the most common to the prompt",
        "intervals": report["intervals"],
        "prediction": "the simulation of `ecd plan`, which knows no jitter and no stalls",
    }
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
        f"<h1>{title}</h1><table>"
        + "".join(
            f"<tr><th>{name}</th><td style='text-align:left;white-space:normal'>{escape(value)}</td></tr>"
            for name, value in facts.items()
        )
        + "</table><h2>Tokens/s over plain streaming from the cloud</h2>"
        + "<p>Points and bars: measured, with interval. Dotted: predicted.</p>"
        + "".join(_plot(kind, [line for line in results if line["class"] == kind]) for kind in kinds)
        + "<h2>ecd over the best of the others</h2>"
        + _table([line for line in results if line.get("ratio_to_best")], AGAINST_BEST)
        + (f"<h2>What alternates are worth</h2>{_table(gains, GAIN)}" if gains else "")
        + "<h2>All results</h2>"
        + _table(results, COLUMNS)
        + "</html>"
    )


def _plot(kind: str, lines: Sequence[Mapping[str, Any]]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    rtts_ms = sorted({line["rtt_ms"] for line in lines})
    for mode in dict.fromkeys(line["mode"] for line in lines):
        colour = COLOURS[mode]
        of_mode = sorted((line for line in lines if line["mode"] == mode), key=lambda line: line["rtt_ms"])
        measured = [line for line in of_mode if line["ratio_to_cloud"]]
        if measured:
            ratios = [line["ratio_to_cloud"] for line in measured]
            axes.errorbar(
                [rtts_ms.index(line["rtt_ms"]) for line in measured],
                [ratio["median"] for ratio in ratios],
                yerr=[
                    [ratio["median"] - ratio["lo"] for ratio in ratios],
                    [ratio["hi"] - ratio["median"] for ratio in ratios],
                ],
                color=colour,
                marker="o",
                capsize=3,
                label=str(mode),
            )
        predicted = [line for line in of_mode if line["predicted_ratio"] is not None]
        axes.plot(
            [rtts_ms.index(line["rtt_ms"]) for line in predicted],
            [line["predicted_ratio"] for line in predicted],
            ":",
            color=colour,
        )
    emulated = ", emulated" if any(line["emulated"] for line in lines) else ""
    axes.set_title(f"{'all prompts' if kind == ALL else kind}{emulated}", loc="left")
    axes.set_xticks(range(len(rtts_ms)), [f"{rtt_ms:g}" for rtt_ms in rtts_ms])
    axes.set_xlabel("RTT, ms")
    axes.set_ylabel("x cloud")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def ratio_words(ratio: Mapping[str, float] | None) -> str:
    """A ratio with its interval."""
    return "-" if ratio is None else f"{ratio['median']:.2f} [{ratio['lo']:.2f}, {ratio['hi']:.2f}]"


def _tokens_per_s(line: Mapping[str, Any]) -> str:
    rate = line["tokens_per_s"]
    return "-" if rate is None else f"{rate['median']:.1f} [{rate['min']:.1f}, {rate['max']:.1f}]"


def _gaps(line: Mapping[str, Any]) -> str:
    gaps = line["itl_ms"]
    return "-" if gaps is None else f"{gaps['p50']:.1f} / {gaps['p99']:.1f}"


def _cpu(line: Mapping[str, Any]) -> str:
    return f"{line['cpu_s']['edge']:.2f} / {line['cpu_s']['cloud']:.2f}"


def _mode(line: Mapping[str, Any]) -> str:
    return f"{line['mode']} k={line['k']}" if line["k"] else str(line["mode"])


def _kind(line: Mapping[str, Any]) -> str:
    return f"{line['class']} (emulated)" if line["emulated"] else str(line["class"])


Column = tuple[str, Callable[[Mapping[str, Any]], str]]
COLUMNS: tuple[Column, ...] = (
    ("RTT ms", lambda line: f"{line['rtt_ms']:g}"),
    ("class", _kind),
    ("mode", _mode),
    ("tokens/s [min, max]", _tokens_per_s),
    ("x cloud [95 %]", lambda line: ratio_words(line["ratio_to_cloud"])),
    ("predicted", lambda line: _number(line["predicted_ratio"], 2)),
    ("TTFT ms", lambda line: _number(line["ttft_ms"], 0)),
    ("ITL p50 / p99 ms", _gaps),
    ("forwards/token", lambda line: _number(line["forwards_per_token"], 2)),
    ("accepted/verified", lambda line: _number(line["acceptance_rate"], 2)),
    ("wasted drafts/token", lambda line: _number(line["wasted_drafts_per_token"], 2)),
    ("bytes up/token", lambda line: _number(line["bytes_up_per_token"], 1)),
    ("bytes down/token", lambda line: _number(line["bytes_down_per_token"], 1)),
    ("with TCP/IP headers, both ways", lambda line: _number(line["packet_bytes_per_token"], 1)),
    ("CPU s edge / cloud", _cpu),
    ("runs", lambda line: f"{line['runs']}" + (f", {line['failed']} failed" if line["failed"] else "")),
)
AGAINST_BEST: tuple[Column, ...] = (
    ("RTT ms", lambda line: f"{line['rtt_ms']:g}"),
    ("class", _kind),
    ("mode", _mode),
    ("best other", lambda line: str(line["best_other"])),
    ("over it [95 %]", lambda line: ratio_words(line["ratio_to_best"])),
)
GAIN: tuple[Column, ...] = (
    ("RTT ms", lambda line: f"{line['rtt_ms']:g}"),
    ("class", _kind),
    ("ecd over ecd-no-alternates [95 %]", lambda line: ratio_words(line["ratio_to_no_alternates"])),
)


def _table(lines: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    head = "".join(f"<th>{name}</th>" for name, _ in columns)
    rows = "".join(
        f"<tr class={line['mode']}>"
        + "".join(f"<td>{escape(str(show(line)))}</td>" for _, show in columns)
        + "</tr>"
        for line in lines
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def text_table(lines: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """The results for a terminal."""
    rows = [[name for name, _ in columns], *([str(show(line)) for _, show in columns] for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )
