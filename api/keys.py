"""Who may come in, and how much they may use: one TOML file of API keys and tenants.

::

    [[keys]]
    id = "key_5e1f09a2"
    tenant = "search"
    hash = "sha256:…"             # of the key, which itself is kept nowhere
    created = 2026-11-21

    [tenants.search]              # optional, and so is every line of it
    max_running_batches = 20
    max_queued_requests = 500_000
    max_stored_bytes = 100_000_000_000
    fairness_weight = 2.0

A tenant may have several keys, so that one can follow another without a gap.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import logging
import os
import re
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

log = logging.getLogger("everbatch.api")

CHECK_SECONDS: Final = 1.0
"""How long a change of the file may go unseen."""
HASH_PREFIX: Final = "sha256:"

# Part of the store's keys, Temporal's fairness key and a search attribute.
TENANT_PATTERN: Final = "^[a-z0-9][a-z0-9_-]{0,62}$"
TenantName = Annotated[str, Field(pattern=TENANT_PATTERN)]


class KeyFileError(Exception):
    """The key file cannot be used; the message says why and where, and repeats no value of it."""


class _Table(BaseModel):
    # A limit whose name is misspelt is no limit.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class TenantLimits(_Table):
    """What one tenant may use; ``None`` is without a limit."""

    max_running_batches: int | None = Field(default=None, ge=0)
    max_queued_requests: int | None = Field(default=None, ge=0)
    """In all running batches together."""
    max_stored_bytes: int | None = Field(default=None, ge=0)
    """In all files together, results included."""
    fairness_weight: float = Field(default=1.0, ge=0.01, le=10, strict=False)
    """Its share of the inference server while there is a backlog, against others of weight 1."""


class Key(_Table):
    id: str = Field(pattern="^[A-Za-z0-9_-]{1,64}$")
    tenant: TenantName
    hash: str = Field(pattern=f"^{HASH_PREFIX}[0-9a-f]{{64}}$")
    created: datetime.date


class _File(_Table):
    keys: list[Key] = []
    tenants: dict[TenantName, TenantLimits] = {}


def key_hash(key: bytes) -> str:
    """A key is 256 random bits: nothing slower than one round is needed to keep it from being guessed."""
    return HASH_PREFIX + hashlib.sha256(key).hexdigest()


class KeyRing:
    """The keys and tenants of a file, as they were at one moment."""

    def __init__(self, keys: Sequence[Key], tenants: dict[str, TenantLimits]) -> None:
        self.keys = list(keys)
        self.tenants = tenants
        self._hashes = [(key.hash.encode(), key.tenant) for key in keys]

    def tenant_of(self, key: bytes) -> str | None:
        """Whose key it is. Takes as long for a key that is almost right as for any other."""
        given = key_hash(key).encode()
        found = None
        for known, tenant in self._hashes:
            if hmac.compare_digest(known, given):
                found = tenant
        return found

    def limits(self, tenant: str) -> TenantLimits:
        return self.tenants.get(tenant) or TenantLimits()


def parse_keys(text: str, name: str) -> KeyRing:
    """The keys and tenants in the text of a key file; ``name`` is for messages.

    Raises:
        KeyFileError: it is not TOML, or says what cannot be.
    """
    try:
        file = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        reason = str(error).replace("at end of document", f"at line {max(1, len(text.splitlines()))}, its end")
        raise KeyFileError(f"{name}: {reason}") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        what = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise KeyFileError(f"{name}{_line_of(text, first['loc'])}: {what}: {first['msg']}") from None
    for field in ("id", "hash"):
        counts = Counter[str](getattr(key, field) for key in file.keys)
        for index, key in enumerate(file.keys):
            if counts[getattr(key, field)] > 1:
                raise KeyFileError(f"{name}{_line_of(text, ('keys', index, field))}: two keys have the same {field}")
    return KeyRing(file.keys, file.tenants)


def _line_of(text: str, place: Sequence[int | str]) -> str:
    """Where in a file a value is, for a message; nothing where it is not written in the usual way."""
    match place:
        case ("keys", int(index), *rest):
            header, nth = r"\[\[\s*keys\s*\]\]", index
        case ("tenants", str(tenant), *rest):
            header, nth = rf"""\[\s*tenants\s*\.\s*["']?{re.escape(tenant)}["']?\s*\]""", 0
        case _:
            return ""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if re.match(rf"\s*{header}", line)]
    if nth >= len(starts):
        return ""
    found = starts[nth]
    for number in range(found + 1, len(lines)):
        if lines[number].lstrip().startswith("["):
            break
        if rest and re.match(rf"\s*{re.escape(str(rest[0]))}\s*=", lines[number]):
            found = number
            break
    return f" line {found + 1}"


def read_keys(path: Path) -> KeyRing:
    """The keys and tenants of a file.

    Raises:
        KeyFileError: it cannot be read, is not TOML, or says what cannot be.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise KeyFileError(f"{path}: {reason}") from None
    return parse_keys(text, str(path))


class KeyFile:
    """A key file that is read again when it has changed. One that breaks while in use goes on as it last was."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Raises:
            KeyFileError: the file cannot be used.
        """
        self._path = path
        self._clock = clock
        self._checked_at = clock()
        self._seen = self._state()
        self._ring = read_keys(path)

    def current(self) -> KeyRing:
        """The keys as the file has them, at most :data:`CHECK_SECONDS` ago."""
        now = self._clock()
        if now - self._checked_at >= CHECK_SECONDS:
            self._checked_at = now
            # Before the reading: a change in between is then seen the next time.
            state = self._state()
            if state != self._seen:
                self._seen = state
                self._read_again()
        return self._ring

    def _read_again(self) -> None:
        try:
            self._ring = read_keys(self._path)
        except KeyFileError as error:
            log.error("the keys stay as they were: %s", error)
        else:
            log.info("%s: read again, %d keys", self._path, len(self._ring.keys))

    def _state(self) -> tuple[int, ...]:
        """What differs between two versions of the file, also behind a link that was turned to another."""
        try:
            stat = os.stat(self._path)
        except OSError as error:
            return (error.errno or 0,)
        return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino
