"""Ids are derived, so that what runs twice makes the same thing twice."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.ids import (
    batch_id_for_key,
    batch_of_result_file,
    create_digest,
    file_id_for_upload,
    format_ranges,
    parse_ranges,
    request_id_prefix,
    result_file_id,
)


@given(st.sets(st.integers(0, 300)))
def test_ranges_read_back(numbers: set[int]) -> None:
    assert parse_ranges(format_ranges(numbers)) == numbers


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (set[int](), ""),
        ({0}, "0"),
        ({0, 1, 2, 5}, "0-2,5"),
        ({3, 4, 9, 10, 11}, "3-4,9-11"),
        (set(range(500)), "0-499"),
    ],
)
def test_ranges_are_short(numbers: set[int], text: str) -> None:
    assert format_ranges(numbers) == text
    assert parse_ranges(text) == numbers


def test_the_worst_ranges_stay_far_below_what_temporal_takes() -> None:
    assert len(format_ranges(set(range(0, 1000, 2)))) < 3000


def test_ids_have_the_shape_of_openais() -> None:
    assert re.fullmatch(r"batch_[0-9a-f]{32}", batch_id_for_key("t", "k"))
    assert re.fullmatch(r"file-o[0-9A-Za-z]{23}", result_file_id("b", "output"))
    assert re.fullmatch(r"[0-9a-f]{24}", request_id_prefix("b"))


def test_ids_are_stable() -> None:
    # Running batches and idempotency keys depend on these.
    assert batch_id_for_key("default", "key") == batch_id_for_key("default", "key")
    assert result_file_id("batch_1", "output") != result_file_id("batch_1", "error")


@given(st.text(), st.text(), st.text(), st.text())
def test_no_two_keys_mean_one_batch(tenant: str, key: str, other_tenant: str, other_key: str) -> None:
    if "\0" in tenant + other_tenant:
        return  # a tenant holds none
    same = (tenant, key) == (other_tenant, other_key)
    assert (batch_id_for_key(tenant, key) == batch_id_for_key(other_tenant, other_key)) == same


@pytest.mark.parametrize("key", ["", "\ud800", "é" * 5000, "a\0b"])
def test_any_key_will_do(key: str) -> None:
    assert len(batch_id_for_key("t", key)) == 38


def test_digests_know_no_order_of_keys() -> None:
    one = {"endpoint": "e", "metadata": {"a": "1", "b": "2"}}
    other = json.loads('{"metadata": {"b": "2", "a": "1"}, "endpoint": "e"}')
    assert create_digest(one) == create_digest(other)


def test_digests_differ_where_the_parameters_do() -> None:
    metadata: list[object] = [None, {}, {"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": "1", "b": "2"}]
    digests = [create_digest({"metadata": value}) for value in metadata]
    assert len(set(digests)) == len(metadata)


def test_an_upload_is_one_file_for_one_order_of_its_parts() -> None:
    made = file_id_for_upload("upload_1", ["part_1", "part_2"])
    assert re.fullmatch(r"file-[0-9a-f]{24}", made)
    assert file_id_for_upload("upload_1", ["part_1", "part_2"]) == made
    others = {
        file_id_for_upload("upload_2", ["part_1", "part_2"]),
        file_id_for_upload("upload_1", ["part_2", "part_1"]),
        file_id_for_upload("upload_1", ["part_1"]),
        file_id_for_upload("upload_1", []),
    }
    assert len(others | {made}) == 5


@pytest.mark.parametrize("number", ["0" * 32, "f" * 32, "0123456789abcdef" * 2])
def test_a_result_file_names_its_batch(number: str) -> None:
    found = {batch_of_result_file(result_file_id(f"batch_{number}", kind)) for kind in ("output", "error")}
    assert found == {(f"batch_{number}", "output"), (f"batch_{number}", "error")}


@pytest.mark.parametrize("file_id", ["", "file-o", "file-o" + "z" * 23, "file-x" + "0" * 23, "file-o" + "0" * 24])
def test_other_files_name_no_batch(file_id: str) -> None:
    assert batch_of_result_file(file_id) is None
