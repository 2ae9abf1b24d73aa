"""How requests for kinds of upstreams differ: one module per dialect, chosen by this table. See docs/upstreams.md."""

from __future__ import annotations

from typing import Final

from activities.upstreams.dialects import azure, nim
from activities.upstreams.dialects.dialect import Dialect

DIALECTS: Final[dict[str, Dialect]] = {"plain": Dialect(), "nim": nim.DIALECT, "azure": azure.DIALECT}
