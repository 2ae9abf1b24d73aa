"""``everbatch keys``: API keys in a file."""

from __future__ import annotations

from pathlib import Path

import click

from activities.settings import Settings
from api.key_editing import create_key, revoke_key
from api.keys import KeyFileError, read_keys

file_option = click.option(
    "--file",
    "path",
    default=None,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The key file. [EVERBATCH_KEYS_FILE]",
)


@click.group()
def keys() -> None:
    """API keys, in the file that EVERBATCH_KEYS_FILE names. A running server sees a change within a second."""


@keys.command()
@click.option("--tenant", required=True, help="Whose it is: a name of a-z 0-9 _ -, at most 63 long.")
@file_option
def create(tenant: str, path: Path | None) -> None:
    """Add a key, and print it; it can never be shown again."""
    path = _path(path)
    try:
        key, secret = create_key(path, tenant)
    except KeyFileError as error:
        raise click.ClickException(str(error)) from None
    click.echo(secret)
    click.echo(f"{key.id} of tenant {key.tenant}, in {path}. Keep the key: only its hash is stored.", err=True)


@keys.command("list")
@file_option
def list_keys(path: Path | None) -> None:
    """Show the keys by their ids."""
    try:
        ring = read_keys(_path(path))
    except KeyFileError as error:
        raise click.ClickException(str(error)) from None
    for key in ring.keys:
        click.echo(f"{key.id}  {key.created}  {key.hash[:15]}…  {key.tenant}")


@keys.command()
@click.argument("key_id", metavar="ID")
@file_option
def revoke(key_id: str, path: Path | None) -> None:
    """Take a key out of the file."""
    try:
        key = revoke_key(_path(path), key_id)
    except KeyFileError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{key.id} of tenant {key.tenant} is revoked.", err=True)


def _path(given: Path | None) -> Path:
    named = Settings.model_validate({}).keys_file
    if given is None and not named:
        raise click.UsageError("which file? Give --file or set EVERBATCH_KEYS_FILE.")
    return given or Path(named)
