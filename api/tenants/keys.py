"""Reads API keys, tenants and the tenants' limits from one TOML file.

::

    [[keys]]
    id = "key_5e1f09a2"
    tenant = "search"
    hash = "sha256:…"             # hash of the key; the key itself is not stored
    created = 2026-11-21

    [tenants.search]              # optional, as is each of its lines
    max_running_batches = 20
    max_queued_requests = 500_000
    max_stored_bytes = 100_000_000_000
    fairness_weight = 2.0

A tenant may have several keys, so that a key can be replaced without downtime.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from activities.toml_file import SettingsFileError, TomlFile, read_text

log = logging.getLogger("everbatch.api")

CHECK_SECONDS: Final = 1.0
"""The longest time in seconds until a change of the file takes effect."""
HASH_PREFIX: Final = "sha256:"

# A tenant's name is part of object keys in the store, of Temporal's fairness keys and of a search attribute.
TENANT_PATTERN: Final = "^[a-z0-9][a-z0-9_-]{0,62}$"
TenantName = Annotated[str, Field(pattern=TENANT_PATTERN)]


class _Table(BaseModel):
    # Unknown fields are errors, so that a misspelt limit is not ignored.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class TenantLimits(_Table):
    """The limits of one tenant. ``None`` means no limit."""

    max_running_batches: int | None = Field(default=None, ge=0)
    max_queued_requests: int | None = Field(default=None, ge=0)
    """Limit of the requests in all running batches of the tenant together."""
    max_stored_bytes: int | None = Field(default=None, ge=0)
    """Limit of the bytes in all files of the tenant, in uploads in progress and in the answers of running batches."""
    fairness_weight: float = Field(default=1.0, ge=0.01, le=10, strict=False)
    """The tenant's share of the upstreams while requests are queued, relative to tenants with weight 1."""


class Key(_Table):
    id: str = Field(pattern="^[A-Za-z0-9_-]{1,64}$")
    tenant: TenantName
    hash: str = Field(pattern=f"^{HASH_PREFIX}[0-9a-f]{{64}}$")
    created: datetime.date


class _File(_Table):
    keys: list[Key] = []
    tenants: dict[TenantName, TenantLimits] = {}


def key_hash(key: bytes) -> str:
    """Return the hash of a key. A key has 256 random bits, so one fast round of SHA-256 is enough against guessing."""
    return HASH_PREFIX + hashlib.sha256(key).hexdigest()


class KeyRing:
    """A snapshot of the keys and tenants in a key file."""

    def __init__(self, keys: Sequence[Key], tenants: dict[str, TenantLimits]) -> None:
        self.keys = list(keys)
        self.tenants = tenants
        self._hashes = [(key.hash.encode(), key.tenant) for key in keys]

    def tenant_of(self, key: bytes) -> str | None:
        """Return the tenant of a key, or ``None`` if the key is unknown. Hashes are compared in constant time."""
        given = key_hash(key).encode()
        found = None
        for known, tenant in self._hashes:
            if hmac.compare_digest(known, given):
                found = tenant
        return found

    def limits(self, tenant: str) -> TenantLimits:
        return self.tenants.get(tenant) or TenantLimits()


def parse_keys(text: str, name: str) -> KeyRing:
    """Parse the text of a key file, which error messages call ``name``.

    Raises:
        SettingsFileError: the text is not TOML, or its content is not valid.
    """
    file = TomlFile(text, name)
    content = file.as_model(_File)
    for field in ("id", "hash"):
        counts = Counter[str](getattr(key, field) for key in content.keys)
        for index, key in enumerate(content.keys):
            if counts[getattr(key, field)] > 1:
                raise file.error(("keys", index, field), "another key has the same")
    return KeyRing(content.keys, content.tenants)


def read_keys(path: Path) -> KeyRing:
    """Read the keys and tenants from a key file.

    Raises:
        SettingsFileError: the file cannot be read, is not TOML, or its content is not valid.
    """
    return parse_keys(read_text(path, str(path)), str(path))


class KeyFile:
    """A key file that is reloaded when it changes. If it becomes invalid, the last valid keys stay in use."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the key file.

        Raises:
            SettingsFileError: the file cannot be read, or its content is not valid.
        """
        self._path = path
        self._clock = clock
        self._checked_at = clock()
        self._seen = self._state()
        self._ring = read_keys(path)

    def current(self) -> KeyRing:
        """Return the keys as they were in the file at most :data:`CHECK_SECONDS` ago."""
        now = self._clock()
        if now - self._checked_at >= CHECK_SECONDS:
            self._checked_at = now
            # The state is taken before the file is read, so a change in between is noticed the next time.
            state = self._state()
            if state != self._seen:
                self._seen = state
                self._read_again()
        return self._ring

    def _read_again(self) -> None:
        try:
            self._ring = read_keys(self._path)
        except SettingsFileError as error:
            log.error("keeping the previous keys: %s", error)
        else:
            log.info("%s: reloaded, %d keys", self._path, len(self._ring.keys))

    def _state(self) -> tuple[int, ...]:
        """Return values that differ between two versions of the file, also if a symbolic link gets another target."""
        try:
            stat = os.stat(self._path)
        except OSError as error:
            return (error.errno or 0,)
        return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino
