"""What the janitor is to look at, and when: empty objects whose keys say it all and sort by time."""

from __future__ import annotations

from typing import Literal, NamedTuple

DueKind = Literal["file", "upload", "batch"]

PREFIX = "due/"

_KINDS: dict[str, DueKind] = {"file": "file", "upload": "upload", "batch": "batch"}


class Reminder(NamedTuple):
    """That the janitor is to look at an object."""

    kind: DueKind
    tenant: str
    object_id: str
    at: int
    """Unix seconds."""

    @property
    def key(self) -> str:
        # By hours, because a folder of its own is most of what writing an empty file costs.
        return f"{PREFIX}{self.at // 3600:09d}/{self.at:012d}.{self.kind}.{self.tenant}.{self.object_id}"

    @classmethod
    def of_key(cls, key: str) -> Reminder:
        at, kind, name = key.rpartition("/")[2].split(".", 2)
        tenant, _, object_id = name.rpartition(".")  # an id has no dot, a tenant may
        return cls(_KINDS[kind], tenant, object_id, int(at))
