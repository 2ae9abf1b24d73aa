"""`everbatch setup`: what it makes, that it may be repeated, and what is said where it was not run."""

from __future__ import annotations

import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client

from activities.settings import Settings
from activities.temporal.connection import connect
from activities.temporal.namespace import NotSetUpError, check_namespace, ensure_namespace
from activities.temporal.schedule import schedule_id
from api.processes.run import StartError
from api.processes.setup import run_setup
from tests.integration.stack import until


@pytest.fixture
async def client(temporal: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Of a namespace that is not there."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal.service_client.config.target_host)
    monkeypatch.setenv("TEMPORAL_NAMESPACE", f"setup-{uuid.uuid4().hex}")
    return await connect()


async def retention(client: Client) -> timedelta:
    request = DescribeNamespaceRequest(namespace=client.namespace)
    described = await client.workflow_service.describe_namespace(request)
    return described.config.workflow_execution_retention_ttl.ToTimedelta()


async def test_setup_makes_what_is_missing_and_may_be_repeated(
    client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotSetUpError, match=f"namespace {client.namespace} does not exist: run `everbatch setup`"):
        await check_namespace(client)
    for days, every in ((3, 600), (30, 700)):
        values = {"store": str(tmp_path / "store"), "retention_days": days, "janitor_interval": every}
        settings = Settings.model_validate(values)
        await run_setup(settings)
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1].strip(",") for line in lines] == ["store", "namespace", "search", "janitor"]
        assert await retention(client) == timedelta(days=days)
        assert await check_namespace(client)
        schedule = await client.get_schedule_handle(schedule_id(settings.task_queue)).describe()
        assert [interval.every for interval in schedule.schedule.spec.intervals] == [timedelta(seconds=every)]
    assert (tmp_path / "store").is_dir()


async def test_a_namespace_without_our_search_attributes_is_not_set_up(client: Client) -> None:
    await ensure_namespace(client, timedelta(days=1))

    async def said() -> str:
        with pytest.raises(NotSetUpError) as caught:
            await check_namespace(client)
        return str(caught.value) if "lacks the search attributes BatchTenant" in str(caught.value) else ""

    assert "run `everbatch setup`" in await until(said, "its servers hear of the namespace")


async def test_a_step_that_fails_does_not_stop_the_others(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("api.processes.setup.STORE_TRIES", 1)
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=f"^not set up: store {tmp_path}/file$"):
        await run_setup(Settings.model_validate({"store": str(tmp_path / "file")}))
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert await check_namespace(client)
