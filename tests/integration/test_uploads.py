"""A batch over a file that arrived in parts."""

from __future__ import annotations

import asyncio

from tests.integration.conftest import MakeStack
from tests.integration.stack import jsonl, requests


async def test_a_batch_over_a_completed_upload_runs(stack: MakeStack) -> None:
    it = await stack()
    content = jsonl(requests(20))
    cuts = range(0, len(content), len(content) // 5)  # in the middle of lines
    pieces = [content[start : start + len(content) // 5] for start in cuts]
    upload = await it.openai.uploads.create(
        bytes=len(content), filename="in.jsonl", mime_type="application/jsonl", purpose="batch"
    )
    parts = await asyncio.gather(*(it.openai.uploads.parts.create(upload.id, data=piece) for piece in pieces))
    done = await it.openai.uploads.complete(upload.id, part_ids=[part.id for part in parts])
    assert done.file
    # Nothing of the upload is needed any more.
    it.store.delete_prefix(f"uploads/default/{upload.id}/")
    finished = await it.finished((await it.create(done.file.id)).id)
    assert finished.batch.status == "completed"
    assert finished.counts == (20, 20, 0)
    assert finished.answered == [f"r-{number}" for number in range(20)]
