"""A batch from a program's side, on the stock ``openai`` SDK: upload, create, wait, download."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO, Final

import httpx2
import msgspec
from openai import APIConnectionError, InternalServerError, OpenAI
from openai.types import Batch

TERMINAL: Final = frozenset({"completed", "failed", "expired", "cancelled"})
POLL_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 600.0
"""How long a server may be away while a batch is waited for."""


class _Line(msgspec.Struct):
    url: str = ""


def endpoint_of(path: Path) -> str:
    """The endpoint that the first request of an input names; empty if it cannot be told."""
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    return msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf"), type=_Line).url
                except msgspec.DecodeError:
                    return ""
    return ""


class BatchClient:
    """Submits batches and fetches their results.

    Raises:
        openai.OpenAIError: from every method, when the server refuses or cannot be reached.
    """

    def __init__(self, openai: OpenAI) -> None:
        self._openai = openai

    def submit(self, path: Path, endpoint: str, window: str = "24h", idempotency_key: str | None = None) -> Batch:
        """Upload an input and create its batch.

        Args:
            path: the input, JSONL.
            endpoint: for example ``/v1/chat/completions``.
            window: the completion window.
            idempotency_key: creates the batch once, however often this is called with the same key and file.
        """
        # Without a key of the caller's, one of our own still keeps the SDK's retries from making two batches.
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        with path.open("rb") as file:
            uploaded = self._openai.files.create(file=file, purpose="batch", extra_headers=headers)
        return self._openai.batches.create(
            input_file_id=uploaded.id,
            endpoint=endpoint,  # pyright: ignore[reportArgumentType] - the server says which there are
            completion_window=window,  # pyright: ignore[reportArgumentType]
            extra_headers=headers,
        )

    def follow(self, batch_id: str, away: Callable[[Exception], None] = lambda _: None) -> Generator[Batch]:
        """The batch at each poll, the last time in its terminal state.

        A server that is away is waited for; ``away`` is told each time.
        """
        seen = time.monotonic()
        while True:
            try:
                batch = self._openai.batches.retrieve(batch_id)
            except (APIConnectionError, InternalServerError) as error:
                if time.monotonic() - seen > PATIENCE_SECONDS:
                    raise
                away(error)
            else:
                seen = time.monotonic()
                yield batch
                if batch.status in TERMINAL:
                    return
            time.sleep(POLL_SECONDS)

    def download(self, file_id: str | None, path: Path, away: Callable[[Exception], None] = lambda _: None) -> None:
        """Write a result file to ``path``, whole or not at all; an empty one where there is no such file.

        A server that is away, or goes on the way, is waited for; ``away`` is told each time.

        Raises:
            OSError: the file cannot be written.
        """
        partial = path.with_name(path.name + ".part")
        failed_at = 0.0
        try:
            while True:
                try:
                    with partial.open("wb") as target:
                        if file_id:
                            self._fetch(file_id, target)
                    os.replace(partial, path)
                    return
                except (APIConnectionError, InternalServerError) as error:
                    failed_at = failed_at or time.monotonic()
                    if time.monotonic() - failed_at > PATIENCE_SECONDS:
                        raise
                    away(error)
                time.sleep(POLL_SECONDS)
        finally:
            partial.unlink(missing_ok=True)

    def _fetch(self, file_id: str, target: BinaryIO) -> None:
        with self._openai.files.with_streaming_response.content(file_id) as response:
            try:
                for chunk in response.iter_bytes(1 << 20):
                    target.write(chunk)
            except httpx2.HTTPError as error:  # while a body is streamed the SDK lets these through
                raise APIConnectionError(request=error.request) from error
