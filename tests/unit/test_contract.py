"""The workflow calls stubs, the worker runs implementations: they must be the same activities."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
from pydantic import BaseModel
from temporalio import activity, workflow

from activities.close_batch import CloseBatch
from activities.delete_expired import DeleteExpired
from activities.deliver_webhook import DeliverWebhook
from activities.pause_shards import PauseShards
from activities.run_requests import RunRequests
from activities.validate_input import ValidateInput
from activities.write_files import WriteFiles
from workflows import contract
from workflows.batch import BatchWorkflow

PAIRS: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
    (contract.ValidateInputStub.validate_input, ValidateInput.validate_input),
    (contract.RunRequestsStub.run_requests, RunRequests.run_requests),
    (contract.WriteFilesStub.write_files, WriteFiles.write_files),
    (contract.CloseBatchStub.close_batch, CloseBatch.close_batch),
    (contract.PauseShardsStub.pause_shards, PauseShards.pause_shards),
    (contract.DeleteExpiredStub.delete_expired, DeleteExpired.delete_expired),
    (contract.DeliverWebhookStub.deliver_webhook, DeliverWebhook.deliver_webhook),
]


def name_of(function: Callable[..., Any]) -> str:
    definition = activity._Definition.must_from_callable(  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
        function
    )
    assert definition.name
    return definition.name


def test_every_stub_has_an_implementation() -> None:
    stubs = {value for name, value in vars(contract).items() if name.endswith("Stub")}
    assert {stub.__qualname__.partition(".")[0] for stub, _ in PAIRS} == {stub.__name__ for stub in stubs}


@pytest.mark.parametrize(("stub", "implementation"), PAIRS, ids=lambda function: function.__qualname__)
def test_stub_and_implementation_are_one_activity(stub: Callable[..., Any], implementation: Callable[..., Any]) -> None:
    assert stub is not implementation
    assert name_of(stub) == name_of(implementation)
    assert get_type_hints(stub) == get_type_hints(implementation)
    assert list(inspect.signature(stub).parameters) == list(inspect.signature(implementation).parameters)
    assert inspect.iscoroutinefunction(implementation)


def test_names_are_said_and_not_taken_from_functions() -> None:
    assert [name_of(stub) for stub, _ in PAIRS] == [
        contract.VALIDATE_INPUT,
        contract.RUN_REQUESTS,
        contract.WRITE_FILES,
        contract.CLOSE_BATCH,
        contract.PAUSE_SHARDS,
        contract.DELETE_EXPIRED,
        contract.DELIVER_WEBHOOK,
    ]
    definition = workflow._Definition.must_from_class(BatchWorkflow)
    assert definition.name == contract.BATCH_WORKFLOW
    assert set(definition.signals) == {contract.CANCEL_SIGNAL, contract.PAUSE_SIGNAL, contract.RESUME_SIGNAL}
    assert set(definition.queries) == {contract.STATUS_QUERY}


@pytest.mark.parametrize("stub", [stub for stub, _ in PAIRS], ids=lambda function: function.__qualname__)
def test_one_model_in_and_one_model_out(stub: Callable[..., Any]) -> None:
    hints = get_type_hints(stub)
    result = hints.pop("return")
    assert len(hints) == 1
    for model in [*hints.values(), *([result] if result is not type(None) else [])]:
        assert issubclass(model, BaseModel)


@pytest.mark.parametrize("stub", [stub for stub, _ in PAIRS], ids=lambda function: function.__qualname__)
async def test_stubs_do_nothing(stub: Callable[..., Any]) -> None:
    with pytest.raises(NotImplementedError):
        await stub(None, None)


def test_inference_has_a_queue_of_its_own() -> None:
    assert contract.inference_task_queue("everbatch") == "everbatch-inference"


def test_the_longest_wait_that_is_asked_for_is_not_clamped() -> None:
    assert contract.SHARD_RETRY.maximum_interval == contract.MAX_RETRY_DELAY
    assert contract.SHARD_RETRY.maximum_attempts == contract.STEP_RETRY.maximum_attempts == 0
