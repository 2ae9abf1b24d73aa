"""Which addresses of inputs a batch may name."""

from __future__ import annotations

import pytest

from activities.input_addresses import allowed_address, checked_prefix

PREFIXES = [checked_prefix(prefix) for prefix in ("s3://inputs/{tenant}", "s3://inputs/shared/", "s3://open-bucket")]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("s3://inputs/team/day=27/in 1.jsonl", "team/day=27/in 1.jsonl"),
        ("s3://inputs/shared/in.jsonl", "shared/in.jsonl"),
        ("s3://open-bucket/in.jsonl", "in.jsonl"),
        ("s3://inputs/team2/in.jsonl", None),
        ("s3://inputs/other/in.jsonl", None),
        ("s3://inputs/sharedx/in.jsonl", None),
        ("s3://inputs/shared", None),
        ("s3://inputs/shared/../other/in.jsonl", None),
        ("s3://inputs/shared//in.jsonl", None),
        ("s3://open-bucket2/in.jsonl", None),
        ("s3://open-bucket/in.jsonl?versionId=1", None),
        ("s3://open-bucket/in\n.jsonl", None),
        ("http://open-bucket/in.jsonl", None),
    ],
)
def test_only_what_is_below_a_prefix(address: str, name: str | None) -> None:
    found = allowed_address(address, PREFIXES, "team")
    assert (found.name if found else None) == name
    assert allowed_address(address, [], "team") is None


@pytest.mark.parametrize("prefix", ["inputs", "s3://", "s3:///x", "http://x/y", "s3://UPPER/x", "s3://user:pw@x/y"])
def test_what_is_no_prefix(prefix: str) -> None:
    with pytest.raises(ValueError, match="is not of the form"):
        checked_prefix(prefix)
