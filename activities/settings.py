"""The settings of every process, read once at start from ``EVERBATCH_*`` variables.

Temporal's address and credentials are not here: they come from the Temporal SDK's own ``TEMPORAL_*``
variables and profiles.
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from workflows.contract import DEFAULT_TASK_QUEUE

_WINDOW = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def window_seconds(window: str) -> int:
    """Seconds of a completion window such as ``24h``.

    Raises:
        ValueError: it is not a number followed by ``s``, ``m``, ``h`` or ``d``.
    """
    match = _WINDOW.fullmatch(window)
    if not match:
        raise ValueError(f"{window!r} is not a completion window such as 24h, 30m or 5s")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="EVERBATCH_", frozen=True, extra="ignore")

    data_dir: str = Field(".everbatch", description="Folder for local state: the embedded Temporal's database and log.")
    store: str = Field("", description="Where files and results are kept: a folder. Default: `store` in the data dir.")
    upstream_url: str = Field(
        "", description="Base URL of the OpenAI-compatible inference server, for example `http://127.0.0.1:8001/v1`."
    )
    upstream_api_key: SecretStr = Field(SecretStr(""), description="Bearer key for the inference server.")
    max_in_flight: int = Field(64, ge=1, le=10_000, description="Requests sent at once by one worker process.")
    request_timeout: float = Field(600.0, gt=0, description="Seconds that one request may take.")
    max_attempts: int = Field(
        5, ge=1, le=1000, description="Failed attempts (timeouts, 5xx) after which a request becomes an error line."
    )
    completion_windows: str = Field(
        "24h", description="Completion windows that clients may ask for, separated by commas, for example `5s,1h,24h`."
    )
    max_requests: int = Field(50_000, ge=1, le=1_000_000, description="Requests in one batch.")
    max_input_bytes: int = Field(209_715_200, ge=1, description="Bytes in the input file of one batch.")
    max_file_bytes: int = Field(536_870_912, ge=1, description="Bytes in one uploaded file.")
    unknown_model: Literal["batch", "line"] = Field(
        "batch",
        description="A model that the upstream does not list: `batch` fails the batch with `model_not_found`, "
        "`line` sends the line and lets its answer decide.",
    )
    mixed_models: bool = Field(True, description="Whether the requests of one batch may name several models.")
    task_queue: str = Field(
        DEFAULT_TASK_QUEUE,
        min_length=1,
        max_length=100,
        description="Temporal task queue; inference uses the same name with `-inference` behind it.",
    )
    temporal_cli: str = Field("", description="Path of the `temporal` binary for the embedded server.")
    metrics_address: str = Field(
        "", description="Where a worker serves Prometheus metrics, for example `127.0.0.1:9464`. Default: nowhere."
    )
    heartbeat_timeout: float = Field(
        30.0, ge=1.5, description="Seconds of silence after which a worker counts as dead and its shards move on."
    )
    commit_interval: float = Field(
        0.1, ge=0, le=60, description="Seconds that an answer may wait for others before it is committed."
    )
    drain_timeout: float = Field(
        30.0, ge=0, description="Seconds that a stopping worker gives requests in flight to end."
    )

    @field_validator("completion_windows")
    @classmethod
    def _windows_are_durations(cls, value: str) -> str:
        for window in value.split(","):
            window_seconds(window.strip())
        return value

    @field_validator("upstream_url")
    @classmethod
    def _upstream_is_http(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{value!r} is not an http:// or https:// address")
        # The convention of OpenAI clients is a base that ends in /v1; a bare host is a common slip.
        return value.rstrip("/") if parts.path.strip("/") else value.rstrip("/") + "/v1"

    @property
    def windows(self) -> list[str]:
        return [window.strip() for window in self.completion_windows.split(",")]

    @property
    def store_address(self) -> str:
        return self.store or f"{self.data_dir}/store"
