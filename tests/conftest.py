"""Helpers that assert say what they saw, as tests do."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.e2e.faults")
