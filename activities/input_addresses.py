"""Inputs in a bucket instead of an uploaded file: which addresses a batch may name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

SCHEME: Final = "s3://"
TENANT: Final = "{tenant}"
_ADDRESS: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/([^\x00-\x1f\x7f?#]+)")


class InputAddress(NamedTuple):
    bucket: str
    name: str
    """Name of the object."""


def is_address(input_file_id: str) -> bool:
    """Return whether the value is an address instead of the id of an uploaded file."""
    return input_file_id.startswith(SCHEME)


def allowed_address(input_file_id: str, prefixes: Sequence[str], tenant: str) -> InputAddress | None:
    """Return the address of an input, or ``None`` if it is not valid or not below one of the prefixes.

    In the prefixes, ``{tenant}`` stands for the tenant.
    """
    match = _ADDRESS.fullmatch(input_file_id)
    if not match or any(part in ("", ".", "..") for part in match[2].split("/")):  # some servers resolve these
        return None
    if not any(input_file_id.startswith(prefix.replace(TENANT, tenant)) for prefix in prefixes):
        return None
    return InputAddress(match[1], match[2])


def checked_prefix(prefix: str) -> str:
    """Return a prefix with a final ``/``, so that it does not allow folders whose names merely begin with it.

    Raises:
        ValueError: the prefix is not valid.
    """
    if not _ADDRESS.fullmatch(f"{prefix.replace(TENANT, 'x')}/x"):
        raise ValueError(f"{prefix!r} is not of the form s3://bucket or s3://bucket/folder")
    return f"{prefix.rstrip('/')}/"
