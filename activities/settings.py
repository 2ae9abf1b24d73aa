"""The settings of every process, read once at start from ``EVERBATCH_*`` variables.

Temporal's address and credentials are not here: they come from the Temporal SDK's own ``TEMPORAL_*``
variables and profiles.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from activities.payload_codec import parse_keys
from activities.webhooks import Endpoints, check_url, load_endpoints, signing_key
from workflows.contract import DEFAULT_TASK_QUEUE

_WINDOW = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_EXTRA_ENDPOINT = re.compile(r"/v1(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+")

ENDPOINTS = (
    "/v1/responses",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/videos",
)
"""Those of OpenAI's batches, in its order."""


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
    store: str = Field(
        "",
        description="Where files and results are kept: a folder, or `s3://bucket/prefix`. "
        "Default: `store` in the data dir.",
    )
    s3_endpoint: str = Field(
        "", description="Host, or host and port, of the S3 server; for AWS `s3.amazonaws.com`. Needed with `s3://`."
    )
    s3_access_key: SecretStr = Field(SecretStr(""), description="Access key of the S3 server. Needed with `s3://`.")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="Secret key of the S3 server. Needed with `s3://`.")
    s3_region: str = Field("us-east-1", min_length=1, description="Region of the bucket.")
    s3_secure: bool = Field(True, description="Whether the S3 server is spoken to over TLS.")
    upstream_url: str = Field(
        "", description="Base URL of the OpenAI-compatible inference server, for example `http://127.0.0.1:8001/v1`."
    )
    upstream_api_key: SecretStr = Field(SecretStr(""), description="Bearer key for the inference server.")
    upstreams: str = Field(
        "",
        description="TOML file that names several inference servers, instead of the two above: "
        "see `docs/upstreams.md`.",
    )
    max_in_flight: int = Field(64, ge=1, le=10_000, description="Requests sent at once by one worker process.")
    request_timeout: float = Field(600.0, gt=0, description="Seconds that one request may take.")
    max_answer_bytes: int = Field(
        67_108_864, ge=1024, description="Bytes in one answer of the inference server; more are a failed attempt."
    )
    max_attempts: int = Field(
        5, ge=1, le=1000, description="Failed attempts (timeouts, 5xx) after which a request becomes an error line."
    )
    completion_windows: str = Field(
        "24h", description="Completion windows that clients may ask for, separated by commas, for example `5s,1h,24h`."
    )
    max_requests: int = Field(50_000, ge=1, le=1_000_000, description="Requests in one batch.")
    max_input_bytes: int = Field(209_715_200, ge=1, description="Bytes in the input file of one batch.")
    max_file_bytes: int = Field(536_870_912, ge=1, description="Bytes in one uploaded file.")
    max_upload_bytes: int = Field(
        8_589_934_592, ge=1, description="Bytes in one file that arrives in parts, by the Uploads API."
    )
    unknown_model: Literal["batch", "line"] = Field(
        "batch",
        description="A model that no upstream has: `batch` fails the batch with `model_not_found`, "
        "`line` sends the line and lets its answer decide.",
    )
    extra_endpoints: str = Field(
        "",
        description="Endpoints that batches may use beside OpenAI's, separated by commas, for example "
        "`/v1/score,/v1/rerank`.",
    )
    strict_error_lines: bool = Field(
        False,
        description="Error lines of requests that got an HTTP answer carry `error: null`, as OpenAI's do, and not also "
        "its code and message.",
    )
    mixed_models: bool = Field(True, description="Whether the requests of one batch may name several models.")
    task_queue: str = Field(
        DEFAULT_TASK_QUEUE,
        min_length=1,
        max_length=100,
        description="Temporal task queue; inference uses the same name with `-inference` behind it.",
    )
    keys_file: str = Field(
        "",
        description="File of API keys and tenants, made by `everbatch keys create`. Without one no key is asked for, "
        "and the API listens on loopback alone.",
    )
    temporal_cli: str = Field("", description="Path of the `temporal` binary for the embedded server.")
    metrics_address: str = Field(
        "", description="Where a worker serves Prometheus metrics, for example `127.0.0.1:9464`. Default: nowhere."
    )
    payload_key: SecretStr = Field(
        SecretStr(""),
        description="Seals what crosses Temporal: base64 of 32 bytes; of several, separated by commas, the first seals "
        "and all open.",
    )
    codec_address: str = Field(
        "",
        description="Where the API serves the codec server of the Temporal UI, for example `127.0.0.1:8081`. "
        "Default: nowhere.",
    )
    codec_origins: str = Field(
        "http://127.0.0.1:8233,http://localhost:8233",
        description="Origins of the Temporal UI, separated by commas, that may use the codec server.",
    )
    retention_days: int = Field(
        7,
        ge=1,
        le=36_500,
        description="Days that Temporal remembers closed workflows, set by `everbatch setup`. The store remembers on.",
    )
    deployment: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_-]*$",
        description="Name of a Temporal worker deployment: set, each batch ends on the version of the workers that it "
        "began on, and a version gets new batches once `everbatch promote` names it.",
    )
    build_id: str = Field("", description="Version of this worker's code in its deployment. Default: Everbatch's.")
    log_format: Literal["text", "json"] = Field(
        "text",
        description="Log lines for people (`text`), or one JSON object each with request and batch ids (`json`).",
    )
    webhook_url: str = Field("", description="Where the ends of all batches are told, by webhook.")
    webhook_secret: SecretStr = Field(
        SecretStr(""), description="Signs these webhooks: `whsec_` and base64, or any text."
    )
    webhooks_file: str = Field("", description="TOML file of more webhooks: see `docs/webhooks.md`.")
    webhook_allow_private: bool = Field(False, description="Whether webhooks may go to private and loopback addresses.")
    heartbeat_timeout: float = Field(
        30.0, ge=1.5, description="Seconds of silence after which a worker counts as dead and its shards move on."
    )
    commit_interval: float = Field(
        0.1, ge=0, le=60, description="Seconds that an answer may wait for others before it is committed."
    )
    janitor_interval: int = Field(
        3600, ge=1, description="Seconds between two runs of the janitor, which deletes expired files and leftovers."
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

    @field_validator("metrics_address")
    @classmethod
    def _metrics_address_has_a_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and not (host and port.isascii() and port.isdigit()):
            raise ValueError(f"{value!r} is not host:port, for example 127.0.0.1:9464")
        return value

    @field_validator("payload_key")
    @classmethod
    def _payload_keys_are_keys(cls, value: SecretStr) -> SecretStr:
        parse_keys(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _codec_has_a_key(self) -> Settings:
        if self.codec_address and not self.payload_keys:
            raise ValueError("EVERBATCH_CODEC_ADDRESS is set, but EVERBATCH_PAYLOAD_KEY is not: nothing is sealed")
        return self

    @field_validator("extra_endpoints")
    @classmethod
    def _endpoints_are_paths(cls, value: str) -> str:
        for endpoint in filter(None, map(str.strip, value.split(","))):
            if not _EXTRA_ENDPOINT.fullmatch(endpoint):
                raise ValueError(f"{endpoint!r} is not an endpoint such as /v1/score")
        return value

    @field_validator("webhook_url")
    @classmethod
    def _webhook_is_http(cls, value: str) -> str:
        return check_url(value) if value else value

    @field_validator("webhook_secret")
    @classmethod
    def _webhook_secret_signs(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            signing_key(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _webhooks_can_be_sent(self) -> Settings:
        if bool(self.webhook_url) != bool(self.webhook_secret.get_secret_value()):
            raise ValueError("EVERBATCH_WEBHOOK_URL and EVERBATCH_WEBHOOK_SECRET go together: set both or none")
        try:
            self.webhook_endpoints()
        except ValueError as error:
            raise ValueError(f"EVERBATCH_WEBHOOKS_FILE={error}") from None
        return self

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
    def payload_keys(self) -> list[bytes]:
        return parse_keys(self.payload_key.get_secret_value())

    @property
    def ui_origins(self) -> list[str]:
        return [origin.strip().rstrip("/") for origin in self.codec_origins.split(",")]

    @property
    def endpoints(self) -> list[str]:
        """Every endpoint that a batch may use, each once."""
        return list(dict.fromkeys([*ENDPOINTS, *filter(None, map(str.strip, self.extra_endpoints.split(",")))]))

    @property
    def retention(self) -> timedelta:
        return timedelta(days=self.retention_days)

    def webhook_endpoints(self) -> Endpoints:
        """Reads the file.

        Raises:
            ValueError: it cannot be used (any more).
        """
        return load_endpoints(self.webhook_url, self.webhook_secret, self.webhooks_file)

    @property
    def store_address(self) -> str:
        return self.store or f"{self.data_dir}/store"

    @property
    def store_is_remote(self) -> bool:
        return "://" in self.store_address
