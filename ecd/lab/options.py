"""What the commands of the laboratory take: finite numbers, lists of them, files that can be written.

Owns the types of their options, so that what makes no sense is refused before anything is started. Knows no
command.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

HOUR_MS = 3_600_000.0


class FiniteFloatRange(click.FloatRange):
    """A range of numbers; nan, which every comparison lets through, and inf are in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Fails with click's usage error."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def listed(each: "click.ParamType[Any]") -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Click callback for values of one type with commas between them: a sorted tuple, each once."""

    def convert(context: click.Context, option: click.Parameter, value: str | None) -> Any:
        if value is None:
            return None
        try:
            return tuple(sorted({each.convert(part, option, context) for part in value.split(",")}))
        except click.BadParameter as e:
            raise click.BadParameter(f"{value!r} is not a list like 1,20,50: {e.message}") from None

    return convert


class FileToWrite(click.Path):
    """A file that will be written in the end: whether it can be is found out now."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Fails with click's usage error when its folder is missing or closed to us."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        folder = path.parent
        if not folder.is_dir():
            self.fail(f"{str(path)!r}: there is no folder {str(folder)!r}; create it first.", param, ctx)
        if not path.exists() and not os.access(folder, os.W_OK | os.X_OK):
            self.fail(f"{str(path)!r}: the folder {str(folder)!r} is not writable.", param, ctx)
        return path


# Times of a link, a draft or a step; an hour is far beyond any that is meant.
MS = FiniteFloatRange(0, HOUR_MS)
MS_ABOVE_0 = FiniteFloatRange(0, HOUR_MS, min_open=True)
# A cost as a share of another one.
SHARE = FiniteFloatRange(0, 100)
SECONDS = FiniteFloatRange(1, 3600)  # of a measurement
THREADS = click.IntRange(1, 1024)
# An answer; prompt and answer must fit into the 4096 tokens of a session.
TOKENS = click.IntRange(2, 2048)
REPEATS = click.IntRange(1, 1000)
SEED = click.IntRange(0, (1 << 63) - 1)
FILE = FileToWrite()
