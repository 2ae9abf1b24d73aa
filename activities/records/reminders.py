"""What the janitor must look at, and when: empty objects whose keys hold all information and sort by time."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

DueKind = Literal["file", "upload", "batch"]

PREFIX = "due/"

RUN_LOOK_SECONDS: Final = 15
"""Between two looks at a batch that runs. The janitor takes all that are due, so it looks as often as it is run."""

_KINDS: dict[str, DueKind] = {"file": "file", "upload": "upload", "batch": "batch"}


class Reminder(NamedTuple):
    """The janitor must look at an object."""

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
