"""Texts for the Temporal UI."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.worker import make_spec
from workflows.details import SUMMARY_BYTES, batch_details, batch_summary, cut, shard_summary
from workflows.types import BatchError, BatchPhase, BatchStatus, Counts


@given(st.text(max_size=300), st.integers(3, 250))
def test_a_cut_is_at_a_character_and_not_too_long(text: str, limit: int) -> None:
    short = cut(text, limit)
    assert len(short.encode()) <= limit
    assert short == text if len(text.encode()) <= limit else text.startswith(short.removesuffix("…"))


def test_summaries() -> None:
    assert batch_summary(make_spec(), 7) == "/v1/chat/completions · 7 lines · window 24h"
    assert batch_summary(make_spec(), None) == "/v1/chat/completions · file-1 · window 24h"
    assert len(batch_summary(make_spec(input_file_id="x" * 900), None).encode()) <= SUMMARY_BYTES
    assert shard_summary(4, 50, 100, "") == "shard 5/50, 100 requests"
    assert shard_summary(4, 50, 1, "my request") == "my request"
    assert len(shard_summary(0, 1, 1, "é" * 900).encode()) <= SUMMARY_BYTES


@pytest.mark.parametrize("phase", list(BatchPhase))
def test_details_show_how_it_stands(phase: BatchPhase) -> None:
    status = BatchStatus(phase=phase, counts=Counts(total=9, completed=4, failed=2), shards_total=3)
    text = batch_details(make_spec(), status)
    for row in (f"**{phase.value}**", "| requests | 9 |", "| completed | 4 |", "| failed | 2 |", "| shards | 3 |"):
        assert row in text.splitlines()
    assert ("heartbeats" in text) == (phase is BatchPhase.IN_PROGRESS)


def test_details_hold_nothing_that_a_client_wrote() -> None:
    error = BatchError(code="invalid_url", message="secret text", line=7)
    status = BatchStatus(phase=BatchPhase.FAILED, errors=[error], errors_total=3)
    text = batch_details(make_spec(metadata={"secret key": "secret value"}), status)
    assert "secret" not in text
    assert "It has 3 errors, the first on line 7: `" in text
    without_line = BatchStatus(errors=[error.model_copy(update={"line": None})], errors_total=1)
    assert "line -" in batch_details(make_spec(), without_line)
