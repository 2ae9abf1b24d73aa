"""Checks an input without a server, for ``everbatch submit --dry-run``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

from activities.completion_windows import window_seconds
from activities.input.jsonl import read_lines
from activities.input.scan import scan_input
from activities.upstreams.config import Upstream
from activities.upstreams.routes import ModelRoutes
from workflows.types import BatchSpec

CHUNK_BYTES: Final = 1 << 20
BYTES_A_TOKEN: Final = 4
_PROMPTS: Final = ("messages", "prompt", "input", "instructions", "system", "tools")
_MAX_OUTPUT: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")


def check(path: Path, name: str, endpoint: str, window: str) -> tuple[list[str], bool]:
    """Check an input file. Returns a report in lines, and whether a server with default settings would accept it.

    Only the server knows which models, endpoints and completion windows it has, so these are not checked.

    Args: ``name`` is the name of the file in the report.
    """
    try:
        seconds = window_seconds(window)
    except ValueError as error:
        return [f"{name}: {error}"], False
    spec = BatchSpec(
        batch_id="",
        tenant="",
        input_file_id=name,
        endpoint=endpoint,
        completion_window=window,
        window_seconds=seconds,
        created_ms=time.time_ns() // 1_000_000,
        digest="",
        unknown_model="line",
    )
    if (size := path.stat().st_size) > spec.max_input_bytes:
        return [f"{name}: the file has {size:,} bytes; a server takes {spec.max_input_bytes:,} by default"], False
    result = scan_input(_chunks(path), spec, ModelRoutes([Upstream(name="", urls=("",))], [None])).result
    errors = [
        f"  line {error.line}: {error.message} ({error.code})" if error.line else f"  {error.message} ({error.code})"
        for error in result.errors
    ]
    if result.errors:
        more = result.errors_total - len(result.errors)
        errors += [f"  and {more:,} more"] if more else []
        return [f"{name}: {result.errors_total:,} error{'s' if result.errors_total > 1 else ''}", *errors], False
    given, output = _tokens(path, spec.max_line_bytes)
    maximum = f", at most {output:,} output tokens" if output is not None else ""
    requests = f"{result.total:,} request{'s' if result.total > 1 else ''}"
    return [f"{name}: {requests} for {endpoint}, no errors, about {given:,} input tokens{maximum}"], True


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _tokens(path: Path, max_line_bytes: int) -> tuple[int, int | None]:
    """Return an estimate of the input tokens, and the maximum of output tokens if every request sets one."""
    size, output, is_limited = 0, 0, True
    for line in read_lines(_chunks(path), max_line_bytes):
        if line.data is None:
            continue  # the request is not sent
        body = json.loads(line.data)["body"]
        size += sum(_text_bytes(body.get(name)) for name in _PROMPTS)
        limit = next((body[name] for name in _MAX_OUTPUT if type(body.get(name)) is int), None)
        is_limited = is_limited and limit is not None
        output += limit or 0
    return size // BYTES_A_TOKEN, output if is_limited else None


def _text_bytes(value: Any) -> int:
    if isinstance(value, str):
        return 0 if value.startswith("data:") else len(value.encode("utf-8", "replace"))
    if isinstance(value, list):
        return sum(map(_text_bytes, cast("list[Any]", value)))
    if isinstance(value, dict):
        return sum(map(_text_bytes, cast("dict[str, Any]", value).values()))
    return 0
