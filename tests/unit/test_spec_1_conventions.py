"""SPEC.md section 1, what test_api_errors.py does not hold: docs/contract.md says which test holds which rule."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.api import Api, error_of, field, file, form, open_api

GOOD: dict[str, Any] = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}
JSON = {"content-type": "application/json"}


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return open_api(tmp_path)


async def upload(api: Api, query: str = "") -> Any:
    body, headers = form(field("purpose", "batch"), file(b"{}\n"))
    return await api.http.post(f"/v1/files{query}", content=body, headers=headers)


async def test_1_unknown_query_parameters_are_ignored(api: Api) -> None:
    query = "?api-version=2024-10-21&x=1&x=2"
    file_id = (await upload(api, query)).json()["id"]
    batch = await api.http.post(f"/v1/batches{query}", json=GOOD)
    batch_id = batch.json()["id"]
    answers = [batch, await api.http.post(f"/v1/batches/{batch_id}/cancel{query}")]
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", "/v1/files", "/v1/batches", "/v1/models"):
        answers.append(await api.http.get(path + query))
    answers.append(await api.http.delete(f"/v1/files/{file_id}{query}"))
    assert [answer.status_code for answer in answers] == [200] * len(answers)


async def test_1_ids_have_the_prefixes_and_lengths_that_clients_check(api: Api) -> None:
    assert re.fullmatch("file-[0-9A-Za-z]{24}", (await upload(api)).json()["id"])
    assert re.fullmatch("batch_[0-9a-f]{32}", (await api.http.post("/v1/batches", json=GOOD)).json()["id"])


async def test_1_times_are_integer_seconds_and_absent_values_null(api: Api) -> None:
    for answer in (await upload(api), await api.http.post("/v1/batches", json=GOOD)):
        values = answer.json()
        times = {name: value for name, value in values.items() if name.endswith("_at")}
        assert {type(value) for value in times.values()} <= {int, type(None)}
        assert 1_600_000_000 < values["created_at"] < 10_000_000_000


ALLOWED = {
    "/v1/files": "GET, POST",
    "/v1/files/file-x": "GET, DELETE",
    "/v1/files/file-x/content": "GET",
    "/v1/batches": "GET, POST",
    "/v1/batches/batch_x": "GET",
    "/v1/batches/batch_x/cancel": "POST",
    "/v1/models/org/m": "GET",
}


@pytest.mark.parametrize("method", ["PUT", "OPTIONS", "HEAD"])
async def test_1_another_method_is_405_and_told_which_are_allowed(api: Api, method: str) -> None:
    for path, allowed in ALLOWED.items():
        response = await api.http.request(method, path)
        assert response.status_code == 405
        assert response.headers["allow"] == allowed
        if method != "HEAD":
            assert error_of(response)["message"] == f"Invalid method for URL ({method} {path})"


async def test_1_a_trailing_slash_is_another_url_and_no_redirect(api: Api) -> None:
    for path in ("/v1/files/", "/v1/batches/", "/v1/files/file-x/", "/v1/batches/batch_x/cancel/"):
        response = await api.http.post(path)
        assert response.status_code == 404
        assert error_of(response)["message"] == f"Invalid URL (POST {path})"


WRONG: dict[str, Any] = {
    # Each with an error of each kind; `...` leaves the member out.
    "input_file_id": {"missing": ..., "type": 5, "value": ""},
    "endpoint": {"missing": ..., "type": 5, "value": "/v1/x"},
    "completion_window": {"missing": ..., "type": 5, "value": "1h"},
    "metadata": {"type": [], "value": {"k": "v" * 513}},
    "output_expires_after": {"type": 5, "value": {"anchor": "created_at", "seconds": 1}},
    "idempotency_key": {"type": 5, "value": ""},
}
KINDS = ("missing", "type", "value")
FOUND_IN_TURN = [(kind, name) for kind in KINDS for name, wrong in WRONG.items() if kind in wrong]


async def test_1_of_several_errors_the_missing_one_is_told_then_the_type_then_the_value(api: Api) -> None:
    """The order is ours: among errors of one kind, that of the fields in SPEC.md 4.1."""
    for index, first in enumerate(FOUND_IN_TURN):
        for second in FOUND_IN_TURN[index + 1 :]:
            if first[1] == second[1]:
                continue
            body = GOOD | {name: WRONG[name][kind] for kind, name in (second, first)}
            content = json.dumps({name: value for name, value in body.items() if value is not ...})
            response = await api.http.post("/v1/batches", content=content, headers=JSON)
            assert response.status_code == 400
            assert error_of(response)["param"].partition(".")[0] == first[1], (first, second)
    assert api.gateway.created == []


async def test_1_query_and_headers_are_told_before_the_body(api: Api) -> None:
    response = await api.http.post("/v1/batches", json=GOOD | {"endpoint": "x"}, headers={"Idempotency-Key": ""})
    assert error_of(response)["param"] == "Idempotency-Key"
    response = await api.http.get("/v1/files?order=up&limit=x&after=nothing")
    assert error_of(response)["param"] == "limit"  # its type, before the value of another
    response = await api.http.get("/v1/files?order=up&limit=0&after=nothing")
    assert error_of(response)["param"] == "limit"
    response = await api.http.get("/v1/files?order=up&after=nothing")
    assert error_of(response)["param"] == "order"
    response = await api.http.get("/v1/files?after=nothing")
    assert error_of(response)["param"] == "after"


async def test_1_of_several_errors_of_a_form_the_file_is_told_first_then_purpose_then_expiry(api: Api) -> None:
    half = field("expires_after[anchor]", "created_at")
    for parts, param in [
        ([field("purpose", "x"), half], "file"),
        ([half, file(b"{}")], "purpose"),
        ([field("purpose", "x"), half, file(b"{}")], "purpose"),
        ([field("purpose", "batch"), half, file(b"{}")], "expires_after.seconds"),
    ]:
        body, headers = form(*parts)
        response = await api.http.post("/v1/files", content=body, headers=headers)
        assert response.status_code == 400
        assert error_of(response)["param"] == param
    assert api.stored() == []
