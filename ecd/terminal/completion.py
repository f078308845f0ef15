"""`completion SHELL` of both programs: what a shell needs to complete their commands, options and values."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    For the shell that runs now:

    \b
      bash  eval "$(ecdctl completion bash)"
      zsh   eval "$(ecdctl completion zsh)"
      fish  ecdctl completion fish | source

    In every shell: put that line into ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish. The same goes for
    `ecd completion`, which completes `ecd`.
    """
    program = context.find_root()
    name = program.info_name or ""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(program.command, {}, name, f"_{name}_COMPLETE".upper()).source())
