"""Reads TOML files of settings into models, and reports the first problem as an error.

The error names the file, the line and the entry, but repeats no value, because some of these files contain secrets.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)
_MESSAGES: Final = {
    "extra_forbidden": "there is no such setting",
    "missing": "is required",
    "model_type": "must be a table",
}
Location = Sequence[int | str]
"""The path to a value, such as ``("keys", 1, "hash")``."""


class SettingsFileError(ValueError):
    """A settings file cannot be used; the message says why, and in which line."""


def read_text(path: Path, name: str) -> str:
    """Return the text of a file, which error messages call ``name``.

    Raises:
        SettingsFileError: the file cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise SettingsFileError(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsFileError(f"{name}: the file is not UTF-8") from None


class TomlFile:
    def __init__(self, text: str, name: str) -> None:
        """
        Raises:
            SettingsFileError: the text is not TOML.
        """
        self._name = name
        self._lines = text.split("\n")
        try:
            self._content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            found = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", str(error), re.DOTALL)
            # Without a line, the message ends in "(at end of document)".
            reason, line = (found[1], int(found[2])) if found else (str(error), len(text.splitlines()) or 1)
            raise self._error(line, reason) from None

    def as_model(self, model: type[M]) -> M:
        """Return the content of the file as a model.

        Raises:
            SettingsFileError: the content does not match the model.
        """
        try:
            return model.model_validate(self._content)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            location = [part for part in first["loc"] if part != "[key]"]
            message = _MESSAGES.get(first["type"]) or first["msg"].removeprefix("Value error, ")
            raise self.error(location, message) from None

    def error(self, location: Location, message: str) -> SettingsFileError:
        """Return an error about the value at this location."""
        entry: Any = self._content
        names: list[str] = []
        for part in location:
            entry = _member(entry, part)
            called = _member(entry, "name") or _member(entry, "id")
            if isinstance(part, int):
                names[-1:] = [f"{names[-1]} {called}" if isinstance(called, str) else f"{names[-1]}[{part}]"]
            else:
                names.append(part)
        return self._error(self._line_of(location), ": ".join([*names, message]))

    def _error(self, line: int, message: str) -> SettingsFileError:
        return SettingsFileError(f"{self._name}, line {line}: {message}")

    def _line_of(self, location: Location) -> int:
        """Return the line of a value, or else of the table that contains it, or else the first line.

        TOML parsers that keep line numbers are slow and large; this only has to find a key in a table.
        """
        match location:
            case (str(table), int(index), *rest):
                start, end = self._table(
                    rf"\[\[\s*{re.escape(table)}\s*\]\]", index, inner=rf"\[\s*{re.escape(table)}\."
                )
            case (str(table), str(name), *rest):
                start, end = self._table(rf"\[\s*{re.escape(table)}\s*\.\s*{_quoted(name)}\s*\]", 0)
            case _:
                start, end, rest = 0, 0, []
        if not start:  # the table is written in another way
            return self._find(str(location[0]), 0, len(self._lines)) if location else 1
        return self._find(str(rest[0]), start, end, default=start) if rest else start

    def _table(self, header: str, index: int, inner: str = "$never") -> tuple[int, int]:
        """Return the first and the last line of the table with the nth matching header, or zeros if there is none.

        Args: ``inner`` matches the headers of tables inside this one, which do not end it.
        """
        starts = [number for number, line in enumerate(self._lines, 1) if re.match(rf"\s*{header}", line)]
        if index >= len(starts):
            return 0, 0
        for number in range(starts[index], len(self._lines)):
            line = self._lines[number].lstrip()
            if line.startswith("[") and not re.match(inner, line):
                return starts[index], number
        return starts[index], len(self._lines)

    def _find(self, key: str, start: int, end: int, default: int = 1) -> int:
        wanted = rf"\s*(\[+\s*([\w-]+\s*\.\s*)?)?{_quoted(key)}\s*[=.\]]"
        return next(
            (number for number in range(start + 1, end + 1) if re.match(wanted, self._lines[number - 1])), default
        )


def _quoted(key: str) -> str:
    return rf"""["']?{re.escape(key)}["']?"""


def _member(value: Any, part: int | str) -> Any:
    if isinstance(value, list) and isinstance(part, int) and part < len(cast("list[Any]", value)):
        return cast("list[Any]", value)[part]
    return cast("Mapping[str, Any]", value).get(str(part)) if isinstance(value, dict) else None
