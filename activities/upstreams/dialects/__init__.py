"""The dialects: how requests to different kinds of upstreams differ. One module per dialect; see docs/upstreams.md."""

from __future__ import annotations

from typing import Final

from activities.upstreams.dialects import azure, nim
from activities.upstreams.dialects.dialect import Dialect

DIALECTS: Final[dict[str, Dialect]] = {"plain": Dialect(), "nim": nim.DIALECT, "azure": azure.DIALECT}
