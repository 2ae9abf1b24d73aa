"""``everbatch keys``: API keys in a file."""

from __future__ import annotations

from pathlib import Path

import click

from api.key_editing import create_key, revoke_key
from api.keys import KeyFileError, read_keys

# Of the settings this is the only one read: keys can be changed while another is wrong.
file_option = click.option(
    "--file",
    "path",
    envvar="EVERBATCH_KEYS_FILE",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    show_envvar=True,
    help="The key file.",
)


@click.group()
def keys() -> None:
    """API keys, in the file that EVERBATCH_KEYS_FILE names. A running server sees a change within a second."""


@keys.command()
@click.option("--tenant", required=True, help="Whose it is: a name of a-z 0-9 _ -, at most 63 long.")
@file_option
def create(tenant: str, path: Path) -> None:
    """Add a key, and print it; it can never be shown again."""
    try:
        key, secret = create_key(path, tenant)
    except KeyFileError as error:
        raise click.ClickException(str(error)) from None
    click.echo(secret)
    click.echo(f"{key.id} of tenant {key.tenant}, in {path}. Keep the key: only its hash is stored.", err=True)


@keys.command("list")
@file_option
def list_keys(path: Path) -> None:
    """Show the keys by their ids."""
    try:
        ring = read_keys(path)
    except KeyFileError as error:
        raise click.ClickException(str(error)) from None
    for key in ring.keys:
        click.echo(f"{key.id}  {key.created}  {key.hash[:15]}…  {key.tenant}")


@keys.command()
@click.argument("key_id", metavar="ID")
@file_option
def revoke(key_id: str, path: Path) -> None:
    """Take a key out of the file."""
    try:
        key = revoke_key(path, key_id)
    except KeyFileError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{key.id} of tenant {key.tenant} is revoked.", err=True)
