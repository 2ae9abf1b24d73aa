"""With a payload key nobody finds clear text in Temporal, and everything still works."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import httpx2
import pytest
from google.protobuf.json_format import MessageToDict
from temporalio.api.common.v1 import Payloads
from temporalio.client import Client

from activities.store.local import LocalStore
from activities.temporal.connection import ConnectOptions, connect
from activities.temporal.payload_codec import AesGcmCodec, data_converter
from api.gateway.interface import TemporalUnavailableError
from api.gateway.temporal import TemporalGateway
from api.http.codec_server import create_codec_app
from tests.integration.stack import Stack, progress_of, requests
from workflows.ids import BatchRef

CANARY = "canary"
UI = "http://ui.example:8080"


async def connect_sealed(temporal: Client, key: bytes) -> Client:
    options = ConnectOptions(converter=data_converter([key]))
    return await connect(temporal.service_client.config.target_host, options)


async def test_a_sealed_batch_runs_and_its_history_has_no_clear_text(temporal: Client, tmp_path: Path) -> None:
    key = os.urandom(32)
    sealed = await connect_sealed(temporal, key)
    async with Stack.open(sealed, tmp_path, max_requests=1000) as it:
        await it.start_worker()
        it.script(mode="status", status=503, match=f"{CANARY}-3", retry_after=1)
        file_id = await it.upload(requests(501, prefix=CANARY))
        batch_id = (await it.create(file_id, metadata={"project": CANARY})).id
        # Heartbeats and the reasons of failures are read through the codec as well.
        waiting = await it.until(batch_id, lambda batch: progress_of(batch).get("waiting_reason"))
        reason = progress_of(waiting)["waiting"]["reason"]
        assert "503" in reason
        counting = await it.until(batch_id, lambda batch: batch.request_counts and batch.request_counts.completed)
        assert counting.status == "in_progress"
        it.script()
        finished = await it.finished(batch_id)
        assert finished.counts == (501, 501, 0)
        assert finished.batch.metadata == {"project": CANARY}
        raw = b""
        async for event in temporal.get_workflow_handle(batch_id).fetch_history_events():
            raw += event.SerializeToString()
        raw += (await temporal.get_workflow_handle(batch_id).describe()).raw_description.SerializeToString()
    assert b"binary/encrypted" in raw
    for clear in (CANARY, file_id, "/v1/chat/completions/", '"counts"', "upstream", reason):
        assert clear.encode() not in raw, clear
    assert base64.b64encode(key) not in raw


async def test_a_batch_that_was_started_in_the_clear_goes_on_sealed(temporal: Client, tmp_path: Path) -> None:
    sealed = await connect_sealed(temporal, os.urandom(32))
    async with Stack.open(temporal, tmp_path) as before:
        batch_id = await before.submit(requests(3))
        async with Stack.open(sealed, tmp_path, task_queue=before.settings.task_queue) as after:
            after.settings = after.settings.model_copy(update={"upstream_url": before.settings.upstream_url})
            await after.start_worker()
            assert (await after.finished(batch_id)).counts == (3, 3, 0)


async def test_an_api_without_the_key_says_so(temporal: Client, tmp_path: Path) -> None:
    sealed = await connect_sealed(temporal, os.urandom(32))
    async with Stack.open(sealed, tmp_path) as it:
        await it.start_worker()
        it.script(mode="hang")
        batch_id = await it.submit(requests(2))
        await it.until(batch_id, lambda batch: batch.status == "in_progress")
        keyless = it.another_api(temporal=temporal)
        batch = await keyless.batches.retrieve(batch_id)
        assert "has no payload key" in progress_of(batch)["waiting_reason"]
        unrecorded = LocalStore(str(tmp_path / "empty"))
        gateway = TemporalGateway(temporal, unrecorded, it.settings.task_queue, "Temporal's address")
        with pytest.raises(TemporalUnavailableError, match="has no payload key"):
            await gateway.find(BatchRef("default", batch_id))
        await it.openai.batches.cancel(batch_id)
        await it.finished(batch_id)


async def test_the_codec_server_opens_for_the_ui_alone() -> None:
    codec = AesGcmCodec([os.urandom(32)])
    payloads = Payloads()
    payloads.payloads.add(metadata={"encoding": b"json/plain"}, data=b'"clear"')
    await codec.encode_wrapper(payloads)
    transport = httpx2.ASGITransport(create_codec_app(codec, [UI]))
    async with httpx2.AsyncClient(transport=transport, base_url="http://codec") as http:
        ask = {"Origin": UI, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-namespace"}
        assert (await http.options("/decode", headers=ask)).headers["access-control-allow-origin"] == UI
        foreign = await http.options("/decode", headers={**ask, "Origin": "http://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers
        answer = await http.post("/decode", json=MessageToDict(payloads), headers={"Origin": UI})
        assert base64.b64decode(answer.json()["payloads"][0]["data"]) == b'"clear"'
        assert answer.headers["access-control-allow-origin"] == UI
        rebound = {"Origin": "http://codec.evil.example"}  # as pages of a name that was made to point here send it
        assert (await http.post("/decode", json=MessageToDict(payloads), headers=rebound)).status_code == 403
        assert (await http.post("/encode", json=MessageToDict(payloads))).status_code == 404
        for bad in (b"{", b"7", b"\xff", json.dumps({"payloads": [{"data": 7}]}).encode()):
            assert (await http.post("/decode", content=bad)).status_code == 400
        other = AesGcmCodec([os.urandom(32)])
        await other.encode_wrapper(payloads)
        assert (await http.post("/decode", json=MessageToDict(payloads))).status_code == 400
