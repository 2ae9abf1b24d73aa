"""Upstreams: the inference servers that requests are sent to, as the settings or a TOML file name them.

See docs/upstreams.md for the file. Keys are named by reference, to a variable or a file, and are never shown.
"""

from __future__ import annotations

import fnmatch
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from activities.dialects import DIALECTS
from activities.settings import Settings
from workflows.contract import DEFAULT_UPSTREAM

_TABLE: Final = "upstream"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}")
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class UpstreamsError(Exception):
    """The upstreams cannot be as they are said to be; the message tells what is wrong, and in which line."""


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


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Reference(_Model):
    """A text that stands elsewhere, because it is secret."""

    env: str | None = None
    file: str | None = None

    def read(self) -> SecretStr:
        """Raises ``ValueError``: it is not there."""
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
    """One ``[[upstream]]`` of the file."""

    name: Annotated[str, AfterValidator(_name)]
    url: str | None = None
    urls: Annotated[list[str], Field(min_length=1)] | None = None
    key_env: str | None = None
    key_file: str | None = None
    models: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    aliases: dict[str, Annotated[str, Field(min_length=1)]] = {}
    timeout: Annotated[float, Field(gt=0)] | None = None
    max_in_flight: Annotated[int, Field(ge=1, le=10_000)] | None = None
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
            verb = "needs" if dialect.needs_api_version else "has no use for"
            raise ValueError(f"dialect {self.dialect} {verb} api_version")
        if dialect.needs_models and not (self.models or self.aliases):
            raise ValueError(f"dialect {self.dialect} needs models or aliases")
        return self


class Upstream(BaseModel):
    """One engine, or several replicas of one."""

    model_config = ConfigDict(frozen=True)

    name: str
    urls: tuple[str, ...]
    """Base URLs, one for each replica, without a slash at their end."""
    key: SecretStr = SecretStr("")
    models: tuple[str, ...] = ()
    """Names and patterns; empty where the server is asked."""
    aliases: Mapping[str, str] = {}
    """From the name that clients use to the engine's."""
    timeout: float = 600.0
    """Seconds that one request may take."""
    max_answer_bytes: int = 64 << 20
    max_in_flight: int = 64
    """Requests sent at once to each replica by one worker process."""
    dialect: str = "plain"
    headers: Mapping[str, SecretStr] = {}
    api_version: str = ""
    is_only: bool = False
    """The one of the settings, whose name nobody has given and nobody needs to be told."""

    @property
    def lists_models(self) -> bool:
        """Whether the server's list of models names what requests may name."""
        return not DIALECTS[self.dialect].needs_models

    def takes(self, model: str) -> bool:
        """Whether its settings name this model; an upstream without ``models`` has no say in it."""
        return model in self.aliases or any(
            fnmatch.fnmatchcase(model, name) if is_pattern(name) else model == name for name in self.models
        )


def is_pattern(name: str) -> bool:
    """Whether one of ``models`` stands for several, with ``*``, ``?`` or ``[…]`` as in a shell."""
    return any(sign in name for sign in "*?[")


def load_upstreams(settings: Settings) -> list[Upstream]:
    """The upstreams of the file, or else the one of the settings; none where neither is set.

    Raises:
        UpstreamsError: the file cannot be used, or there is an upstream in the settings beside it.
    """
    if not settings.upstreams:
        return [_only_upstream(settings)] if settings.upstream_url else []
    if settings.upstream_url or settings.upstream_api_key.get_secret_value():
        name = "EVERBATCH_UPSTREAM_URL" if settings.upstream_url else "EVERBATCH_UPSTREAM_API_KEY"
        raise UpstreamsError(f"both EVERBATCH_UPSTREAMS and {name} are set: name all upstreams in the file")
    return _File(settings.upstreams).upstreams(settings)


def _only_upstream(settings: Settings) -> Upstream:
    return Upstream(
        name=DEFAULT_UPSTREAM,
        urls=(settings.upstream_url,),
        key=settings.upstream_api_key,
        timeout=settings.request_timeout,
        max_answer_bytes=settings.max_answer_bytes,
        max_in_flight=settings.max_in_flight,
        is_only=True,
    )


class _File:
    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._text = Path(path).read_text()
            self._content = tomllib.loads(self._text)
        except OSError as error:
            raise UpstreamsError(f"EVERBATCH_UPSTREAMS={path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UpstreamsError(f"EVERBATCH_UPSTREAMS={path}: it is not UTF-8") from None
        except tomllib.TOMLDecodeError as error:
            found = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", str(error), re.DOTALL)
            # The rest is "at end of document".
            message, line = (found[1], int(found[2])) if found else (str(error), len(self._text.splitlines()))
            raise self._error(line, message) from None

    def upstreams(self, settings: Settings) -> list[Upstream]:
        for name in self._content:
            if name != _TABLE:
                raise self._error(self._line_of_key(name), f"unknown setting {name}; upstreams are [[{_TABLE}]]")
        entries = self._content.get(_TABLE)
        if not isinstance(entries, list) or not entries:
            raise self._error(1, f"names no [[{_TABLE}]]")
        found: list[Upstream] = []
        for index, entry in enumerate(entries):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            upstream = self._upstream(index, entry, settings)
            if any(upstream.name == other.name for other in found):
                raise self._error(self._line_of(index, "name"), f"there is another upstream {upstream.name}")
            found.append(upstream)
        return found

    def _upstream(self, index: int, content: Any, settings: Settings) -> Upstream:
        try:
            entry = _Entry.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            key = str(first["loc"][0]) if first["loc"] else ""
            raise self._wrong(index, key, _words(key, first["type"], first["msg"])) from None
        urls = [self._url(index, url, entry) for url in entry.urls or [entry.url or ""]]
        if len(set(urls)) < len(urls):
            raise self._wrong(index, "urls", "urls: names a replica twice")
        return Upstream(
            name=entry.name,
            urls=tuple(urls),
            key=self._key(index, entry),
            models=tuple(entry.models or ()),
            aliases=entry.aliases,
            timeout=entry.timeout or settings.request_timeout,
            max_answer_bytes=settings.max_answer_bytes,
            max_in_flight=entry.max_in_flight or settings.max_in_flight,
            dialect=entry.dialect,
            headers={name: self._header(index, value) for name, value in entry.headers.items()},
            api_version=entry.api_version or "",
        )

    def _url(self, index: int, url: str, entry: _Entry) -> str:
        key = "url" if entry.url is not None else "urls"
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
            _ = parts.port
        except ValueError as error:
            raise self._wrong(index, key, f"{key}: {error}") from None
        if parts.username is not None or parts.password is not None:
            raise self._wrong(index, key, f"{key}: holds credentials; name a key by key_env or key_file")
        if parts.query or parts.fragment:
            raise self._wrong(index, key, f"{key}: has something behind its path")
        if not usable:
            raise self._wrong(index, key, f"{key}: {url!r} is not an http:// or https:// address")
        return url.rstrip("/") if parts.path.strip("/") else url.rstrip("/") + DIALECTS[entry.dialect].base_path

    def _key(self, index: int, entry: _Entry) -> SecretStr:
        if entry.key_env is None and entry.key_file is None:
            return SecretStr("")
        try:
            return _Reference(env=entry.key_env, file=entry.key_file).read()
        except ValueError as error:
            name = "key_env" if entry.key_env is not None else "key_file"
            raise self._wrong(index, name, f"{name}: {error}") from None

    def _header(self, index: int, value: str | _Reference) -> SecretStr:
        try:
            if isinstance(value, _Reference):
                return value.read()
            if not (value.isprintable() and value.isascii()):
                raise ValueError("holds characters that a header cannot carry")
        except ValueError as error:
            raise self._wrong(index, "headers", f"headers: {error}") from None
        return SecretStr(value)

    # Where things stand. TOML parsers that keep lines are slow and large; this needs to find a key of a table only.

    def _wrong(self, index: int, key: str, message: str) -> UpstreamsError:
        name = self._content[_TABLE][index].get("name") if isinstance(self._content[_TABLE][index], dict) else None
        called = f"upstream {name}: " if isinstance(name, str) else ""
        return self._error(self._line_of(index, key), f"{called}{message}")

    def _error(self, line: int, message: str) -> UpstreamsError:
        return UpstreamsError(f"EVERBATCH_UPSTREAMS={self._path}, line {line}: {message}")

    def _line_of(self, index: int, key: str) -> int:
        """The line of a key in the upstream of this place, or else where that upstream begins."""
        tables = [n for n, line in enumerate(self._lines, 1) if re.match(rf"\s*\[\[\s*{_TABLE}\s*\]\]", line)]
        if index >= len(tables):  # written in another way
            return self._line_of_key(_TABLE)
        start, end = tables[index], (*tables, len(self._lines) + 1)[index + 1]
        wanted = rf"\s*(\[\s*{_TABLE}\s*\.\s*)?[\"']?{re.escape(key)}[\"']?\s*[=.\]]"
        inside = (n for n in range(start + 1, end) if key and re.match(wanted, self._lines[n - 1]))
        return next(inside, start)

    def _line_of_key(self, key: str) -> int:
        wanted = rf"\s*\[*\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]"
        return next((n for n, line in enumerate(self._lines, 1) if re.match(wanted, line)), 1)

    @property
    def _lines(self) -> list[str]:
        return self._text.split("\n")


def _words(key: str, kind: str, message: str) -> str:
    """What is wrong with an entry, without its values: one of them may be a key that should not be there."""
    message = message.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"unknown setting {key}" + ("; name a key by key_env or key_file" if "key" in key else "")
    if kind == "missing":
        return f"needs {key}"
    return f"{key}: {message}" if key else message
