"""Command-line options that several commands of `ecd` and `ecdctl` share, and how both programs end.

Owns what the options are as arguments of the control socket's `run`, and the exit codes. Knows no command.
"""

import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click

from ecd.errors import EcdError
from ecd.logprobs import MAX_TOP
from ecd.sampling import Rule

Command = TypeVar("Command", bound=Callable[..., Any])

HELP_WIDTH = 100

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# Under every program's help; click takes \b for a paragraph whose lines stay as they are.
EXIT_STATUS = f"""\b
Exit status:
  0    done
  {EXIT_ERROR}    an error; stderr has one line that says what failed and what to do
  {EXIT_USAGE}    wrong usage of a command or an option
  {EXIT_INTERRUPTED}  interrupted by Ctrl-C
"""


def _with_json(context: click.Context, option: click.Parameter, count: int | None) -> int | None:
    # --json is eager, so that it is known here wherever it stands.
    if count is not None and not context.params["as_json"]:
        raise click.UsageError("--logprobs are printed with --json only; give both")
    return count


class Number(click.FloatRange):
    """A number in a range; click's own lets `nan` through, which is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Fails with click's usage error."""
        number = super().convert(value, param, ctx)
        return self.fail(f"{value!r} is not a number.", param, ctx) if math.isnan(number) else number


class ThresholdType(Number):
    """A confidence, or the word `adaptive`."""

    name = "threshold"

    def __init__(self) -> None:
        super().__init__(0, 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number or the word. Fails with click's usage error."""
        return value if value == "adaptive" else super().convert(value, param, ctx)


Option = Callable[[Any], Any]

# The ranges are those of ecd.sampling.
_SAMPLING: tuple[Option, ...] = (
    click.option(
        "--temperature",
        type=Number(0, 100),
        default=0.0,
        show_default=True,
        help="0 takes the most likely token.",
    ),
    click.option(
        "--top-p",
        type=Number(0, 1, min_open=True),
        default=1.0,
        show_default=True,
        help="Nucleus sampling; 1 is off.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(0, 1 << 24),
        default=0,
        show_default=True,
        help="Only the k most likely; 0 is off.",
    ),
    click.option(
        "--min-p",
        type=Number(0, 1),
        default=0.0,
        show_default=True,
        help="Share of the most likely; 0 is off.",
    ),
    click.option(
        "--repetition-penalty", type=Number(0.01, 100), default=1.0, show_default=True, help="1 is off."
    ),
    click.option(
        "--presence-penalty", type=Number(-100, 100), default=0.0, show_default=True, help="0 is off."
    ),
    click.option(
        "--frequency-penalty", type=Number(-100, 100), default=0.0, show_default=True, help="0 is off."
    ),
    click.option(
        "--logit-bias", metavar="ID=BIAS", multiple=True, help="Adds to a token id's logit; repeatable."
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, (1 << 64) - 1),
        default=None,
        help="Same seed, same text. Drawn and told when not given.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        default=256,
        show_default=True,
        help="The answer is cut after so many.",
    ),
    click.option("--stop", metavar="TEXT", multiple=True, help="End before this text; repeatable."),
)

rule_option = click.option(
    "--mode",
    type=click.Choice(["exact", *(rule.value for rule in Rule)]),
    default="exact",
    show_default=True,
    help="exact: greedy at temperature 0, coupled above it.",
)

_MODE: tuple[Option, ...] = (
    click.option(
        "--mode",
        type=click.Choice(["exact", "confident", "edge-only", "cloud-only", *(rule.value for rule in Rule)]),
        default=None,
        help="Who chooses tokens: the target (exact, cloud-only, or a rule by name), the draft where it is "
        "sure enough (confident), the draft alone.  [default: the edge's]",
    ),
    click.option(
        "--threshold",
        type=ThresholdType(),
        default=None,
        help="How sure is sure enough, 0 to 1; `adaptive` finds it.  [default: the edge's]",
    ),
    click.option(
        "--target-agreement",
        type=Number(0.5, 0.999),
        default=None,
        help="Of the draft's tokens, how many the target is to agree with under `adaptive`, 0.5 to 0.999.  "
        "[default: the edge's]",
    ),
    click.option(
        "--audit-share",
        type=Number(0, 1),
        default=None,
        help="Of the draft's tokens, how many the cloud compares with its own, 0 to 1.  "
        "[default: the edge's]",
    ),
)

_PACING: tuple[Option, ...] = (
    click.option(
        "--draft/--no-draft", default=True, help="Without drafts it is plain streaming from the cloud."
    ),
    click.option(
        "--objective",
        type=click.Choice(["latency", "balanced", "cost"]),
        default=None,
        help="What to pace for.  [default: the edge's]",
    ),
    click.option(
        "--patience-ms",
        type=Number(0, 4_294_967),
        default=None,
        help="How long the cloud may hold a step back for hints.",
    ),
    click.option(
        "--kv-cache/--no-kv-cache",
        "kv_cache",
        default=None,
        help="Whether what was computed for earlier texts may be used.  [default: the edge's]",
    ),
    click.option(
        "--rounds",
        type=click.IntRange(1, 64),
        default=None,
        help="Strict draft-verify rounds of so many hints.",
    ),
    click.option(
        "--link-loss",
        type=click.Choice(["wait", "degrade", "fail"]),
        default=None,
        help="Without a cloud: wait for one, go on from the draft, or fail.  [default: the edge's]",
    ),
)

_OUTPUT: tuple[Option, ...] = (
    click.option(
        "--logprobs",
        type=click.IntRange(0, MAX_TOP),
        default=None,
        metavar="N",
        callback=_with_json,
        help="Also each token's log-probability and those of the N most likely, 0 to 20; with --json.",
    ),
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        is_eager=True,
        help="Print one JSON object at the end instead of text.",
    ),
)


template_option = click.option(
    "--chat/--raw", "chat", default=True, help="Use the model's chat template, or the text as it is."
)


def sampling_options(command: Command) -> Command:
    """Adds the options that decide the text."""
    return _with(_SAMPLING, command)


def mode_options(command: Command) -> Command:
    """Adds the options that decide who chooses the tokens."""
    return _with(_MODE, command)


def pacing_options(command: Command) -> Command:
    """Adds the options that decide how fast it comes and what it costs."""
    return _with(_PACING, command)


def output_options(command: Command) -> Command:
    """Adds the options that decide how one answer is printed."""
    return _with(_OUTPUT, command)


def _with(options: tuple[Option, ...], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def run_arguments(
    *,
    logit_bias: tuple[str, ...],
    stop: tuple[str, ...],
    patience_ms: float | None,
    rounds: int | None,
    **others: Any,
) -> dict[str, Any]:
    """Sampling and pacing options as arguments of the control socket's `run`; raises click's usage error."""
    args = {
        **others,
        "logit_bias": parse_bias(logit_bias),
        "stop": list(stop),
        "patience_ms": patience_ms,
    }
    if rounds is not None:
        args |= {"patience_ms": "rounds", "hint_tokens": rounds, "ahead_tokens": rounds}
    return args


def parse_bias(pairs: tuple[str, ...]) -> list[tuple[int, float]]:
    """`ID=BIAS` options as numbers; raises click's usage error."""
    biases = []
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            biases.append((int(token), float(bias)))
        except ValueError:
            raise click.BadParameter(f"{pair!r} is not ID=BIAS", param_hint="--logit-bias") from None
        if not (0 <= biases[-1][0] < 1 << 24 and -1000 <= biases[-1][1] <= 1000):
            raise click.BadParameter(
                f"{pair!r} is not in the range: ids are below {1 << 24}, biases in -1000 to 1000",
                param_hint="--logit-bias",
            )
    return biases


def json_map(context: click.Context, option: click.Parameter, text: str | None) -> dict[str, Any] | None:
    """Click callback for a map written as JSON."""
    if text is None:
        return None
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise click.BadParameter(f"{text!r} is not a JSON object; for example '{{\"max_model_len\": 8192}}'")
    return given


def prompt_text(prompt: str) -> str:
    """The prompt argument; `-` stands for standard input."""
    return sys.stdin.read() if prompt == "-" else prompt


def run_program(command: click.Command, name: str) -> NoReturn:
    """Runs a command line and ends the process: an error is one line on stderr, whatever raised it."""
    try:
        sys.exit(command.main(prog_name=name, standalone_mode=False) or 0)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except EcdError as e:
        click.echo(f"error: {e}", err=True)
        sys.exit(EXIT_ERROR)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_ERROR)
