"""How engines want to be spoken to: one module per dialect, chosen by this table. See docs/upstreams.md."""

from __future__ import annotations

from typing import Final

from activities.dialects import azure, nim
from activities.dialects.dialect import Dialect

DIALECTS: Final[dict[str, Dialect]] = {"plain": Dialect(), "nim": nim.DIALECT, "azure": azure.DIALECT}
