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

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from activities.toml_file import TomlFile, read_text
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


def base_url(url: str, default_path: str) -> str:
    """Return a base URL without a trailing slash, and with ``default_path`` if it has no path.

    Raises:
        ValueError: it cannot be the base URL of an upstream.
    """
    parts = urlsplit(url)
    _ = parts.port  # raises if it is not a port
    if parts.query or parts.fragment:
        raise ValueError("must not have a query or a fragment")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        # A parser takes the `localhost` of `localhost:8001/v1` for the scheme.
        meant = f"; did you mean http://{url}?" if "://" not in url and url.strip("/") else ""
        raise ValueError(f"{url!r} is not an http:// or https:// URL{meant}")
    return url.rstrip("/") if parts.path.strip("/") else url.rstrip("/") + default_path


def _secret(value: str | dict[str, Any]) -> SecretStr:
    """Return the text, or the value of the environment variable or the file to which a table refers."""
    match value:
        case str(text):
            pass
        case {"env": str(name)} if len(value) == 1:
            if not (text := os.environ.get(name, "")):
                raise ValueError(f"the environment variable {name} is not set")
        case {"file": str(path)} if len(value) == 1:
            try:
                text = Path(path).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not text"
                raise ValueError(f"{path}: {reason}") from None
        case _:
            raise ValueError("must be a text, or a table with either env or file")
    if not (text.isprintable() and text.isascii()):
        raise ValueError("holds characters that a header cannot carry")
    return SecretStr(text)


class _Entry(BaseModel):
    """One ``[[upstream]]`` entry of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, AfterValidator(_name)]
    dialect: Annotated[str, AfterValidator(_known_dialect)] = "plain"
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
    headers: Annotated[dict[str, Annotated[SecretStr, BeforeValidator(_secret)]], AfterValidator(_header_names)] = {}
    api_version: str | None = None

    @field_validator("url")
    @classmethod
    def _is_base_url(cls, url: str, info: ValidationInfo) -> str:
        if "@" in urlsplit(url).netloc:
            raise ValueError("must not hold credentials; name a key with key_env or key_file")
        return base_url(url, DIALECTS[info.data.get("dialect", "plain")].base_path)

    @field_validator("urls")
    @classmethod
    def _are_base_urls(cls, urls: list[str], info: ValidationInfo) -> list[str]:
        urls = [cls._is_base_url(url, info) for url in urls]
        if len(set(urls)) < len(urls):
            raise ValueError("names a replica twice")
        return urls

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

    def key(self) -> SecretStr:
        if self.key_env is None and self.key_file is None:
            return SecretStr("")
        return _secret({"env": self.key_env} if self.key_file is None else {"file": self.key_file})


class _Upstreams(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

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
        try:
            key = entry.key()
        except ValueError as error:
            member = "key_env" if entry.key_env is not None else "key_file"
            raise file.error(("upstream", index, member), str(error)) from None
        given = {field: value for field, value in entry if value is not None and field in Upstream.model_fields}
        urls = entry.urls or [entry.url]
        found.append(Upstream.model_validate(dict(defaults) | given | {"urls": urls, "key": key, "is_only": False}))
    return found
