"""A benchmark's rows: printed as they come, and kept in a file that says where they were measured.

Owns what such tables and files have in common. Knows no row's fields.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ecd.lab.host import describe_machine, versions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")
EMULATED = "emulated  "


def publish_emulated(
    rows: Iterable[Row], header: str, line_of: Callable[[Row], str], out: Path | None, **facts: Any
) -> None:
    """Prints each row of replayed engines as soon as it is there; then all go to `out`, `facts` beside them.

    Every row says that it is emulated, on the terminal as in the file.
    """
    click.echo(indent(header, " " * len(EMULATED)))
    made = []
    for row in rows:
        click.echo(EMULATED + line_of(row))
        made.append({"emulated": True} | asdict(row))
    if out:
        save(out, made, emulated=True, **facts)


def save(out: Path, results: Sequence[dict[str, Any]], **facts: Any) -> None:
    """Writes results as JSON, with machine, versions and `facts`."""
    report = {"machine": describe_machine(), "versions": versions(), **facts, "results": results}
    out.write_text(json.dumps(report, indent=1))
