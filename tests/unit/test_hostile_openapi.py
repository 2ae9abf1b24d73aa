"""schemathesis asks what the OpenAPI document promises, of every operation."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS, load_all_checks  # pyright: ignore[reportUnknownVariableType]

from tests.fakes.api import open_api

load_all_checks()
NAMES = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]
# Its operations are the parameters of the test, so it is there before any fixture.
FOLDER = tempfile.TemporaryDirectory()
SCHEMA: Any = schemathesis.openapi.from_asgi(  # as Any, since its types are partly unknown
    "/openapi.json", open_api(Path(FOLDER.name), max_file_bytes=1 << 20, allowed_hosts="*").app
)
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
CASES = [
    pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
    for operation in (result.ok() for result in SCHEMA.get_all_operations())
    for mode in (POSITIVE, NEGATIVE)
    # What has no parameters cannot be asked wrongly.
    if mode is POSITIVE or operation.path.startswith("/v1/")
]


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_no_answer_is_a_surprise(operation: Any, mode: schemathesis.GenerationMode) -> None:
    examples = 5 if settings().max_examples <= 100 else settings().max_examples // 10

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        case.call_and_validate(checks=CHECKS.get_by_names(NAMES))

    ask()
