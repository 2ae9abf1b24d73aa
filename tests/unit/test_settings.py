"""The settings, and that the documentation names each of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from activities.completion_windows import window_seconds
from activities.endpoints import ENDPOINTS
from activities.settings import Settings
from api.cli.unknown_settings import unknown_variables
from tests import settings_page

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("EVERBATCH_")]:
        monkeypatch.delenv(name)


def settings(**values: Any) -> Settings:
    return Settings.model_validate(values)


@pytest.mark.parametrize(
    ("window", "seconds"), [("24h", 86_400), ("5s", 5), ("30m", 1800), ("7d", 604_800), ("1h", 3600)]
)
def test_windows(window: str, seconds: int) -> None:
    assert window_seconds(window) == seconds


@pytest.mark.parametrize(
    "window", ["", "24", "h", "0h", "-1h", "1.5h", "24 h", "24H", "24h ", "1w", "9" * 9 + "d", "٣h"]
)
def test_what_is_no_window(window: str) -> None:
    with pytest.raises(ValueError, match="is not a completion window"):
        window_seconds(window)
    with pytest.raises(ValidationError):
        settings(completion_windows=f"24h,{window.strip() or 'x'}x")


def test_several_windows() -> None:
    assert settings(completion_windows="5s, 1h ,24h").windows == ["5s", "1h", "24h"]
    assert settings().windows == ["24h"]


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("", ""),
        ("http://host:8001", "http://host:8001/v1"),
        ("http://host:8001/", "http://host:8001/v1"),
        ("http://host:8001/v1", "http://host:8001/v1"),
        ("http://host:8001/v1/", "http://host:8001/v1"),
        ("https://host/openai/v2//", "https://host/openai/v2"),
        ("http://[::1]:80", "http://[::1]:80/v1"),
    ],
)
def test_the_upstreams_address(url: str, base: str) -> None:
    assert settings(upstream_url=url).upstream_url == base


@pytest.mark.parametrize(
    "url",
    [
        "host:8001",
        "localhost",
        "ftp://host/v1",
        "http://",
        "http:///v1",
        "/v1",
        "http://host:99999/v1",
        "http://host/v1?key=x",
        "http://host/v1#x",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValidationError):
        settings(upstream_url=url)


def test_they_come_from_the_environment_and_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERBATCH_MAX_IN_FLIGHT", "7")
    monkeypatch.setenv("EVERBATCH_UNHEARD_OF", "x")
    found = settings()
    assert found.max_in_flight == 7
    with pytest.raises(ValidationError):
        found.max_in_flight = 8


def test_secrets_do_not_show() -> None:
    assert "hush" not in repr(settings(upstream_api_key="hush"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_in_flight", 0),
        ("request_timeout", 0),
        ("max_attempts", 0),
        ("max_requests", 0),
        ("commit_interval", -1),
        ("heartbeat_timeout", 0.5),
        ("unknown_model", "x"),
        ("task_queue", ""),
    ],
)
def test_what_cannot_be(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        settings(**{name: value})


@pytest.mark.parametrize("value", ["foo", "127.0.0.1", "127.0.0.1:", ":9464", "127.0.0.1:http"])
def test_where_metrics_cannot_be(value: str) -> None:
    with pytest.raises(ValidationError, match="is not host:port"):
        settings(metrics_address=value)
    assert settings(metrics_address="[::1]:9464").metrics_address == "[::1]:9464"


def test_more_endpoints() -> None:
    assert settings().endpoints == list(ENDPOINTS)
    assert settings(extra_endpoints=" /v1/score,,/v1/a/b-c_1.2, /v1/score,/v1/videos").endpoints == [
        *ENDPOINTS,
        "/v1/score",
        "/v1/a/b-c_1.2",
    ]


@pytest.mark.parametrize("value", ["score", "/score", "/v1", "/v1/", "/v1/../x", "/v1/a b", "/v1/x?y=1", "/v1//x"])
def test_what_is_no_endpoint(value: str) -> None:
    with pytest.raises(ValidationError, match="is not an endpoint such as /v1/score"):
        settings(extra_endpoints=value)


def test_the_store_is_in_the_data_folder_unless_said_otherwise() -> None:
    assert settings(data_dir="d").store_address == "d/store"
    assert settings(data_dir="d", store="s").store_address == "s"


def test_the_documented_settings_are_those_of_the_code() -> None:
    assert settings_page.PATH.read_text() == settings_page.page(), "run `make docs`"
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_the_documentation_names_no_setting_that_does_not_exist(path: Path) -> None:
    named = set(re.findall(r"(?<!_)EVERBATCH_[A-Z0-9_]+[A-Z0-9]", path.read_text()))
    assert named <= {f"EVERBATCH_{name.upper()}" for name in Settings.model_fields}


def test_misspelt_variables_are_named() -> None:
    given = {"EVERBATCH_STORE": "s", "everbatch_task_queue": "q", "EVERBATCH_STROE": "s", "TEMPORAL_ADDRESS": "a"}
    assert unknown_variables(given | {"EVERBATCH_X": "x"}) == {"EVERBATCH_STROE": "EVERBATCH_STORE", "EVERBATCH_X": ""}
    assert unknown_variables({"EVERBATCH_TEMPORAL_ADDRESS": "x"}) == {"EVERBATCH_TEMPORAL_ADDRESS": "TEMPORAL_ADDRESS"}


def test_how_many_requests_a_batch_may_have_is_for_the_operator_to_say() -> None:
    both = settings(max_requests=1_000_000_000, max_message_requests=1_000_000_000)
    assert (both.max_requests, both.max_message_requests) == (1_000_000_000, 1_000_000_000)
