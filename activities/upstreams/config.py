"""Configuration of upstreams, the inference servers to which requests are sent.

``docs/upstreams.md`` describes the file. It refers to keys by a variable or a file, and keys are never shown.
"""

from __future__ import annotations

import fnmatch
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, SecretStr, model_validator

from activities.toml_file import SettingsFileError, TomlFile, read_text
from activities.upstreams.dialects import DIALECTS

MAX_IN_FLIGHT: Final = 10_000

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}")
OWN_MEMBERS: Final = ("model", "stream", "messages", "input", "prompt")
"""Members of a request body that no upstream may add, because they are the request or the form of its answer."""
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):  # it is part of a task queue's name
        raise ValueError("must be up to 50 letters, digits, dots, dashes and underscores")
    return value


def _known_dialect(value: str) -> str:
    if value not in DIALECTS:
        raise ValueError(f"must be one of {', '.join(DIALECTS)}")
    return value


def _header_names(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a header")
    return value


def _added_members(value: dict[str, Any]) -> dict[str, Any]:
    for name, member in value.items():
        if name in OWN_MEMBERS:
            raise ValueError(f"{name} is for the clients to set; none of {', '.join(OWN_MEMBERS)} can be added")
        try:
            json.dumps(member, allow_nan=False)
        except (TypeError, ValueError):  # a date, for example
            raise ValueError(f"{name} is not a JSON value") from None
    return value


def _in_flight(value: Any) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value
    if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MAX_IN_FLIGHT:
        return number
    raise ValueError(f"must be a number from 1 to {MAX_IN_FLIGHT}, or auto")


InFlight = Annotated[int | Literal["auto"], PlainValidator(_in_flight)]
"""Maximum number of requests in flight; ``auto`` finds the level above which throughput does not grow."""


Order = Literal["auto", "prefix", "input"]
"""Order in which requests are sent: sorted by ``prefix``, as in the ``input``, or ``auto``: ``prefix`` if it helps."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Reference(_Model):
    """A secret value, read from an environment variable or a file."""

    env: str | None = None
    file: str | None = None

    def read(self) -> SecretStr:
        """Return the value. Raises ``ValueError`` if it is missing or cannot be used in a header."""
        if (self.env is None) == (self.file is None):
            raise ValueError("needs either env or file")
        if self.env is not None:
            if not (text := os.environ.get(self.env, "")):
                raise ValueError(f"the environment variable {self.env} is not set")
        else:
            try:
                text = Path(self.file or "").read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not text"
                raise ValueError(f"{self.file}: {reason}") from None
        if not (text.isprintable() and text.isascii()):
            raise ValueError("holds characters that a header cannot carry")
        return SecretStr(text)


class _Entry(_Model):
    """One ``[[upstream]]`` entry of the file."""

    name: Annotated[str, AfterValidator(_name)]
    url: str | None = None
    urls: Annotated[list[str], Field(min_length=1)] | None = None
    key_env: str | None = None
    key_file: str | None = None
    models: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    aliases: dict[str, Annotated[str, Field(min_length=1)]] = {}
    timeout: Annotated[float, Field(gt=0)] | None = None
    max_in_flight: InFlight | None = None
    auto_in_flight_ceiling: Annotated[int, Field(ge=1, le=MAX_IN_FLIGHT)] | None = None
    order: Order | None = None
    interactive_headroom: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    body: Annotated[dict[str, Any], AfterValidator(_added_members)] = {}
    dialect: Annotated[str, AfterValidator(_known_dialect)] = "plain"
    headers: Annotated[dict[str, str | _Reference], AfterValidator(_header_names)] = {}
    api_version: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> _Entry:
        dialect = DIALECTS[self.dialect]
        if (self.url is None) == (self.urls is None):
            raise ValueError("needs either url or urls")
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("has both key_env and key_file")
        if dialect.needs_api_version != (self.api_version is not None):
            verb = "needs" if dialect.needs_api_version else "does not use"
            raise ValueError(f"dialect {self.dialect} {verb} api_version")
        if dialect.needs_models and not (self.models or self.aliases):
            raise ValueError(f"dialect {self.dialect} needs models or aliases")
        return self


class _Upstreams(_Model):
    upstream: Annotated[list[_Entry], Field(min_length=1)]


class Upstream(BaseModel):
    """One inference server, or several replicas of it."""

    model_config = ConfigDict(frozen=True)

    name: str
    urls: tuple[str, ...]
    """Base URLs without a trailing slash, one for each replica."""
    key: SecretStr = SecretStr("")
    models: tuple[str, ...] = ()
    """Names and patterns; empty if the server is asked for its models."""
    aliases: Mapping[str, str] = {}
    """The engine's name of a model by the name that clients use."""
    timeout: float = 600.0
    """Timeout of one request in seconds."""
    max_answer_bytes: int = 64 << 20
    max_in_flight: InFlight = "auto"
    """Maximum number of requests in flight, for each replica and worker process."""
    auto_in_flight_ceiling: int = 1024
    order: Order = "auto"
    interactive_headroom: float = 0.0
    """The share of the upstream's capacity that is left to its other clients."""
    body: Mapping[str, Any] = {}
    """Members that are added to request bodies that do not set them."""
    dialect: str = "plain"
    headers: Mapping[str, SecretStr] = {}
    api_version: str = ""
    is_only: bool = False
    """Whether it is the single upstream of ``EVERBATCH_UPSTREAM_URL``, whose name is not shown."""

    @property
    def most_in_flight(self) -> int:
        """Maximum number of requests in flight to each replica from one worker process, after the headroom."""
        most = self.auto_in_flight_ceiling if self.max_in_flight == "auto" else self.max_in_flight
        return max(1, math.floor(most * (1 - self.interactive_headroom) + 1e-9))

    @property
    def finds_level(self) -> bool:
        """Whether its limit starts low and finds the best level."""
        return self.max_in_flight == "auto"

    @property
    def needs_watch(self) -> bool:
        """Whether its limit depends on its load."""
        return self.finds_level or self.interactive_headroom > 0

    @property
    def lists_models(self) -> bool:
        """Whether the server has a list of the model names that requests may use."""
        return not DIALECTS[self.dialect].needs_models

    def takes(self, model: str) -> bool:
        """Return whether the settings assign this model to it, by an alias, a name or a pattern."""
        return model in self.aliases or any(
            fnmatch.fnmatchcase(model, name) if is_pattern(name) else model == name for name in self.models
        )


def not_a_url(text: str) -> str:
    """Return an error message for a base URL without a host or with another scheme."""
    # A parser takes the `localhost` of `localhost:8001/v1` for the scheme.
    meant = f"; did you mean http://{text}?" if "://" not in text and text.strip("/") else ""
    return f"{text!r} is not an http:// or https:// URL{meant}"


def is_pattern(name: str) -> bool:
    """Return whether an entry of ``models`` is a pattern, with ``*``, ``?`` or ``[…]`` as in a shell."""
    return any(sign in name for sign in "*?[")


def read_upstreams(path: str, defaults: Upstream) -> list[Upstream]:
    """Return the upstreams that a TOML file defines. Values that an entry omits are taken from ``defaults``.

    Raises:
        SettingsFileError: the file cannot be used.
    """
    name = f"EVERBATCH_UPSTREAMS={path}"
    file = TomlFile(read_text(Path(path), name), name)
    found: list[Upstream] = []
    for index, entry in enumerate(file.as_model(_Upstreams).upstream):
        if any(entry.name == other.name for other in found):
            raise file.error(("upstream", index, "name"), "there is another upstream of this name")
        found.append(_Reader(file, index).upstream(entry, defaults))
    return found


class _Reader:
    """Turns one entry into an upstream. Its errors include the line number."""

    def __init__(self, file: TomlFile, index: int) -> None:
        self._file = file
        self._index = index

    def upstream(self, entry: _Entry, defaults: Upstream) -> Upstream:
        urls = [self._url(url, entry) for url in entry.urls or [entry.url or ""]]
        if len(set(urls)) < len(urls):
            raise self._error("urls", "names a replica twice")
        return Upstream(
            name=entry.name,
            urls=tuple(urls),
            key=self._key(entry),
            models=tuple(entry.models or ()),
            aliases=entry.aliases,
            timeout=entry.timeout or defaults.timeout,
            max_answer_bytes=defaults.max_answer_bytes,
            max_in_flight=entry.max_in_flight or defaults.max_in_flight,
            auto_in_flight_ceiling=entry.auto_in_flight_ceiling or defaults.auto_in_flight_ceiling,
            order=entry.order or defaults.order,
            interactive_headroom=entry.interactive_headroom,
            body=entry.body,
            dialect=entry.dialect,
            headers={name: self._header(value) for name, value in entry.headers.items()},
            api_version=entry.api_version or "",
        )

    def _url(self, url: str, entry: _Entry) -> str:
        key = "url" if entry.url is not None else "urls"
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
            _ = parts.port
        except ValueError as error:
            raise self._error(key, str(error)) from None
        if parts.username is not None or parts.password is not None:
            raise self._error(key, "must not hold credentials; name a key with key_env or key_file")
        if parts.query or parts.fragment:
            raise self._error(key, "must not have a query or a fragment")
        if not usable:
            raise self._error(key, not_a_url(url))
        return url.rstrip("/") if parts.path.strip("/") else url.rstrip("/") + DIALECTS[entry.dialect].base_path

    def _key(self, entry: _Entry) -> SecretStr:
        if entry.key_env is None and entry.key_file is None:
            return SecretStr("")
        try:
            return _Reference(env=entry.key_env, file=entry.key_file).read()
        except ValueError as error:
            raise self._error("key_env" if entry.key_env is not None else "key_file", str(error)) from None

    def _header(self, value: str | _Reference) -> SecretStr:
        try:
            if isinstance(value, _Reference):
                return value.read()
            if not (value.isprintable() and value.isascii()):
                raise ValueError("holds characters that a header cannot carry")
        except ValueError as error:
            raise self._error("headers", str(error)) from None
        return SecretStr(value)

    def _error(self, key: str, message: str) -> SettingsFileError:
        return self._file.error(("upstream", self._index, key), message)
