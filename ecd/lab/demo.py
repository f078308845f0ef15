"""`bin/run`: one prompt through a cloud and an edge on this machine, two real processes over loopback TCP."""

import tempfile
from pathlib import Path
from typing import Any

import click

from ecd.client import BlockingClient
from ecd.lab.system import address_of, running_cloud, running_edge
from ecd.models.cli import progress_bar
from ecd.models.fetch import resolve
from ecd.options import run_program

PAIR = ("qwen2.5-coder-1.5b-bf16", "qwen2.5-coder-0.5b-q4_0")
SMALL_PAIR = ("smollm2-135m", "smollm2-135m-draft")
PROMPT = (
    "Write a Python function that checks whether a word is a palindrome, and explain it in two sentences."
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("prompt", default=PROMPT)
@click.option("--small", is_flag=True, help="The SmolLM2 pair: 190 MB instead of 5.5 GB, and quick.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True)
@click.option("--seed", type=int, default=None)
def demo(prompt: str, small: bool, **sampling: Any) -> None:
    """Answer PROMPT with a draft model and a target model, then say what it took."""
    target, draft = SMALL_PAIR if small else PAIR
    with progress_bar() as progress:
        for name in (target, draft):
            resolve(name, progress)
    click.echo(f"target {target} in `ecd cloud`, draft {draft} in `ecd edge`, on loopback\n", err=True)
    with (
        tempfile.TemporaryDirectory(prefix="ecd-") as name,
        running_cloud(Path(name), target) as cloud,
        running_edge(Path(name), draft, address_of(cloud)) as edge,
        BlockingClient(edge.socket) as client,
    ):
        for event in client.stream(prompt, **sampling):
            match event["event"]:
                case "text":
                    click.echo(event["text"], nl=False)
                case "done":
                    click.echo(f"\n\n{summary(event)}")


def summary(result: dict[str, Any]) -> str:
    """What an answer took, one line."""
    stats, tokens = result["stats"], result["usage"]["completion_tokens"]
    return (
        f"{tokens} tokens, {stats['tokens_per_s']:.1f} tokens/s, "
        f"acceptance rate {stats['acceptance_rate']:.2f}, "
        f"{stats['target_forwards'] / tokens:.2f} target forwards per token, "
        f"{stats['wire_bytes_up'] / tokens:.1f} bytes up and {stats['wire_bytes_down'] / tokens:.1f} down "
        "per token, "
        f"RTT {stats['rtt_ms'] or 0:.1f} ms"
    )


if __name__ == "__main__":
    run_program(demo, "bin/run")
