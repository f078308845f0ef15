"""`ecd token`: makes, lists and revokes the tokens of a cloud.

Owns the words on the terminal. The daemon reads the file again by itself.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from ecd.trust.files import change_tokens, load_tokens
from ecd.trust.settings import Limits
from ecd.trust.tokens import Token, new_secret

_file = click.option(
    "--file",
    type=click.Path(path_type=Path),
    required=True,
    help="The token file: `tokens` in the cloud's settings.",
)


@click.group()
def token() -> None:
    """Make, list and revoke the tokens that let edges in.

    A cloud whose settings name the file notices every change within a second or so, and then also ends
    connections whose token is no longer good.
    """


@token.command()
@click.argument("name")
@_file
@click.option("--days", type=click.IntRange(1, 36500), help="It expires after so long.  [default: never]")
@click.option("--sessions", type=click.IntRange(1), help="Sessions at once, running or waiting.")
@click.option("--prompt-tokens", type=click.IntRange(1), help="Longest prompt.")
@click.option("--hints-per-s", type=click.FloatRange(0, min_open=True), help="Hints, with frames and bytes.")
@click.option("--rejected-per-s", type=click.FloatRange(0, min_open=True), help="Hints verified in vain.")
@click.option("--bytes-in-flight", type=click.IntRange(1 << 16), help="What the cloud may hold for it.")
def create(name: str, file: Path, days: int | None, **limits: Any) -> None:
    """Make a token and print it, this once.

    NAME is the tenant's, in logs and statistics. What no option limits is limited by the cloud's `limits`.

    \b
    Examples:
      ecd token create berlin --file tokens.json
      ecd token create guest --file tokens.json --days 7 --sessions 2
    """
    secret, now = new_secret(), datetime.now(UTC).replace(microsecond=0)
    expires = None if days is None else now + timedelta(days=days)
    given = Limits(**{limit: value for limit, value in limits.items() if value is not None})
    change_tokens(file, lambda tokens: tokens.created(name, secret, now, expires, given))
    click.echo(secret)
    click.echo(f"Set `token` at the edge to this. Only its hash is in {file}.", err=True)


@token.command("list")
@_file
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of a table.")
def list_tokens(file: Path, as_json: bool) -> None:
    """List the tokens, and whether they are good."""
    tokens, now = load_tokens(file).tokens, datetime.now(UTC)
    if as_json:
        entries = [
            {
                **each.model_dump(mode="json", exclude={"sha256", "limits"}),
                "state": _state(each, now),
                "limits": each.limits.model_dump(exclude_unset=True),
            }
            for each in tokens
        ]
        click.echo(json.dumps(entries, indent=2))
        return
    width = max((len(each.name) for each in tokens), default=0)
    for each in tokens:
        own = ", ".join(
            f"{name} {value:g}" for name, value in each.limits.model_dump(exclude_unset=True).items()
        )
        click.echo(
            f"{each.name:{width}}  made {each.created:%Y-%m-%d}  {_state(each, now):22}  {own}".rstrip()
        )


@token.command()
@click.argument("name")
@_file
def revoke(name: str, file: Path) -> None:
    """Revoke a token: its edges are thrown out and not let in again.

    \b
    Example:
      ecd token revoke guest --file tokens.json
    """
    change_tokens(file, lambda tokens: tokens.revoked(name, datetime.now(UTC).replace(microsecond=0)))


def _state(each: Token, now: datetime) -> str:
    if each.revoked is not None:
        return f"revoked {each.revoked:%Y-%m-%d}"
    if each.expires is None:
        return "good"
    return f"{'expired' if each.expires <= now else 'good until'} {each.expires:%Y-%m-%d}"
