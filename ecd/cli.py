"""`ecd`: the daemons, the models, the oracle and its check."""

import json
import random
from pathlib import Path
from typing import Any, TextIO

import click

from ecd import __version__
from ecd.config import CloudConfig, EdgeConfig, load_config
from ecd.errors import BadRequest
from ecd.lab.calibrate import calibrate
from ecd.lab.plan import plan
from ecd.models.cli import model_names, models
from ecd.options import (
    EXIT_INTERRUPTED,
    EXIT_STATUS,
    HELP_WIDTH,
    json_map,
    output_options,
    parse_bias,
    prompt_text,
    rule_option,
    run_program,
    sampling_options,
    template_option,
)
from ecd.terminal.completion import completion
from ecd.trust.cli import token

# Engines are imported by the commands that need them, so that `ecd --help` and `ecd models` answer at once.


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
    epilog=f"""\b
Examples:
  ecd models get smollm2-135m smollm2-135m-draft
  ecd cloud --model smollm2-135m --listen 127.0.0.1:7040
  ecd edge --model smollm2-135m-draft --cloud 127.0.0.1:7040
  ecd edge --check --config edge.yaml
  ecd token create berlin --file tokens.json
  ecd plan --rtt 20,100 --socket /run/ecd/edge.sock

{EXIT_STATUS}
\b
Signals, for `ecd cloud` and `ecd edge`:
  SIGTERM  drains: running answers finish within `drain_s`, nothing new starts
  SIGINT   ends what runs; a second signal ends at once, with {EXIT_INTERRUPTED}
  SIGHUP   the cloud reads its certificate and its tokens again

\b
Environment:
  ECD_MODELS       where models are kept; default ecd/models in XDG_CACHE_HOME
                   or ~/.cache
  ECD_MODELS_FROM  a folder with published model files, tried first
  XDG_RUNTIME_DIR  has ecd/edge.sock and ecd/cloud.sock; without it they are
                   in /tmp/ecd-UID

`ecd COMMAND --help` tells more about each command, `ecd completion --help` how a shell completes them.
""",
)
@click.version_option(__version__, prog_name="ecd")
def cli() -> None:
    """Edge-cloud speculative decoding: a draft model here, the target's exact text from the cloud.

    `cloud` and `edge` are the daemons, `models` gets what they serve, `token` says which edges a cloud lets
    in, `oracle`, `check` and `soak` prove their text, `plan` and `bench` tell what drafting gives,
    `calibrate` how sure a draft may be, `ablate` what each part contributes. `ecdctl` talks to a running
    daemon.
    """


cli.add_command(models)
cli.add_command(plan)
cli.add_command(token)
cli.add_command(calibrate)
cli.add_command(completion)

_config = click.option(
    "--config", "file", type=click.Path(path_type=Path), help="YAML file with settings; flags override it."
)
_check = click.option("--check", is_flag=True, help="Validate the settings and exit.")
_model = click.option(
    "--model", shell_complete=model_names, help="Path of a GGUF file, or a name from `ecd models list`."
)
_threads = click.option("--threads", type=int, help="Threads of the engine.  [default: 1]")
_socket = click.option("--socket", type=click.Path(path_type=Path), help="Where the control socket lies.")
_sessions = click.option("--sessions", type=int, help="Sessions at once.  [default: 8]")
_context = click.option("--context-tokens", type=int, help="Context of each session.  [default: 4096]")


@cli.command()
@click.option(
    "--model",
    shell_complete=model_names,
    help="A name from `ecd models list`, or a path: a GGUF file, for vLLM a folder.",
)
@click.option(
    "--engine", type=click.Choice(["llama", "vllm"]), help="What the target runs on.  [default: llama]"
)
@click.option("--engine-args", metavar="JSON", callback=json_map, help="Arguments of vLLM's engine, by name.")
@click.option("--listen", metavar="HOST:PORT", help="Where edges connect.  [default: 127.0.0.1:7040]")
@_threads
@_socket
@_sessions
@_context
@click.option(
    "--assist",
    metavar="MODEL",
    shell_complete=model_names,
    help="The edges' draft model: long prompts are read for slow edges.",
)
@click.option("--metrics", metavar="HOST:PORT", help="Where Prometheus finds /metrics.  [default: nowhere]")
@click.option("--max-verify", type=int, help="Most hints verified per session and forward.  [default: 16]")
@click.option(
    "--stable", is_flag=True, default=None, help="Bit for bit what the target computes alone; slow."
)
@_config
@_check
def cloud(file: Path | None, check: bool, **flags: Any) -> None:
    """Serve the target model to edges.

    Runs until a signal ends it, and is ready when it logs `ready:`. Flags go over the file of --config, which
    has more settings; README.md lists them.

    \b
    Examples:
      ecd cloud --model smollm2-135m --listen 127.0.0.1:7040
      ecd cloud --engine vllm --model Qwen/Qwen3-8B --sessions 64
    """
    config = load_config(CloudConfig, file, flags)
    from ecd.cloud.main import check_installed, run_cloud

    if check:
        check_installed(config)
        click.echo("settings are valid")
        return
    run_cloud(config)


@cli.command()
@_model
@click.option("--cloud", metavar="HOST:PORT", help="The cloud to connect to.  [default: 127.0.0.1:7040]")
@_threads
@_socket
@_sessions
@_context
@click.option(
    "--objective",
    type=click.Choice(["latency", "balanced", "cost"]),
    help="What to pace for: speed, or few target forwards.  [default: balanced]",
)
@click.option(
    "--mode",
    type=click.Choice(["exact", "confident", "edge-only", "cloud-only"]),
    help="Who chooses the tokens of requests that do not say.  [default: exact]",
)
@click.option("--ahead-tokens", type=int, help="Draft at most so far ahead.  [default: as far as pays]")
@click.option(
    "--lookup/--no-lookup", default=None, help="Hint text copied from prompt and answer.  [default: on]"
)
@click.option(
    "--http",
    "http__listen",
    metavar="HOST:PORT",
    help="Where the OpenAI-compatible API listens.  [default: 127.0.0.1:8082]",
)
@click.option(
    "--no-http", "http", is_flag=True, flag_value=False, default=None, help="No HTTP, whatever else is set."
)
@_config
@_check
def edge(file: Path | None, check: bool, **flags: Any) -> None:
    """Draft beside the user, and serve local programs.

    Runs until a signal ends it. It connects to the cloud, again and again if need be; `ecdctl status` says
    how the link is. Flags go over the file of --config, which has more settings; README.md lists them.

    \b
    Examples:
      ecd edge --model smollm2-135m-draft --cloud 127.0.0.1:7040
      ecd edge --config /etc/ecd/edge.yaml --objective latency
    """
    config = load_config(EdgeConfig, file, flags)
    from ecd.edge.main import check_installed, run_edge

    if check:
        check_installed(config)
        click.echo("settings are valid")
        return
    run_edge(config)


@cli.command()
@click.argument("prompt")
@click.option(
    "--model",
    required=True,
    shell_complete=model_names,
    help="The target: path of a GGUF file, or a name from `ecd models list`.",
)
@click.option("--threads", type=int, default=1, show_default=True, help="Threads of the engine.")
@sampling_options
@rule_option
@template_option
@output_options
def oracle(
    prompt: str,
    model: str,
    threads: int,
    temperature: float,
    seed: int | None,
    max_tokens: int,
    stop: tuple[str, ...],
    mode: str,
    chat: bool,
    as_json: bool,
    logit_bias: tuple[str, ...],
    logprobs: int | None,
    **shaping: Any,
) -> None:
    """What the target alone answers, by the same rules. PROMPT `-` reads standard input.

    One process without drafts and without a network: the text that an edge must give for the same options.

    \b
    Example:
      ecd oracle --model smollm2-135m --temperature 0.8 --seed 7 "Name a colour."
    """
    from ecd.engine.llama import LlamaModel
    from ecd.models.forms import gguf_file
    from ecd.oracle import generate
    from ecd.prompt import prompt_tokens
    from ecd.sampling import Sampling

    if seed is None:
        seed = random.SystemRandom().getrandbits(32)
    biases = tuple(parse_bias(logit_bias))
    sampling = Sampling.of(mode, temperature, seed=seed, logit_bias=biases, **shaping)
    target = LlamaModel(gguf_file(model))
    ids = prompt_tokens(target, prompt_text(prompt), chat=chat)
    answer = generate(
        target,
        ids,
        sampling,
        max_tokens=max_tokens,
        stop=stop,
        threads=threads,
        on_text=lambda text: None if as_json else click.echo(text, nl=False),
        logprobs=logprobs,
    )
    if not as_json:
        click.echo()
        return
    result = {
        "model": model,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "prompt_token_ids": ids,
        "origins": ["target"] * len(answer.token_ids),
        **({} if answer.logprobs is None else {"logprobs": [each.to_map() for each in answer.logprobs]}),
        "finish_reason": answer.finish_reason,
        "seed": seed,
        "sampling": sampling.to_map(),
        "stop": stop,
        "max_tokens": max_tokens,
        "usage": {
            "prompt_tokens": len(ids),
            "completion_tokens": len(answer.token_ids),
            "total_tokens": len(ids) + len(answer.token_ids),
        },
    }
    click.echo(json.dumps(result, ensure_ascii=False))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--model", required=True, shell_complete=model_names, help="The target that the run was made with."
)
@click.option("--threads", type=int, default=1, show_default=True, help="Threads of the engine.")
@click.option("--tolerance", type=click.FloatRange(min=0), default=None, help="In logits.  [default: 0.25]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with a map for each token.")
@click.pass_context
def check(
    context: click.Context, run: Path, model: str, threads: int, tolerance: float | None, as_json: bool
) -> None:
    """Check a run token by token against the target.

    RUN is a file that `ecdctl run --json` or `ecd oracle --json` printed, `-` for standard input. Exit status
    1 also says that a token is out of tolerance.

    \b
    Example:
      ecdctl run --json "Name a colour." | ecd check --model smollm2-135m -
    """
    from ecd.engine.llama import LlamaModel
    from ecd.models.forms import gguf_file
    from ecd.oracle import TOLERANCE
    from ecd.oracle import check as check_run

    try:
        given = json.loads(click.open_file(str(run)).read())
    except (ValueError, OSError) as e:
        raise BadRequest(f"{run} is not the JSON of a run: {e}") from None
    report = check_run(
        LlamaModel(gguf_file(model)),
        given,
        tolerance=TOLERANCE if tolerance is None else tolerance,
        threads=threads,
    )
    summary = report.to_map()
    if as_json:
        click.echo(json.dumps(summary))
    else:
        for line in summary.pop("checks"):
            if not line["is_choice"]:
                gap = (
                    "dropped by truncation"
                    if line["gap"] is None
                    else f"{line['gap']:.4f} logits from the choice"
                )
                click.echo(f"position {line['position']}: token {line['token']} is {gap}")
        click.echo(", ".join(f"{name} {value}" for name, value in summary.items()))
    context.exit(1 if report.wrong else 0)


@cli.command()
@click.argument("trace", type=click.File(encoding="utf-8"))
@click.pass_context
def retrace(context: click.Context, trace: TextIO) -> None:
    """Tell a session's state machine again what TRACE says, and compare what it answers.

    TRACE is a file that `ecdctl trace --json` printed, `-` for standard input. Exit status 1 also says that
    the machine of this release answers otherwise; then the first difference is printed.

    \b
    Example:
      ecdctl trace 17 --json | ecd retrace -
    """
    from ecd.tracing import retrace as again

    events, difference = again(trace.read())
    if difference is None:
        click.echo(f"{events} events, the same answers")
        return
    click.echo(f"event {difference.number}, {difference.event}, was answered otherwise")
    click.echo(f"then: {json.dumps(difference.recorded, ensure_ascii=False)}")
    click.echo(f"now:  {json.dumps(difference.replayed, ensure_ascii=False)}")
    context.exit(1)


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> Any:
    """Measure ecd beside its alternatives; see `ecd bench --help`."""
    # Handed on whole: what the benchmarks import is loaded only when one is asked for.
    from ecd.lab.bench import bench as benchmarks

    return benchmarks.main(list(arguments), prog_name="ecd bench", standalone_mode=False)


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def soak(arguments: tuple[str, ...]) -> Any:
    """Ask and ask while everything fails; see `ecd soak --help`."""
    from ecd.lab.soak import soak as soaking

    return soaking.main(list(arguments), prog_name="ecd soak", standalone_mode=False)


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def ablate(arguments: tuple[str, ...]) -> Any:
    """Find out what each part contributes; see `ecd ablate --help`."""
    from ecd.lab.ablation.command import ablate as ablating

    return ablating.main(list(arguments), prog_name="ecd ablate", standalone_mode=False)


def main() -> None:
    """Entry point of `ecd`."""
    run_program(cli, "ecd")
