"""Text as a terminal may show it: harmless, and coloured by where its tokens come from.

Owns the colours and when there are any. Knows events of `run`, and neither calls nor who prints.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, TextIO

import click

from ecd.control_characters import CONTROL_IN_TEXT

# The target's own words look as text always does, and what differs from them stands out.
STYLES: Mapping[str, Mapping[str, Any]] = {
    "target": {},
    "draft-accepted": {"fg": "green"},
    "edge-confident": {"fg": "yellow"},
    "edge-offline": {"fg": "magenta", "underline": True},
}


def wants_colour(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether colours may go to a stream: a terminal that has them, and no NO_COLOR (no-color.org)."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def harmless(text: str) -> str:
    """Text without control characters, so that no answer can move the cursor or set the clipboard."""
    return CONTROL_IN_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)


def json_line(value: Any) -> str:
    """JSON in which DEL and C1 are escaped as C0 is, so that a terminal obeys nothing in it."""
    line = json.dumps(value, ensure_ascii=False)
    return CONTROL_IN_TEXT.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def coloured(event: Mapping[str, Any]) -> str:
    """The text of an event `text` of `run`, each token's in the colour of its origin."""
    parts = zip(event["origins"], event["pieces"], strict=True)
    return "".join(
        click.style(harmless("".join(text for _, text in run)), **STYLES[origin])
        for origin, run in groupby(parts, key=lambda part: part[0])
    )


def legend(origins: Sequence[str]) -> str:
    """How many of an answer's tokens are of each origin, in their colours."""
    counts = Counter(origins)
    return "  ".join(
        click.style(f"{name} {counts[name]} ({counts[name] / len(origins):.0%})", **style)
        for name, style in STYLES.items()
        if counts[name]
    )


def key() -> str:
    """The colours and what they mean."""
    return "  ".join(click.style(name, **style) for name, style in STYLES.items())
