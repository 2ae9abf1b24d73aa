"""``everbatch keys``: manages the API keys in a key file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from activities.toml_file import SettingsFileError
from api.tenants.key_editing import create_key, revoke_key
from api.tenants.keys import read_keys

# No other setting is read, so keys can be changed while another setting is invalid.
file_option = click.option(
    "--file",
    "path",
    envvar="EVERBATCH_KEYS_FILE",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    show_envvar=True,
    help="The key file.",
)


class _KeyCommands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingsFileError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=_KeyCommands)
def keys() -> None:
    """Manage API keys in the file that EVERBATCH_KEYS_FILE names. A running server notices a change within a second."""


@keys.command()
@click.option("--tenant", required=True, help="Tenant of the key: up to 63 of a-z 0-9 _ -.")
@file_option
def create(tenant: str, path: Path) -> None:
    """Create a key and print it. It cannot be shown again."""
    key, secret = create_key(path, tenant)
    click.echo(secret)
    click.echo(f"{key.id} of tenant {key.tenant}, in {path}. Keep the key: only its hash is stored.", err=True)


@keys.command("list")
@file_option
def list_keys(path: Path) -> None:
    """List the keys, without their secrets."""
    for key in read_keys(path).keys:
        click.echo(f"{key.id}  {key.created}  {key.hash[:15]}…  {key.tenant}")


@keys.command()
@click.argument("key_id", metavar="ID")
@file_option
def revoke(key_id: str, path: Path) -> None:
    """Remove a key from the file."""
    key = revoke_key(path, key_id)
    click.echo(f"{key.id} of tenant {key.tenant} is revoked.", err=True)
