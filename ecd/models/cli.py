"""`ecd models`: what models there are, getting, checking and finding them.

Owns the words on the terminal and the progress bar. Knows no model by name and touches no file itself.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator

import click
from click.shell_completion import CompletionItem

from ecd.errors import ModelError
from ecd.models import catalogue, fetch, store
from ecd.models.catalogue import Model


def model_names(context: click.Context, option: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a shell completes a model to: names, or files where no name begins so."""
    names = [CompletionItem(name) for name in catalogue.MODELS if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


@click.group()
def models() -> None:
    """List, get, check and find models."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of a table.")
def list_models(as_json: bool) -> None:
    """List the models that have a name, and whether they are here."""
    entries = list(catalogue.MODELS.values())
    if as_json:
        click.echo(json.dumps([_as_json(entry) for entry in entries], indent=2))
        return
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        megabytes = f"{entry.size / 1e6:,.0f} MB"
        click.echo(
            f"{entry.name:{width}}  {store.state(entry):11}  {megabytes:>8}  {entry.licence}  {entry.what}"
        )


def _as_json(entry: Model) -> dict[str, str | int]:
    return {
        "name": entry.name,
        "what": entry.what,
        "size": entry.size,
        "licence": entry.licence,
        "state": store.state(entry),
    }


@models.command("get")
@click.argument("names", shell_complete=model_names, nargs=-1, required=True, metavar="NAME...")
def get_models(names: tuple[str, ...]) -> None:
    """Get models into the store, going on where an earlier call stopped."""
    for name in names:
        with progress_bar() as progress:
            file = fetch.get(name, progress)
        click.echo(f"{name}: {file}")


@models.command("verify")
@click.argument("names", shell_complete=model_names, nargs=-1, metavar="[NAME...]")
def verify_models(names: tuple[str, ...]) -> None:
    """Hash all files of NAMEs, or of every model that is here."""
    here = [entry.name for entry in catalogue.MODELS.values() if store.place_of(entry).exists()]
    results = [_verify(name) for name in names or here]
    if not all(results):
        sys.exit(1)


def _verify(name: str) -> bool:
    try:
        with progress_bar() as progress:
            store.verify(name, progress)
    except ModelError as error:
        click.echo(f"error: {error}", err=True)
        return False
    click.echo(f"{name}: ok")
    return True


@models.command("path")
@click.argument("name", shell_complete=model_names)
def print_path(name: str) -> None:
    """Print where the file or folder of NAME is."""
    file = store.path(name)
    if file is None:
        raise ModelError(f"{name} is not in {store.root()}; run `ecd models get {name}`")
    click.echo(file)


@contextlib.contextmanager
def progress_bar() -> Iterator[store.Progress]:
    """One bar on stderr after the other, a new one whenever the step changes."""
    with contextlib.ExitStack() as stack:
        step, at = "", 0
        advance: Callable[[int], None] = click.progressbar(length=0).update

        def progress(what: str, done: int, total: int, /) -> None:
            nonlocal step, at, advance
            if what != step:
                stack.close()
                bar = click.progressbar(length=total, label=what, file=sys.stderr)
                advance = stack.enter_context(bar).update
                step, at = what, 0
            advance(done - at)
            at = done

        yield progress
