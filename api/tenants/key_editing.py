"""Adds and removes keys in a key file, and leaves everything else in it as a person wrote it."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import re
import secrets
import tempfile
from collections.abc import Generator
from pathlib import Path

from activities.toml_file import SettingsFileError, read_text
from api.tenants.keys import TENANT_PATTERN, Key, KeyRing, key_hash, parse_keys

_HEADER = "# API keys and tenant limits of Everbatch. Running servers reload this file when it changes.\n"


def create_key(path: Path, tenant: str) -> tuple[Key, str]:
    """Add a new key for a tenant to a file, which is created if it does not exist.

    Returns the entry of the key in the file, and the key itself, which is not stored.

    Raises:
        SettingsFileError: the file cannot be used or written, or the tenant's name is invalid.
    """
    if not re.fullmatch(TENANT_PATTERN, tenant):
        raise SettingsFileError(
            f"{tenant!r:.100} is an invalid tenant name: use up to 63 of a-z 0-9 _ -, and no _ or - first"
        )
    secret = f"eb_{secrets.token_urlsafe(32)}"
    today = datetime.datetime.now(datetime.UTC).date()
    hashed = key_hash(secret.encode())
    lines = [f'id = "key_{secrets.token_hex(4)}"', f'tenant = "{tenant}"', f'hash = "{hashed}"', f"created = {today}"]
    entry = "\n".join(["[[keys]]", *lines, ""])
    key = parse_keys(entry, "the new key").keys[0]
    with _locked(path):
        text = read_text(path, str(path)) if path.exists() else ""
        before = parse_keys(text, str(path))
        joint = "" if not text else "\n" if text.endswith("\n") else "\n\n"
        _replace(path, (text or _HEADER + "\n") + joint + entry, before, [*before.keys, key])
    return key, secret


def revoke_key(path: Path, key_id: str) -> Key:
    """Remove the key with this id from a file, and return its entry.

    Raises:
        SettingsFileError: no key has this id, or the file cannot be used or written.
    """
    with _locked(path):
        text = read_text(path, str(path)) if path.exists() else ""
        before = parse_keys(text, str(path))
        for index, key in enumerate(before.keys):
            if key.id == key_id:
                rest = [other for other in before.keys if other.id != key_id]
                _replace(path, _without(text, index), before, rest)
                return key
    raise SettingsFileError(f"{path}: no key has the id {key_id}")


def _without(text: str, index: int) -> str:
    """Return the text without the lines of one key. Comments after its last line stay: they belong to what follows."""
    lines = text.splitlines(keepends=True)
    headers = [number for number, line in enumerate(lines) if re.match(r"\s*\[\[\s*keys\s*\]\]", line)]
    if index >= len(headers):
        return text
    first = last = headers[index]
    for number in range(first + 1, len(lines)):
        line = lines[number].strip()
        if line.startswith("["):
            break
        if line and not line.startswith("#"):
            last = number
    end = last + 1
    if end < len(lines) and not lines[end].strip():
        end += 1  # also remove one of the empty lines around the key
    return "".join(lines[:first] + lines[end:])


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    """Keep other processes from changing the file. The lock is on its folder because the file itself is replaced."""
    try:
        folder = os.open(path.resolve().parent, os.O_RDONLY)
    except OSError as error:
        raise SettingsFileError(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _replace(path: Path, text: str, before: KeyRing, wanted: list[Key]) -> None:
    """Replace the file by one with this text, after checking that only the keys differ.

    Raises:
        SettingsFileError: the text has other keys than ``wanted`` or other tenants, or the file cannot be written.
    """
    after = parse_keys(text, str(path))
    if after.keys != wanted or after.tenants != before.tenants:
        raise SettingsFileError(f"{path}: its keys are not written as [[keys]] tables; edit the file by hand")
    target = path.resolve()
    name = ""
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # readable only by its owner
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            with contextlib.suppress(FileNotFoundError):
                stat = os.stat(target)
                os.fchmod(descriptor, stat.st_mode & 0o777)
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, stat.st_uid, stat.st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(name, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)
        raise SettingsFileError(f"{path}: cannot be written: {error.strerror}") from None
