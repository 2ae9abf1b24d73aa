"""An activity that fails the same way again and again says why: in the batch's progress, and in Temporal's UI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from activities import run_requests, validate_input
from activities.write_files import WriteFiles
from tests.integration.conftest import MakeStack
from tests.integration.stack import progress_of, requests


def broken(*_: Any, **__: Any) -> Any:
    raise LookupError("a bug of ours")


PLACES: list[tuple[str, Callable[[pytest.MonkeyPatch], None]]] = [
    ("validate", lambda patch: patch.setattr(validate_input.ValidateInput, "_validate", broken)),
    ("line-1", lambda patch: patch.setattr(run_requests, "read_requests", broken)),
    ("write-files", lambda patch: patch.setattr(WriteFiles, "_merge_again", broken)),
]


@pytest.mark.parametrize(("activity_id", "break_it"), PLACES, ids=[name for name, _ in PLACES])
async def test_it_says_why(
    stack: MakeStack, monkeypatch: pytest.MonkeyPatch, activity_id: str, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    it = await stack()
    with monkeypatch.context() as patch:
        break_it(patch)
        batch_id = await it.submit(requests(1))
        said = await it.until(batch_id, lambda batch: progress_of(batch).get("waiting_reason"))
        assert "a bug of ours" in progress_of(said)["waiting_reason"]
        description = await it.temporal.get_workflow_handle(batch_id).describe()
        (pending,) = description.raw_description.pending_activities
        assert (pending.activity_id, pending.last_failure.message) == (activity_id, "a bug of ours")
    assert (await it.finished(batch_id, 60)).counts == (1, 1, 0)
