"""Webhooks on the wire, and as Temporal runs them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from pydantic import SecretStr
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import deliver_webhook
from activities.deliver_webhook import DeliverWebhook
from activities.store.local import LocalStore
from activities.webhooks import Endpoint, Endpoints
from tests.fakes.receiver import Received, Receiver, open_receiver
from tests.integration.conftest import MakeStack
from tests.integration.stack import Stack, request, requests, until
from workflows.webhook_types import DeliverWebhookInput, DeliverWebhookResult, WebhookResult

SECRET = "SECRET-CANARY"
TASK = DeliverWebhookInput(
    endpoint="n", tenant="t", batch_id="batch_1", event="batch.completed", created_at=1_700_000_000
)


def unwrapped(received: Received, secret: str = SECRET) -> Any:
    return OpenAI(api_key="k").webhooks.unwrap(received.body, received.headers, secret=secret)


async def deliver(url: str, *, allow_private: bool = True, **changes: Any) -> DeliverWebhookResult:
    endpoint = Endpoint(name="n", url=SecretStr(url), secrets=(SecretStr(SECRET),), **changes)
    activity = DeliverWebhook(Endpoints([endpoint]), LocalStore("/nonexistent"), allow_private=allow_private)
    return await ActivityEnvironment().run(activity.deliver_webhook, TASK)


async def refusal(url: str, **options: Any) -> ApplicationError:
    with pytest.raises(ApplicationError) as caught:
        await deliver(url, **options)
    assert caught.value.__cause__ is None, "it would reach the history, with the address"
    assert not any(secret in str(caught.value) for secret in ("CANARY", "127.0.0.1"))
    return caught.value


async def test_a_delivery_is_what_the_contract_says() -> None:
    async with open_receiver() as receiver:
        assert await deliver(receiver.url()) == DeliverWebhookResult(delivered=True, status=200)
    (received,) = receiver.received
    event = unwrapped(received)
    assert (event.type, event.data.id, event.created_at) == ("batch.completed", "batch_1", 1_700_000_000)
    assert json.loads(received.body).keys() == {"id", "object", "type", "created_at", "data"}
    headers = {name.lower(): value for name, value in received.headers.items()}
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"].startswith("Everbatch/")
    assert headers["webhook-id"].startswith("wh_")
    assert headers["webhook-signature"].startswith("v1,")


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 429, 500, 503])
async def test_what_is_not_2xx_is_a_failure_to_be_retried(status: int) -> None:
    async with open_receiver() as receiver:
        receiver.statuses = [status]
        error = await refusal(receiver.url())
    assert str(error).startswith(f"WebhookFailed: HTTP {status}")
    assert not error.non_retryable
    assert len(receiver.received) == 1, "a redirect is not followed"


async def test_no_answer_in_time_is_a_failure_to_be_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver_webhook, "ANSWER_SECONDS", 0.2)
    async with open_receiver() as receiver:
        receiver.silent = True
        error = await refusal(receiver.url())
    assert "no response within" in str(error)
    assert not error.non_retryable


async def test_nobody_there_is_a_failure_to_be_retried() -> None:
    async with open_receiver() as receiver:
        url = receiver.url()
    error = await refusal(url)
    assert str(error) == "WebhookFailed: ClientConnectorError"
    assert not error.non_retryable


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "017700000001", "127.1", "0", "[::ffff:127.0.0.1]", "[::1]"],
)
async def test_a_target_inside_is_refused_for_good(host: str) -> None:
    async with open_receiver() as receiver:
        error = await refusal(f"http://{host}:{receiver.port}/", allow_private=False)
        assert error.type == "TargetRefused"
        assert error.non_retryable
        assert receiver.received == []


async def test_an_event_that_is_not_wanted_is_not_sent() -> None:
    async with open_receiver() as receiver:
        result = await deliver(receiver.url(), events=frozenset({"batch.failed"}))
    assert result == DeliverWebhookResult(delivered=False)
    assert receiver.received == []


async def test_another_tenants_endpoint_is_not_called() -> None:
    async with open_receiver() as receiver:
        error = await refusal(receiver.url(), tenants=frozenset({"other"}))
    assert error.type == "UnknownWebhook"
    assert not error.non_retryable
    assert receiver.received == []


# As Temporal runs them


def write_file(folder: Path, receiver: Receiver) -> str:
    entries = {
        "mine": 'tenant = "default"',
        "another-tenants": 'tenant = "other"',
        "failures": 'events = ["batch.failed"]',
    }
    lines: list[str] = []
    for name, rest in entries.items():
        url = receiver.url(f"/{name}?token=URL-CANARY")
        lines += ["[[webhooks]]", f'name = "{name}"', f'url = "{url}"', f'secret = "{SECRET}"', rest]
    folder.mkdir(exist_ok=True)
    (folder / "webhooks.toml").write_text("\n".join(lines))
    return str(folder / "webhooks.toml")


async def delivered(it: Stack, batch_id: str) -> WebhookResult:
    with contextlib.suppress(WorkflowFailureError):  # of a batch that did not complete
        await it.workflow(batch_id).result()
    workflow = it.temporal.get_workflow_handle(f"webhook-{batch_id}", result_type=WebhookResult)
    return await asyncio.wait_for(workflow.result(), 60)


async def test_the_ends_of_batches_are_reported_to_whom_they_concern(stack: MakeStack, tmp_path: Path) -> None:
    async with open_receiver() as receiver:
        receiver.statuses = [500]
        file = write_file(tmp_path / "hooks", receiver)
        it = await stack(webhooks_file=file, webhook_allow_private=True)
        done = await it.run(requests(2))
        await it.workflow(done.batch.id).result()  # it does not wait for the delivery
        webhook = it.temporal.get_workflow_handle(f"webhook-{done.batch.id}")

        async def why_it_waits() -> str:
            pending = (await webhook.describe()).raw_description.pending_activities
            return pending[0].last_failure.message if pending else ""

        assert await until(why_it_waits, "a failed attempt") == "HTTP 500"
        assert await delivered(it, done.batch.id) == WebhookResult(delivered=1)
        first, second = receiver.received
        assert first.path == second.path == "/mine"
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.headers["webhook-timestamp"] < second.headers["webhook-timestamp"], "each attempt is signed afresh"
        assert unwrapped(second).data.id == unwrapped(first).data.id == done.batch.id
        assert unwrapped(second).created_at == done.batch.completed_at
        assert await (await webhook.describe()).static_summary() == "batch.completed to mine, failures"
        history = b"".join(event.SerializeToString() for event in (await webhook.fetch_history()).events)
        assert b"mine: batch.completed" in history
        assert b"CANARY" not in history

        receiver.received.clear()
        failed = await it.run(["not json"])
        assert failed.batch.status == "failed"
        assert await delivered(it, failed.batch.id) == WebhookResult(delivered=2)
        assert sorted(received.path for received in receiver.received) == ["/failures", "/mine"]
        assert len({received.headers["webhook-id"] for received in receiver.received}) == 2
        assert {unwrapped(received).type for received in receiver.received} == {"batch.failed"}


async def test_a_batch_that_an_operator_terminates_is_reported_as_cancelled(stack: MakeStack, tmp_path: Path) -> None:
    async with open_receiver() as receiver:
        it = await stack(webhook_url=receiver.url(), webhook_secret=SECRET, webhook_allow_private=True)
        it.script(mode="hang")
        batch_id = await it.submit([request("a")])
        await it.until(batch_id, lambda batch: batch.status == "in_progress")
        await it.workflow(batch_id).terminate("enough")
        for _ in range(2):
            await it.run_janitor(batch_id)
        await it.until(batch_id, lambda batch: batch.status == "cancelled")
        assert await delivered(it, batch_id) == WebhookResult(delivered=1)
        (received,) = receiver.received
        assert unwrapped(received).type == "batch.cancelled"


async def test_an_endpoint_that_may_not_be_called_is_seen_as_such(stack: MakeStack) -> None:
    async with open_receiver() as receiver:
        it = await stack(webhook_url=receiver.url(), webhook_secret=SECRET)
        done = await it.run(requests(1))
        with pytest.raises(WorkflowFailureError) as caught:
            await delivered(it, done.batch.id)
        assert str(caught.value.cause) == "NotDelivered: not delivered: default"
        assert receiver.received == []


async def test_a_batch_may_have_a_webhook_of_its_own(stack: MakeStack) -> None:
    async with open_receiver() as receiver:
        it = await stack(
            webhook_url=receiver.url("/operator"), webhook_secret="operators-secret", webhook_allow_private=True
        )
        own = {"url": receiver.url("/own?token=URL-CANARY"), "secret": SECRET, "events": ["batch.completed"]}
        made = await it.create(await it.upload(requests(2)), extra_body={"webhook": own})
        assert "CANARY" not in made.to_json()
        done = await it.finished(made.id)
        assert await delivered(it, done.batch.id) == WebhookResult(delivered=2)
        assert sorted(received.path for received in receiver.received) == ["/operator", "/own"]
        (received,) = [received for received in receiver.received if received.path == "/own"]
        event = unwrapped(received)
        assert (event.type, event.data.id) == ("batch.completed", made.id)
        for workflow_id in (made.id, f"webhook-{made.id}"):
            history = await it.temporal.get_workflow_handle(workflow_id).fetch_history()
            assert b"CANARY" not in b"".join(event.SerializeToString() for event in history.events)

        receiver.received.clear()
        it.script(mode="hang")
        other = await it.create(await it.upload(requests(1)), extra_body={"webhook": own})
        await it.openai.batches.cancel(other.id)
        await it.finished(other.id)
        assert await delivered(it, other.id) == WebhookResult(delivered=1)  # of a type that it does not want
        assert [received.path for received in receiver.received] == ["/operator"]


async def test_a_batchs_own_webhook_may_not_lead_inside(stack: MakeStack) -> None:
    async with open_receiver() as receiver:
        it = await stack()
        own = {"url": receiver.url(), "secret": SECRET}
        done = await it.finished((await it.create(await it.upload(requests(1)), extra_body={"webhook": own})).id)
        with pytest.raises(WorkflowFailureError) as caught:
            await delivered(it, done.batch.id)
        assert str(caught.value.cause) == "NotDelivered: not delivered: (batch)"
        assert receiver.received == []
