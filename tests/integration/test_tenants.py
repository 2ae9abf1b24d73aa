"""Two tenants on one server: what is the other's is as if it were not there, however it is asked for."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import unquote

import openai
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from openai import AsyncOpenAI
from starlette.types import Message

from activities.records.running import RunningBatches
from api.tenants.key_editing import create_key
from tests.fakes.api import field, file, form
from tests.integration.conftest import MakeStack
from tests.integration.stack import CHAT, Stack, jsonl, request, requests, until

SECRET = "what-only-ann-knows"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


async def call(
    app: Any, method: str, url: str, key: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Answer:
    """A request whose path no client has made tidy, as a server hands it to the application."""
    path, _, query = url.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "root_path": "",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [
            (name.encode(), value.encode())
            for name, value in {"authorization": f"Bearer {key}", **(headers or {})}.items()
        ],
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], head, b"".join(message.get("body", b"") for message in sent[1:]))


@dataclass
class Ids:
    """Of one object of each kind."""

    file: str
    output: str
    batch: str
    ended: str
    upload: str
    part: str

    def like(self) -> Ids:
        """Ids of the same look that are nobody's."""

        def other(known: str) -> str:
            mark = max(known.rfind("-"), known.rfind("_")) + 1
            return known[:mark] + uuid.uuid4().hex[: len(known) - mark].ljust(len(known) - mark, "0")

        return Ids(*(other(value) for value in self.values()))

    def values(self) -> list[str]:
        return [self.file, self.output, self.batch, self.ended, self.upload, self.part]


def nothing(_: Ids) -> list[str]:
    return []


def no_body(_: Ids) -> bytes:
    return b""


@dataclass(frozen=True)
class Case:
    """How to ask a route for what is of these ids."""

    ids: Callable[[Ids], list[str]] = nothing
    """For the path."""
    body: Callable[[Ids], bytes] = no_body
    content_type: str = "application/json"


def part_ids(ids: Ids) -> bytes:
    return json.dumps({"part_ids": [ids.part]}).encode()


FILES = Case(lambda ids: [ids.file, ids.output])
BATCHES = Case(lambda ids: [ids.batch, ids.ended])
MESSAGES = Case(lambda ids: [ids.batch.replace("batch_", "msgbatch_"), ids.ended.replace("batch_", "msgbatch_")])
SHARED = Case()  # the models of the inference server are everyone's
OWN = Case()  # names nothing that is there; what it makes is looked at in tests of their own
LISTED = Case()  # as is what it lists
PART, PART_TYPE = form(('Content-Disposition: form-data; name="data"; filename="x"', b"{}"))

CASES: dict[str, Case] = {
    "GET /v1/models": SHARED,
    "GET /v1/models/{model:path}": SHARED,
    "POST /v1/files": OWN,
    "GET /v1/files": LISTED,
    "GET /v1/files/{file_id}": FILES,
    "DELETE /v1/files/{file_id}": FILES,
    "GET /v1/files/{file_id}/content": FILES,
    "HEAD /v1/files/{file_id}/content": FILES,
    "POST /v1/uploads": OWN,
    "POST /v1/uploads/{upload_id}/parts": Case(lambda ids: [ids.upload], lambda _: PART, PART_TYPE["content-type"]),
    "POST /v1/uploads/{upload_id}/complete": Case(lambda ids: [ids.upload], part_ids),
    "POST /v1/uploads/{upload_id}/cancel": Case(lambda ids: [ids.upload]),
    "POST /v1/batches": OWN,
    "GET /v1/batches": LISTED,
    "GET /v1/batches/{batch_id}": BATCHES,
    "POST /v1/batches/{batch_id}/cancel": BATCHES,
    "POST /v1/batches/{batch_id}/pause": BATCHES,
    "POST /v1/batches/{batch_id}/resume": BATCHES,
    "POST /v1/batches/{batch_id}/retry": BATCHES,
    "GET /v1/batches/{batch_id}/results": BATCHES,
    "GET /v1/batches/{batch_id}/events": BATCHES,
    "POST /v1/messages/batches": OWN,
    "GET /v1/messages/batches": LISTED,
    "GET /v1/messages/batches/{message_batch_id}": MESSAGES,
    "DELETE /v1/messages/batches/{message_batch_id}": MESSAGES,
    "POST /v1/messages/batches/{message_batch_id}/cancel": MESSAGES,
    "GET /v1/messages/batches/{message_batch_id}/results": MESSAGES,
}

TRICKS = (
    "{id}/",
    "/{id}",
    "./{id}",
    "../ann/{id}",
    "..%2Fann%2F{id}",
    "%2e%2e%2fann%2f{id}",
    "%2e%2e/ann/{id}",
    "..%5Cann%5C{id}",
    "ann/{id}",
    "ann%2F{id}",
    "%2F{id}",
    "%252e%252e%252fann%252f{id}",
    "{id}%00",
    "{id}%20",
    "{id}%2F..%2F{id}",
    "{id}?tenant=ann",
    "{upper}",
)


def routes(app: Any) -> set[str]:
    return {
        f"{method} {route.path}"
        for route in iter_route_contexts(cast("FastAPI", app).routes)
        for method in route.methods or ()
        if route.path and route.path.startswith("/v1")
    }


@pytest.fixture
def ann(tmp_path: Path) -> str:
    return create_key(tmp_path / "keys.toml", "ann")[1]


@pytest.fixture
def bob(tmp_path: Path) -> str:
    return create_key(tmp_path / "keys.toml", "bob")[1]


async def open_stack(stack: MakeStack, tmp_path: Path) -> Stack:
    return await stack(keys_file=str(tmp_path / "keys.toml"))


async def all_of(it: Stack, client: AsyncOpenAI) -> Ids:
    """A tenant with one of everything; one batch has ended, the other waits for the inference server."""
    content = jsonl([request(SECRET, user=SECRET), *requests(2)])
    uploaded = await client.files.create(file=("in.jsonl", content), purpose="batch")

    async def create() -> str:
        made = await client.batches.create(
            input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h", metadata={"note": SECRET}
        )
        return made.id

    ended = await create()

    async def completed() -> str | None:
        return (await client.batches.retrieve(ended)).output_file_id

    output = await until(completed, "completed")
    assert output
    it.script(mode="status", status=503)
    upload = await client.uploads.create(bytes=2, filename="x", mime_type="text/plain", purpose="batch")
    part = await client.uploads.parts.create(upload.id, data=b"{}")
    return Ids(uploaded.id, output, await create(), ended, upload.id, part.id)


def same(answer: Answer, other: Answer, ids: Ids, missing: Ids) -> bool:
    """Whether two answers differ in nothing but the ids that were asked for."""

    def normal(answer: Answer, values: list[str]) -> tuple[int, dict[str, str], bytes]:
        body = re.sub(rb"req_[0-9a-f]{32}|batch_[0-9a-f]*\xe2\x80\xa6", b"<one>", answer.body)  # or a path that is cut
        for value in values:
            body = body.replace(value.encode(), b"<id>").replace(value.upper().encode(), b"<ID>")
        varying = {"x-request-id": "", "request-id": "", "openai-processing-ms": ""}
        return answer.status, answer.headers | varying, body

    return normal(answer, ids.values()) == normal(other, missing.values())


async def test_the_others_ids_are_missing_ids(stack: MakeStack, tmp_path: Path, ann: str, bob: str) -> None:
    it = await open_stack(stack, tmp_path)
    client = it.openai.with_options(api_key=ann)
    ids = await all_of(it, client)
    missing = ids.like()
    assert routes(it.app) == set(CASES), "each route needs a case here"

    async def ask(route: str, case: Case, whose: Ids, form: str, index: int) -> Answer:
        method, path = route.split(" ")
        value = case.ids(whose)[index]
        before, after = path.split("{")[0], path.split("}")[1]
        shaped = form.format(id=value, upper=value.upper())
        shaped, _, query = shaped.partition("?")
        url = f"{before}{shaped}{after}" + (f"?{query}" if query else "")
        return await call(it.app, method, url, bob, case.body(whose), {"content-type": case.content_type})

    for route, case in CASES.items():
        for index in range(len(case.ids(ids))):
            for trick in ("{id}", *TRICKS):
                foreign = await ask(route, case, ids, trick, index)
                nobodys = await ask(route, case, missing, trick, index)
                context = (route, trick, foreign, nobodys)
                assert foreign.status in (404, 405), context
                assert {"message", "type"} <= set(json.loads(foreign.body)["error"]), context
                assert SECRET.encode() not in foreign.body, context
                assert same(foreign, nobodys, ids, missing), context

    # And none of it has touched what is Ann's.
    assert SECRET.encode() in (await client.files.content(ids.file)).content
    assert SECRET.encode() in (await client.files.content(ids.output)).content
    running = await client.batches.retrieve(ids.batch)
    assert (running.status, running.cancelling_at) == ("in_progress", None)
    assert "paused" not in json.dumps((running.model_extra or {})["progress"])
    assert (await client.batches.retrieve(ids.ended)).status == "completed"
    assert (await client.uploads.complete(ids.upload, part_ids=[ids.part])).status == "completed"


async def test_lists_show_ones_own(stack: MakeStack, tmp_path: Path, ann: str, bob: str) -> None:
    it = await open_stack(stack, tmp_path)
    ids = await all_of(it, it.openai.with_options(api_key=ann))
    client = it.openai.with_options(api_key=bob)
    assert (await client.files.list()).data == []
    assert (await client.batches.list()).data == []
    own = await client.files.create(file=("own.jsonl", jsonl(requests(1))), purpose="batch")
    assert [one.id for one in (await client.files.list()).data] == [own.id]
    missing = ids.like()
    for what, whose, nobodys in (("files", ids.file, missing.file), ("batches", ids.ended, missing.ended)):
        for order in ("", "&order=asc"):
            foreign = await call(it.app, "GET", f"/v1/{what}?after={whose}{order}", bob)
            other = await call(it.app, "GET", f"/v1/{what}?after={nobodys}{order}", bob)
            assert (foreign.status, json.loads(foreign.body)["error"]["param"]) == (400, "after")
            assert same(foreign, other, ids, missing)
        for trick in ("..%2Fann%2F", "../ann/", "ann/"):
            assert (await call(it.app, "GET", f"/v1/{what}?after={trick}{whose}", bob)).status == 400


async def test_the_others_file_is_no_input(stack: MakeStack, tmp_path: Path, ann: str, bob: str) -> None:
    it = await open_stack(stack, tmp_path)
    client = it.openai.with_options(api_key=ann)
    uploaded = await client.files.create(file=("in.jsonl", jsonl(requests(1))), purpose="batch")
    it.openai = it.openai.with_options(api_key=bob)
    nobodys = f"file-{'0' * 24}"
    tricks = [f"../ann/{uploaded.id}", f"ann/{uploaded.id}", f"..%2Fann%2F{uploaded.id}"]
    for file_id in (uploaded.id, nobodys, *tricks):
        finished = await it.finished((await it.create(file_id)).id)
        assert finished.batch.status == "failed"
        assert finished.batch.errors
        assert finished.batch.errors.data
        (error,) = finished.batch.errors.data
        assert error.message == f"Cannot find file {file_id}, or organization bob does not have access to it."
        assert (error.code, error.param, error.line) == ("invalid_request", "file_id", None)
    assert it.engine.counters().answered_total == 0


async def test_keys_of_idempotency_do_not_meet(stack: MakeStack, tmp_path: Path, ann: str, bob: str) -> None:
    it = await open_stack(stack, tmp_path)
    key = {"idempotency-key": uuid.uuid4().hex}
    body, kind = form(field("purpose", "batch"), file(jsonl(requests(1))))
    made: list[tuple[str, str]] = []
    for secret in (ann, bob):
        uploaded = json.loads((await call(it.app, "POST", "/v1/files", secret, body, {**kind, **key})).body)["id"]
        create = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
        content, headers = json.dumps(create).encode(), {"content-type": "application/json", **key}
        answers = [await call(it.app, "POST", "/v1/batches", secret, content, headers) for _ in "ab"]
        assert [answer.status for answer in answers] == [200, 200]
        batch_ids = {json.loads(answer.body)["id"] for answer in answers}
        assert len(batch_ids) == 1
        made.append((uploaded, batch_ids.pop()))
    assert made[0][0] != made[1][0]
    assert made[0][1] != made[1][1]
    for secret, (_, batch_id) in zip((bob, ann), made, strict=True):
        assert (await call(it.app, "GET", f"/v1/batches/{batch_id}", secret)).status == 404


async def test_limits_and_weight_of_a_tenant(stack: MakeStack, tmp_path: Path, ann: str, bob: str) -> None:
    with (tmp_path / "keys.toml").open("a") as keys:
        keys.write("[tenants.bob]\nmax_queued_requests = 3\nmax_running_batches = 1\nfairness_weight = 2\n")
    it = await open_stack(stack, tmp_path)
    running = RunningBatches(it.catalog)
    it.openai = it.openai.with_options(api_key=bob)
    failed = (await it.finished(await it.submit(requests(4)))).batch
    assert failed.status == "failed"
    assert failed.errors
    assert failed.errors.data
    assert failed.errors.data[0].code == "token_limit_exceeded"
    text = "Enqueued token limit reached for fake in organization bob. Limit: 3 enqueued requests"
    assert (failed.errors.data[0].message or "").startswith(text)

    it.script(mode="status", status=503)
    batch_id = await it.submit(requests(3))
    await it.until(batch_id, lambda batch: batch.status == "in_progress")
    with pytest.raises(openai.RateLimitError) as caught:
        await it.submit(requests(1))
    assert caught.value.code == "rate_limit_exceeded"
    events = [event async for event in it.workflow(batch_id).fetch_history_events()]
    scheduled = [event.activity_task_scheduled_event_attributes for event in events]
    weights = {one.priority.fairness_weight for one in scheduled if one.activity_type.name == "run_requests"}
    assert weights == {200.0}  # of a shard of one request, times two

    # Neither a batch that an operator ends keeps its place, nor one that ends by itself.
    await it.workflow(batch_id).terminate("test")
    it.catalog.remind("batch", "bob", batch_id, int(time.time()))
    assert (await it.run_janitor()).closed == 1
    await it.until(batch_id, lambda batch: batch.status == "cancelled")
    it.script()
    assert (await it.run(requests(3))).counts == (3, 3, 0)
    await until(lambda: _is_empty(running, "bob"), "the place is free")

    # Those of Ann are not counted with Bob's.
    it.openai = it.openai.with_options(api_key=ann)
    assert (await it.run(requests(5))).counts == (5, 5, 0)
    await until(lambda: _is_empty(running, "ann"), "the place is free")


async def _is_empty(running: RunningBatches, tenant: str) -> bool:
    return running.batches(tenant) == []
