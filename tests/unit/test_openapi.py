"""The OpenAPI document: valid, stable, and what the server does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from activities.endpoints import ENDPOINTS
from tests.fakes.api import Api, field, file, form, open_api

METHODS = {"get", "post", "put", "patch", "delete"}
OPERATIONS = {
    "upload_file": "post /v1/files",
    "list_files": "get /v1/files",
    "retrieve_file": "get /v1/files/{file_id}",
    "delete_file": "delete /v1/files/{file_id}",
    "file_content": "get /v1/files/{file_id}/content",
    "create_upload": "post /v1/uploads",
    "add_part": "post /v1/uploads/{upload_id}/parts",
    "complete_upload": "post /v1/uploads/{upload_id}/complete",
    "cancel_upload": "post /v1/uploads/{upload_id}/cancel",
    "create_batch": "post /v1/batches",
    "list_batches": "get /v1/batches",
    "retrieve_batch": "get /v1/batches/{batch_id}",
    "cancel_batch": "post /v1/batches/{batch_id}/cancel",
    "pause_batch": "post /v1/batches/{batch_id}/pause",
    "resume_batch": "post /v1/batches/{batch_id}/resume",
    "retry_batch": "post /v1/batches/{batch_id}/retry",
    "list_results": "get /v1/batches/{batch_id}/results",
    "list_events": "get /v1/batches/{batch_id}/events",
    "create_message_batch": "post /v1/messages/batches",
    "list_message_batches": "get /v1/messages/batches",
    "retrieve_message_batch": "get /v1/messages/batches/{message_batch_id}",
    "delete_message_batch": "delete /v1/messages/batches/{message_batch_id}",
    "cancel_message_batch": "post /v1/messages/batches/{message_batch_id}/cancel",
    "message_batch_results": "get /v1/messages/batches/{message_batch_id}/results",
    "list_models": "get /v1/models",
    "retrieve_model": "get /v1/models/{model}",
    "health": "get /health",
    "ready": "get /ready",
}
GOOD: dict[str, Any] = {"input_file_id": "file-x", "endpoint": "/v1/embeddings", "completion_window": "24h"}


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return open_api(tmp_path, extra_endpoints="/v1/score", completion_windows="1h,24h")


@pytest.fixture
def document(api: Api) -> dict[str, Any]:
    return json.loads(json.dumps(api.app.openapi()))


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in METHODS & item.keys():
            yield f"{method} {path}", item[method]


def json_schema(document: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    schema = answer["content"]["application/json"]["schema"]
    return {**schema, "components": document["components"]}


def test_it_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def test_operation_ids_do_not_change(document: dict[str, Any]) -> None:
    ids = {operation["operationId"]: name for name, operation in operations(document)}
    assert len(ids) == len(list(operations(document)))
    assert ids | OPERATIONS == ids


def test_no_answer_is_422_and_every_refusal_is_the_envelope(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        answers = operation["responses"]
        assert "422" not in answers
        assert {"400", "500", "4XX", "5XX"} <= answers.keys()
        assert ("401" in answers) == (" /v1/" in name)
        for status, answer in answers.items():
            if status[0] in "45" and name != "get /ready":
                error = "MessageError" if "/v1/messages" in name else "Error"
                assert json_schema(document, answer)["$ref"] == f"#/components/schemas/{error}"
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_the_choices_of_a_batch_are_those_of_this_server(document: dict[str, Any]) -> None:
    body = document["paths"]["/v1/batches"]["post"]["requestBody"]
    assert body["required"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/CreateBatch"}
    fields = document["components"]["schemas"]["CreateBatch"]["properties"]
    assert fields["endpoint"]["enum"] == [*ENDPOINTS, "/v1/score"]
    assert fields["completion_window"]["enum"] == ["1h", "24h"]
    assert fields["output_expires_after"]["anyOf"][0] == {"$ref": "#/components/schemas/ExpiresAfter"}


def test_bodies_that_are_no_json(document: dict[str, Any]) -> None:
    paths = document["paths"]
    fields = paths["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert fields["required"] == ["file", "purpose"]
    assert fields["properties"]["purpose"]["enum"] == [
        *("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
    ]
    assert {"expires_after[anchor]", "expires_after[seconds]"} < fields["properties"].keys()
    content = paths["/v1/files/{file_id}/content"]["get"]["responses"]["200"]["content"]
    assert list(content) == ["application/octet-stream"]
    assert "content" not in paths["/health"]["get"]["responses"]["200"]


def test_parameters(document: dict[str, Any]) -> None:
    found = {
        operation["operationId"]: {each["name"]: each for each in operation.get("parameters", [])}
        for _, operation in operations(document)
    }
    assert found["list_files"].keys() == {"purpose", "limit", "order", "after"}
    assert found["list_batches"].keys() == {"limit", "order", "after", "Everbatch-Partial"}
    limit = found["list_batches"]["limit"]["schema"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, 100, 20)
    assert found["list_files"]["limit"]["schema"]["maximum"] == 10_000
    assert found["create_batch"].keys() == {"Idempotency-Key"}
    assert not found["create_batch"]["Idempotency-Key"]["required"]
    assert found["cancel_batch"].keys() == {"batch_id"}


async def test_answers_are_as_the_document_says(api: Api, document: dict[str, Any]) -> None:
    body, headers = form(field("purpose", "batch"), file(b"{}\n"))
    file_id = (await api.http.post("/v1/files", content=body, headers=headers)).json()["id"]
    batch_id = (await api.http.post("/v1/batches", json=GOOD)).json()["id"]
    await api.http.post("/v1/batches", json=GOOD | {"idempotency_key": "k"})
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("post /v1/files", "/v1/files", {"content": body, "headers": headers}),
        ("post /v1/files", "/v1/files", {}),
        ("get /v1/files", "/v1/files", {}),
        ("get /v1/files", "/v1/files?limit=0", {}),
        ("get /v1/files/{file_id}", f"/v1/files/{file_id}", {}),
        ("get /v1/files/{file_id}", "/v1/files/x", {}),
        ("get /v1/files/{file_id}/content", "/v1/files/x/content", {}),
        ("delete /v1/files/{file_id}", f"/v1/files/{file_id}", {}),
        ("delete /v1/files/{file_id}", f"/v1/files/{file_id}", {}),
        ("post /v1/batches", "/v1/batches", {"json": GOOD | {"metadata": {"a": "b"}}}),
        ("post /v1/batches", "/v1/batches", {"json": {}}),
        ("post /v1/batches", "/v1/batches", {"json": GOOD | {"idempotency_key": "k", "metadata": {}}}),
        ("post /v1/batches", "/v1/batches", {"json": {"x": "x" * (1 << 20)}}),
        ("get /v1/batches", "/v1/batches", {}),
        ("get /v1/batches", "/v1/batches?after=x", {}),
        ("get /v1/batches/{batch_id}", f"/v1/batches/{batch_id}", {}),
        ("get /v1/batches/{batch_id}", "/v1/batches/x", {}),
        ("post /v1/batches/{batch_id}/pause", f"/v1/batches/{batch_id}/pause", {}),
        ("post /v1/batches/{batch_id}/cancel", f"/v1/batches/{batch_id}/cancel", {}),
        ("get /v1/batches/{batch_id}/events", f"/v1/batches/{batch_id}/events", {}),
        ("get /v1/models", "/v1/models", {}),
        ("get /v1/models/{model}", "/v1/models/org/m", {}),
        ("get /v1/models/{model}", "/v1/models/x", {}),
        ("get /ready", "/ready", {}),
    ]
    messages: dict[str, Any] = {
        "requests": [{"custom_id": "a", "params": {"model": "m", "max_tokens": 1, "messages": []}}]
    }
    message_batch = (await api.http.post("/v1/messages/batches", json=messages)).json()["id"]
    one = "/v1/messages/batches/{message_batch_id}"
    asked += [
        ("post /v1/messages/batches", "/v1/messages/batches", {"json": messages}),
        ("post /v1/messages/batches", "/v1/messages/batches", {"json": {}}),
        ("get /v1/messages/batches", "/v1/messages/batches", {}),
        ("get /v1/messages/batches", "/v1/messages/batches?limit=0", {}),
        (f"get {one}", f"/v1/messages/batches/{message_batch}", {}),
        (f"get {one}", "/v1/messages/batches/x", {}),
        (f"get {one}/results", f"/v1/messages/batches/{message_batch}/results", {}),
        (f"delete {one}", f"/v1/messages/batches/{message_batch}", {}),
        (f"post {one}/cancel", f"/v1/messages/batches/{message_batch}/cancel", {}),
    ]
    described = dict(operations(document))
    seen: set[int] = set()
    for name, url, arguments in asked:
        response = await api.http.request(name.split()[0].upper(), url, **arguments)
        answers = described[name]["responses"]
        assert str(response.status_code) in answers, (name, response.status_code)
        schema = json_schema(document, answers[str(response.status_code)])
        OAS31Validator(schema).validate(response.json())
        seen.add(response.status_code)
    assert seen == {200, 400, 404, 409, 413}
