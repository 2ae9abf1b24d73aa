"""What was seen of a batch, and who is shown it."""

from __future__ import annotations

from api.gateway.batch_looks import BatchLooks
from api.gateway.interface import BatchView, Progress
from tests.fakes.worker import make_spec
from workflows.types import BatchPhase, BatchRecord, BatchStatus


async def test_a_batch_that_a_list_shows_as_ended_is_found_running_by_nobody() -> None:
    spec = make_spec()
    running = BatchRecord(spec=spec, status=BatchStatus(phase=BatchPhase.IN_PROGRESS))
    ended = BatchRecord(spec=spec, status=BatchStatus(phase=BatchPhase.COMPLETED))
    looks, ref = BatchLooks(), spec.ref

    async def before() -> BatchView:
        return BatchView(running, Progress())

    async def after(*_: BatchRecord) -> BatchView:
        return BatchView(ended, None)

    assert (await looks.share(ref, before)).record is running
    (listed,) = await looks.glances([ended], after)
    assert listed.record is ended
    assert (await looks.share(ref, after)).record is ended
