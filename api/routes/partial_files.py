"""The content of result files before they are complete, for clients that ask for it, compatible with Doubleword's API.

``X-Last-Line`` is the number of lines of the file that the client has after a response, and ``offset`` skips that many
lines in the next one. Both count lines in the order of the batch's feed, which differs from that of the finished file.
So a client that sends ``offset`` has to send ``Everbatch-Partial`` after the end of the batch as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Header
from starlette.responses import Response, StreamingResponse

from activities.records.catalog import Catalog, has_result_files
from activities.result_pages import Cursor, Page, ResultPages, ResultsGoneError
from activities.settings import Settings
from activities.store.object_store import StoreError
from api.http.errors import ApiError
from workflows.ids import BatchRef, ResultKind, batch_of_result_file
from workflows.types import BatchRecord

PartialHeader = Annotated[
    str | None,
    Header(alias="Everbatch-Partial", description="`true` makes the result files readable before the batch has ended."),
]
PAGE_LINES = 1000


class PartialFiles:
    def __init__(self, settings: Settings, catalog: Catalog, pages: ResultPages) -> None:
        self._always = settings.partial_results
        self._catalog = catalog
        self._pages = pages

    def wanted(self, header: str | None) -> bool:
        return self._always if header is None else header.lower() == "true"

    async def content(self, tenant: str, file_id: str, offset: int) -> Response | None:
        """Return the lines of a result file after the first ``offset``, or ``None`` if the file itself is to be sent.

        Raises:
            ApiError: ``offset`` is greater than the number of lines shown so far.
        """
        named = batch_of_result_file(file_id)
        if not named:
            return None
        record = await asyncio.to_thread(self._catalog.find_batch, BatchRef(tenant, named[0]))
        if not record or (record.status.phase.is_terminal and (not offset or not has_result_files(record))):
            return None
        try:
            return await self._content(record, named[1], offset)
        except ResultsGoneError:
            return None

    async def _content(self, record: BatchRecord, kind: ResultKind, offset: int) -> Response:
        ref = record.spec.ref
        shown = await asyncio.to_thread(self._pages.count, ref, kind)
        has_ended = record.status.phase.is_terminal
        counts = record.status.counts
        last = (counts.completed if kind == "output" else counts.failed) if has_ended else shown
        headers = {"X-Incomplete": "false" if has_ended else "true", "X-Last-Line": str(last)}
        if offset == last:
            return Response(headers=headers, media_type="application/octet-stream")
        if offset > shown:
            text = (
                f"Invalid 'offset': {offset} lines were never shown of this file. Send the X-Last-Line of a response."
            )
            raise ApiError(400, text, code="invalid_value", param="offset")
        cursor = await asyncio.to_thread(self._pages.behind, ref, kind, offset)
        first = await self._page(record, kind, cursor, last - offset)
        if not has_ended and first.cursor.offsets is not None:  # the batch has ended meanwhile
            final = await asyncio.to_thread(self._catalog.get_batch, ref)
            return await self._content(final, kind, offset)
        lines = self._lines(record, kind, first, last - offset)
        return StreamingResponse(lines, headers=headers, media_type="application/octet-stream")

    async def _page(self, record: BatchRecord, kind: ResultKind, cursor: Cursor, maximum: int) -> Page:
        spec, limit = record.spec, min(maximum, PAGE_LINES)
        return await asyncio.to_thread(self._pages.page, spec.ref, cursor, limit, kind)

    async def _lines(self, record: BatchRecord, kind: ResultKind, page: Page, left: int) -> AsyncIterator[bytes]:
        """Yield ``left`` lines, or raise: the connection is then cut, and the client counts the lines that it has."""
        has_ended = record.status.phase.is_terminal
        while True:
            yield b"".join(page.lines)
            left -= len(page.lines)
            if left <= 0:
                return
            page = await self._page(record, kind, page.cursor, left)
            if not page.lines or has_ended != (page.cursor.offsets is not None):
                raise StoreError("the batch has ended while what it had was read")
