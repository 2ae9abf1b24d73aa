"""Results of a batch while it runs. This extends OpenAI's API."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from activities.records.catalog import Catalog
from activities.result_pages import BadCursorError, Cursor, Page, ResultPages, ResultsGoneError
from activities.store.object_store import ObjectNotFoundError
from api.http.auth import PathBatch
from api.http.errors import ApiError, no_batch_found, shown
from api.http.schemas import error_responses
from workflows.ids import BatchRef

MAX_LINES = 10_000
CURSOR_HEADER = "Everbatch-Cursor"
INCOMPLETE_HEADER = "X-Incomplete"

_PAGE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Lines as in the output and the error file.",
        "content": {"application/jsonl": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            CURSOR_HEADER: {"description": "`after` of the next page.", "schema": {"type": "string"}},
            INCOMPLETE_HEADER: {
                "description": "`false` on the last page of a batch that has ended, else `true`.",
                "schema": {"type": "string", "enum": ["true", "false"]},
            },
        },
    }
}


def results_router(catalog: Catalog, pages: ResultPages) -> APIRouter:
    router = APIRouter(prefix="/v1/batches", tags=["Batches"], responses=error_responses(401))

    async def list_results(
        ref: PathBatch, after: str = "0", limit: Annotated[int, Query(ge=1, le=MAX_LINES)] = 1000
    ) -> Response:
        """List the committed results after a cursor, each once, while the batch runs too. This extends OpenAI's API."""
        page = await asyncio.to_thread(_page, catalog, pages, ref, after, limit)
        headers = {CURSOR_HEADER: str(page.cursor), INCOMPLETE_HEADER: "false" if page.is_last else "true"}
        return Response(b"".join(page.lines), headers=headers, media_type="application/jsonl")

    responses = _PAGE | error_responses(404, 410, 503)
    router.get("/{batch_id}/results", response_class=Response, responses=responses)(list_results)
    return router


def _page(catalog: Catalog, pages: ResultPages, ref: BatchRef, after: str, limit: int) -> Page:
    with no_batch_found(ref):
        if catalog.get_batch(ref).deleted_at:
            raise ObjectNotFoundError(ref.batch_id)
    try:
        return pages.page(ref, Cursor.parse(after), limit)
    except BadCursorError:
        text = f"Invalid 'after': '{shown(after)}' is no cursor of this batch. Send the {CURSOR_HEADER} of a page."
        raise ApiError(400, text, code="invalid_value", param="after") from None
    except ResultsGoneError:
        text = f"The results of batch {ref.batch_id} are no longer stored: its files were deleted or have expired."
        raise ApiError(410, text, code="results_gone") from None
