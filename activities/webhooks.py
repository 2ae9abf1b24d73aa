"""Webhook endpoints from the settings or a TOML file, and the signed events that are sent to them.

Events, headers and signatures have the format of OpenAI's webhooks, which follow the Standard Webhooks specification,
so the ``openai`` package can verify them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from activities.toml_file import TomlFile, read_text
from workflows.contract import WEBHOOK_EVENTS

DEFAULT_NAME: Final = "default"

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PREFIX: Final = "whsec_"


def check_url(value: str) -> str:
    """Return the URL of an endpoint if it is valid.

    Raises:
        ValueError: the URL is not valid; the message does not repeat it, because it may contain a secret.
    """
    try:
        parts = urlsplit(value)
        port_is_fine = parts.port != 0
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise ValueError("is not an http:// or https:// URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user name or password; receivers verify the signature instead")
    if not value.isprintable() or " " in value:
        raise ValueError("contains a character that is not allowed in a URL")
    return value


def signing_key(secret: str) -> bytes:
    """Return the bytes of the signing key: the base64 after ``whsec_``, or else the secret itself.

    Raises:
        ValueError: the secret is empty or is not valid base64; the message does not repeat it.
    """
    if not secret.startswith(_PREFIX):
        key = secret.encode()
    else:
        try:
            key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("a secret that begins with whsec_ must continue in base64") from None
    if not key:
        raise ValueError("the secret is empty")
    return key


def _check_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("must be up to 64 letters, digits, dashes and underscores")
    return value


def _check_event(value: str) -> str:
    if value not in WEBHOOK_EVENTS:
        raise ValueError(f"must be one of {', '.join(WEBHOOK_EVENTS)}")
    return value


_Names = Annotated[list[str], Field(min_length=1)]


class _Entry(BaseModel):
    """One ``[[webhooks]]`` of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, AfterValidator(_check_name)]
    url: Annotated[str, AfterValidator(check_url)]
    secret: str | None = None
    secret_env: str | None = None
    secrets: _Names | None = None
    tenant: str | None = None
    tenants: _Names | None = None
    events: Annotated[list[Annotated[str, AfterValidator(_check_event)]], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> _Entry:
        if sum(value is not None for value in (self.secret, self.secret_env, self.secrets)) != 1:
            raise ValueError("needs one of secret, secret_env and secrets")
        if self.tenant is not None and self.tenants is not None:
            raise ValueError("has both tenant and tenants")
        for secret in self.all_secrets():
            signing_key(secret)
        return self

    def all_secrets(self) -> list[str]:
        if self.secret_env is not None:
            secret = os.environ.get(self.secret_env, "")
            if not secret:
                raise ValueError(f"the environment variable {self.secret_env} is not set")
            return [secret]
        return [self.secret] if self.secret is not None else self.secrets or []


class _Webhooks(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    webhooks: list[_Entry]


class Endpoint(BaseModel):
    """A webhook endpoint."""

    model_config = ConfigDict(frozen=True)

    name: str
    url: SecretStr
    """A secret, because the path and the query often contain one."""
    secrets: tuple[SecretStr, ...]
    """The newest first. All of them sign each event, so that a receiver may still use an older one."""
    tenants: frozenset[str] | None = None
    """The tenants whose events are sent; ``None`` for all."""
    events: frozenset[str] | None = None
    """Types of the events that are sent; ``None`` for all."""

    def is_for(self, tenant: str) -> bool:
        return self.tenants is None or tenant in self.tenants

    def wants(self, event: str) -> bool:
        return self.events is None or event in self.events


class Endpoints:
    """All endpoints, by name."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._by_name = {endpoint.name: endpoint for endpoint in endpoints}

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def names_for(self, tenant: str) -> list[str]:
        return [name for name, endpoint in self._by_name.items() if endpoint.is_for(tenant)]

    def find(self, name: str, tenant: str) -> Endpoint | None:
        """Return the endpoint with this name if it receives the tenant's events, else ``None``."""
        endpoint = self._by_name.get(name)
        return endpoint if endpoint and endpoint.is_for(tenant) else None


def load_endpoints(url: str, secret: SecretStr, file: str) -> Endpoints:
    """Return the endpoint of the settings, if there is one, and those of the file.

    Raises:
        ValueError: the file cannot be used; the message names the line or the entry.
    """
    endpoints: list[Endpoint] = []
    if url:
        endpoints.append(Endpoint(name=DEFAULT_NAME, url=SecretStr(url), secrets=(secret,)))
    if file:
        endpoints.extend(_read_file(file))
    names = [endpoint.name for endpoint in endpoints]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"EVERBATCH_WEBHOOKS_FILE={file}: two webhooks have the name {name}")
    return Endpoints(endpoints)


def _read_file(path: str) -> Iterator[Endpoint]:
    name = f"EVERBATCH_WEBHOOKS_FILE={path}"
    for entry in TomlFile(read_text(Path(path), name), name).as_model(_Webhooks).webhooks:
        tenants = entry.tenants or ([entry.tenant] if entry.tenant else None)
        yield Endpoint(
            name=entry.name,
            url=SecretStr(entry.url),
            secrets=tuple(map(SecretStr, entry.all_secrets())),
            tenants=frozenset(tenants) if tenants else None,
            events=frozenset(entry.events) if entry.events else None,
        )


def event_body(event_id: str, event: str, created_at: int, batch_id: str) -> bytes:
    """Return an event as JSON. It has no data of the batch but its id, so that receivers read the batch's current data
    instead of trusting an old event.
    """
    body = {"id": event_id, "object": "event", "type": event, "created_at": created_at, "data": {"id": batch_id}}
    return json.dumps(body, separators=(",", ":")).encode()


def signature(secrets: Sequence[SecretStr], webhook_id: str, timestamp: int, body: bytes) -> str:
    """Return the ``webhook-signature`` header, with one signature for each secret."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    digests = (hmac.digest(signing_key(secret.get_secret_value()), signed, hashlib.sha256) for secret in secrets)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
