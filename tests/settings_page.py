"""``docs/settings.md``, written from the settings classes: ``make docs``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from activities.settings import Settings

PATH: Final = Path(__file__).parents[1] / "docs" / "settings.md"
_HEAD: Final = """\
# Settings

<!-- Generated from activities/settings.py by `make docs`. -->

Settings are environment variables that each process reads once, at start. Settings that a batch depends on (limits,
attempts, completion windows) are recorded with the batch when the API creates it; a later change affects new batches.

Temporal's address and credentials are not listed here: they come from the Temporal SDK's own variables and profiles
(`TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`, `TEMPORAL_API_KEY`, `TEMPORAL_TLS`, `TEMPORAL_PROFILE` and others). Defaults
are `localhost:7233` and the namespace `default`.
"""


def page() -> str:
    parts = [_HEAD]
    groups = [base for base in Settings.__bases__ if issubclass(base, BaseSettings)]
    for group in groups:
        rows = [
            f"| `EVERBATCH_{name.upper()}` | {_default(field.default)} | {field.description} |"
            for name, field in group.model_fields.items()
        ]
        heading = (group.__doc__ or "").rstrip(".")
        parts.append(f"\n## {heading}\n\n| Variable | Default | Meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "".join(parts)


def _default(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    PATH.write_text(page())
