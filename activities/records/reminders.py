"""Reminders for the janitor: empty objects whose keys say what to check and when, and sort by time."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

DueKind = Literal["file", "upload", "batch"]

PREFIX = "due/"

RUN_LOOK_SECONDS: Final = 15
"""Seconds between two checks of a running batch. The janitor handles all reminders that are due, so in practice it
checks a running batch each time it runs."""

_KINDS: dict[str, DueKind] = {"file": "file", "upload": "upload", "batch": "batch"}


class Reminder(NamedTuple):
    """Tells the janitor to check an object."""

    kind: DueKind
    tenant: str
    object_id: str
    at: int
    """When the check is due, as Unix time in seconds."""

    @property
    def key(self) -> str:
        # One folder for each hour: creating a folder is most of the cost of writing an empty file.
        return f"{PREFIX}{self.at // 3600:09d}/{self.at:012d}.{self.kind}.{self.tenant}.{self.object_id}"

    @classmethod
    def of_key(cls, key: str) -> Reminder:
        at, kind, name = key.rpartition("/")[2].split(".", 2)
        tenant, _, object_id = name.rpartition(".")  # a tenant may contain dots, an id does not
        return cls(_KINDS[kind], tenant, object_id, int(at))
