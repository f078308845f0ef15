"""What a conversation asks for: the options of `ecdctl run`, told again between two turns.

Owns the short forms (`temperature=0.8`, `no-draft`, `cost`). What an option takes, and what is wrong with a
value, is click's and ecd.options's business.
"""

import shlex
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from ecd.options import mode_options, pacing_options, run_arguments, sampling_options

Settings = Mapping[str, Any]


@sampling_options
@mode_options
@pacing_options
@click.command("/mode", add_help_option=False)
def mode(**settings: Any) -> None:
    """What may be set between two turns; never run, only parsed."""


def changed(now: Settings, line: str) -> dict[str, Any]:
    """The settings after `/mode LINE`; raises click's usage error, and then nothing has changed.

    Each word is NAME=VALUE (a switch is `on` or `off`), NAME= for the default, a switch's name (`no-draft`),
    or a value that only one option has (`cost`). A line that begins with a dash is taken as in a shell.
    """
    try:
        words = shlex.split(line)
    except ValueError as e:
        raise click.UsageError(f"{line!r}: {e}") from None
    options = words if line.startswith("-") else [_option(word) for word in words]
    cleared = {word.removesuffix("=").lstrip("-").replace("-", "_") for word in words if word.endswith("=")}
    context = mode.make_context(mode.name, [option for option in options if not option.endswith("=")])
    defaults = {option.name: option.get_default(context) for option in mode.params if option.name}
    if unknown := cleared - defaults.keys():
        raise click.UsageError(f"no setting is called {', '.join(sorted(unknown))}")
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    after = {**now, **{name: context.params[name] for name in cleared}, **given}
    run_arguments(**after)
    return after


def _option(word: str) -> str:
    for option in mode.params:
        if isinstance(option.type, click.Choice) and word in option.type.choices:
            return f"{option.opts[0]}={word}"
        if option.secondary_opts and word in (f"{option.name}=on", f"{option.name}=off"):
            return option.opts[0] if word.endswith("=on") else option.secondary_opts[0]
    return f"--{word}"


def told(settings: Settings) -> list[tuple[str, str]]:
    """Settings by name, as `/mode` takes them."""
    return [(name.replace("_", "-"), _shown(value)) for name, value in settings.items()]


def _shown(value: Any) -> str:
    match value:
        case None:
            return "default"
        case bool():
            return "on" if value else "off"
        case tuple():
            return " ".join(repr(each) for each in value) or "none"
        case _:
            return str(value)
