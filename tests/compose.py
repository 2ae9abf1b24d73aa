"""docker-compose.yml as the tests read it: one checks it against the code, one runs the same as plain processes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Z0-9_]+)(?:(?P<kind>:[-?])(?P<text>[^}]*))?\}|\$(?P<other>.)")


class Variable(NamedTuple):
    """A ``${NAME}`` of the file: required with ``:?``, else with a default."""

    name: str
    required: bool
    default: str | None


def read() -> dict[str, Any]:
    """The file, with its variables as they are written."""
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def variables(text: str) -> list[Variable]:
    """Those in a text, in order.

    Raises:
        ValueError: a dollar sign that begins none.
    """
    found: list[Variable] = []
    for match in _VARIABLE.finditer(text):
        if match["other"]:
            raise ValueError(f"{match[0]!r} in {text!r}")
        found.append(Variable(match["name"], match["kind"] == ":?", match["text"] if match["kind"] == ":-" else None))
    return found


def environment(service: str, values: Mapping[str, str]) -> dict[str, str]:
    """What a service finds in its environment when these are in ``.env``.

    Raises:
        KeyError: a required value is missing.
    """

    def value(match: re.Match[str]) -> str:
        (variable,) = variables(match[0])
        if variable.required and not values.get(variable.name):
            raise KeyError(variable.name)
        return values.get(variable.name) or variable.default or ""

    members: dict[str, str] = read()["services"][service]["environment"]
    return {name: _VARIABLE.sub(value, text) for name, text in members.items()}


def mounted(service: str, path: str) -> Path:
    """The file or folder of this repository that the service sees at this path.

    Raises:
        KeyError: it has none there.
    """
    volumes: list[str] = read()["services"][service].get("volumes", [])
    for source, target, *_ in (volume.split(":") for volume in volumes):
        if target == path and source.startswith("./"):
            return ROOT / source
    raise KeyError(path)
