"""The settings of all processes, read once at start from ``EVERBATCH_*`` environment variables.

Temporal's address and credentials are not among them: they come from the Temporal SDK's own ``TEMPORAL_*`` variables
and profiles.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from activities.completion_windows import window_seconds
from activities.endpoints import ENDPOINTS, check_endpoint
from activities.input_addresses import checked_prefix
from activities.temporal.payload_codec import parse_keys
from activities.upstreams.config import MAX_IN_FLIGHT, InFlight, Order, base_url
from activities.webhooks import Endpoints, check_url, load_endpoints, signing_key
from workflows.contract import DEFAULT_TASK_QUEUE

_PREFIX = "EVERBATCH_"


class _Group(BaseSettings):
    """A group of settings. Its docstring is its heading in ``docs/settings.md`` (``make docs``)."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore")


class _Storage(_Group):
    """Storage."""

    data_dir: str = Field(
        ".everbatch", description="Directory for local state: the embedded Temporal server's database and log."
    )
    store: str = Field(
        "",
        description="Where files and results are stored: a directory, or `s3://bucket/prefix`. "
        "Defaults to `store` in the data directory.",
    )
    s3_endpoint: str = Field(
        "",
        description="Host, or host and port, of the S3 server, for example `s3.amazonaws.com`. Required with `s3://`.",
    )
    s3_access_key: SecretStr = Field(SecretStr(""), description="Access key for the S3 server. Required with `s3://`.")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="Secret key for the S3 server. Required with `s3://`.")
    s3_region: str = Field("us-east-1", min_length=1, description="Region of the bucket.")
    s3_secure: bool = Field(True, description="Use TLS for connections to the S3 server.")
    input_prefixes: str = Field(
        "",
        description="Addresses below which inputs of batches may be read from the S3 server without an upload, "
        "separated by commas: `s3://bucket/inputs/{tenant}`, for example. A batch then names one as its "
        "`input_file_id`. Without `{tenant}` all tenants may read all that is there.",
    )
    janitor_interval: int = Field(
        300,
        ge=1,
        description="Seconds between two runs of the janitor, which deletes expired files and leftovers, and closes "
        "batches whose workflow was terminated or lost.",
    )


class _Upstreams(_Group):
    """Upstreams."""

    upstream_url: str = Field(
        "",
        description="Base URL of the inference server (upstream), for example `http://127.0.0.1:8001/v1`. "
        "It must serve OpenAI's API.",
    )
    upstream_api_key: SecretStr = Field(SecretStr(""), description="Bearer token that is sent to the upstream.")
    upstreams: str = Field(
        "",
        description="TOML file that defines several upstreams, instead of the two settings above: "
        "see `docs/upstreams.md`.",
    )
    max_in_flight: InFlight = Field(
        "auto",
        description="Maximum number of concurrent requests to each replica of an upstream, per worker process: a "
        "fixed number, or `auto` to find the level above which throughput does not grow.",
    )
    auto_in_flight_ceiling: int = Field(
        1024,
        ge=1,
        le=MAX_IN_FLIGHT,
        description="The highest number of concurrent requests to each replica that `auto` may choose.",
    )
    order: Order = Field(
        "auto",
        description="Order in which the requests of a batch are sent: `prefix` (requests with the same beginning one "
        "after the other), `input`, or `auto` (`prefix` where many requests benefit).",
    )
    request_timeout: float = Field(600.0, gt=0, description="Timeout of one request, in seconds.")
    max_attempts: int = Field(
        5,
        ge=1,
        le=1000,
        description="Failed attempts (timeouts, 5xx responses) after which a request is written to the error file.",
    )
    max_answer_bytes: int = Field(
        67_108_864,
        ge=1024,
        description="Maximum size of one response of an upstream, in bytes. A larger one counts as a failed attempt.",
    )


class _Batches(_Group):
    """What batches may contain."""

    completion_windows: str = Field(
        "24h", description="Completion windows that clients may request, separated by commas: `5s,1h,24h`, for example."
    )
    max_requests: int = Field(50_000, ge=1, description="Maximum number of requests in one batch.")
    max_line_bytes: int = Field(
        64 << 20,
        ge=1024,
        le=1 << 30,
        description="Maximum size of one line of an input file, in bytes. The request in a longer line is not sent "
        "but written to the error file.",
    )
    max_input_bytes: int = Field(
        209_715_200, ge=1, description="Maximum size of the input file of one batch, in bytes."
    )
    max_message_requests: int = Field(
        100_000,
        ge=1,
        description="Maximum number of requests in one batch of Anthropic's Message Batches.",
    )
    max_message_bytes: int = Field(
        268_435_456, ge=1, description="Maximum size of a request that creates such a batch, in bytes."
    )
    max_file_bytes: int = Field(536_870_912, ge=1, description="Maximum size of one uploaded file, in bytes.")
    max_upload_bytes: int = Field(
        8_589_934_592, ge=1, description="Maximum size of one file uploaded in parts by the Uploads API, in bytes."
    )
    extra_endpoints: str = Field(
        "",
        description="Endpoints that batches may use in addition to OpenAI's, separated by commas: "
        "`/v1/score,/v1/rerank`, for example.",
    )
    mixed_models: bool = Field(True, description="Allow the requests of one batch to name different models.")
    unknown_model: Literal["batch", "line"] = Field(
        "batch",
        description="What happens when no upstream serves a model: `batch` fails the batch with `model_not_found`; "
        "`line` sends the request anyway, and its response decides.",
    )
    strict_error_lines: bool = Field(
        False,
        description="Set `error` to `null` in lines of requests that received an HTTP error, as OpenAI does. "
        "By default these lines also repeat the code and message of the response there.",
    )
    partial_results: bool = Field(
        False,
        description="Show `output_file_id` and `error_file_id` of running batches to all clients, with the lines that "
        "are committed, as clients of Doubleword expect. By default only to requests with `Everbatch-Partial: true`.",
    )


class _Api(_Group):
    """API."""

    keys_file: str = Field(
        "",
        description="File of API keys and tenants, created by `everbatch keys create`. Without it the API requires no "
        "key and listens on loopback addresses only.",
    )
    allowed_hosts: str = Field(
        "",
        description="Host names, separated by commas, that an API without keys serves in addition to loopback names; "
        "`*` allows every name. With keys, every name is served.",
    )
    max_connections: int = Field(
        1000,
        ge=10,
        le=100_000,
        description="Maximum number of connections to the API. Beyond it, idle connections are closed first; then new "
        "ones receive a 503.",
    )
    api_metrics_address: str = Field(
        "",
        description="Address on which the API serves `/metrics`, for example `127.0.0.1:9465`. "
        "By default it is served on the API's own port.",
    )
    log_format: Literal["text", "json"] = Field(
        "text",
        description="Format of the log: `text` for people, or `json` with one object per line and the ids of requests "
        "and batches.",
    )


class _Temporal(_Group):
    """Temporal."""

    temporal_cli: str = Field("", description="Path of the `temporal` binary that runs the embedded server.")
    task_queue: str = Field(
        DEFAULT_TASK_QUEUE,
        min_length=1,
        max_length=100,
        description="Temporal task queue. The queues for inference and for control activities derive their names from "
        "it (`-inference`, `-control`).",
    )
    temporal_ui_url: str = Field(
        "",
        pattern=r"^(https?://[^\s\"'<>]+)?$",
        description="Address of the namespace in the Temporal UI, for example "
        "`https://temporal.example.com/namespaces/default`. The web page links to it, and shows it to everyone.",
    )
    retention_days: int = Field(
        7,
        ge=1,
        le=36_500,
        description="Retention period of the Temporal namespace in days, applied by `everbatch setup`. After it, "
        "batches are still served from the store.",
    )
    payload_key: SecretStr = Field(
        SecretStr(""),
        description="Encrypts Temporal payloads: 32 bytes in base64. With several keys, separated by commas, the first "
        "encrypts and all of them decrypt. Disabled by default.",
    )
    codec_address: str = Field(
        "",
        description="Address on which the API serves the codec server for the Temporal UI, for example "
        "`127.0.0.1:8081`. Disabled by default.",
    )
    codec_origins: str = Field(
        "http://127.0.0.1:8233,http://localhost:8233",
        description="Origins of the Temporal UI, separated by commas, that may call the codec server.",
    )
    deployment: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_-]*$",
        description="Name of a Temporal worker deployment. When set, each batch finishes on the worker version on "
        "which it started, and new batches start on the version chosen by `everbatch promote`. Disabled by default.",
    )
    build_id: str = Field("", description="Version of this worker in its deployment. Defaults to Everbatch's version.")


class _Webhooks(_Group):
    """Webhooks."""

    webhook_url: str = Field("", description="Webhook URL called when a batch ends. Disabled by default.")
    webhook_secret: SecretStr = Field(
        SecretStr(""), description="Secret that signs these webhooks: `whsec_` followed by base64, or any text."
    )
    webhooks_file: str = Field("", description="TOML file that defines more webhooks: see `docs/webhooks.md`.")
    webhook_allow_private: bool = Field(False, description="Allow webhook URLs with private and loopback addresses.")


class _Workers(_Group):
    """Workers."""

    max_answers_bytes: int = Field(
        536_870_912,
        ge=1 << 20,
        description="Maximum total size of the responses that a worker process holds in memory, in bytes. Beyond it, "
        "further responses are read only once others are stored. As many bytes of requests are held; beyond them, "
        "further shards wait.",
    )
    commit_interval: float = Field(
        0.1, ge=0, le=60, description="Seconds that a response may wait to be stored together with others."
    )
    heartbeat_timeout: float = Field(
        10.0,
        ge=1.5,
        description="Seconds without a heartbeat after which a worker is considered lost and its shards are retried "
        "on another.",
    )
    drain_timeout: float = Field(
        30.0, ge=0, description="Seconds that a stopping worker gives its requests in flight to finish."
    )
    metrics_address: str = Field(
        "",
        description="Address on which a worker serves Prometheus metrics, for example `127.0.0.1:9464`. "
        "Disabled by default.",
    )


class Settings(_Storage, _Upstreams, _Batches, _Api, _Temporal, _Webhooks, _Workers):
    @field_validator("completion_windows")
    @classmethod
    def _windows_are_durations(cls, value: str) -> str:
        for window in value.split(","):
            window_seconds(window.strip())
        return value

    @field_validator("metrics_address", "api_metrics_address")
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
            raise ValueError("EVERBATCH_CODEC_ADDRESS needs EVERBATCH_PAYLOAD_KEY: without a key nothing is encrypted")
        return self

    @field_validator("input_prefixes")
    @classmethod
    def _prefixes_are_addresses(cls, value: str) -> str:
        return ",".join(checked_prefix(prefix.strip()) for prefix in value.split(",") if prefix.strip())

    @field_validator("extra_endpoints")
    @classmethod
    def _endpoints_are_paths(cls, value: str) -> str:
        for endpoint in filter(None, map(str.strip, value.split(","))):
            check_endpoint(endpoint)
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
            raise ValueError("EVERBATCH_WEBHOOK_URL and EVERBATCH_WEBHOOK_SECRET belong together: set both, or neither")
        self.webhook_endpoints()
        return self

    @field_validator("upstream_url")
    @classmethod
    def _upstream_is_http(cls, value: str) -> str:
        # OpenAI clients expect a base URL that ends in /v1. A bare host is a common mistake.
        return base_url(value, "/v1") if value else value

    @property
    def windows(self) -> list[str]:
        return [window.strip() for window in self.completion_windows.split(",")]

    @property
    def hosts(self) -> frozenset[str]:
        return frozenset(filter(None, (host.strip().lower() for host in self.allowed_hosts.split(","))))

    @property
    def payload_keys(self) -> list[bytes]:
        return parse_keys(self.payload_key.get_secret_value())

    @property
    def ui_origins(self) -> list[str]:
        return [origin.strip().rstrip("/") for origin in self.codec_origins.split(",")]

    @property
    def endpoints(self) -> list[str]:
        """All endpoints that a batch may use, without duplicates."""
        return list(dict.fromkeys([*ENDPOINTS, *filter(None, map(str.strip, self.extra_endpoints.split(",")))]))

    @property
    def prefixes(self) -> list[str]:
        """Address prefixes of inputs that may be read without an upload."""
        return list(filter(None, self.input_prefixes.split(",")))

    @property
    def retention(self) -> timedelta:
        return timedelta(days=self.retention_days)

    def webhook_endpoints(self) -> Endpoints:
        """Read the webhooks file and return all configured webhooks.

        Raises:
            ValueError: the webhooks file cannot be used.
        """
        return load_endpoints(self.webhook_url, self.webhook_secret, self.webhooks_file)

    @property
    def store_address(self) -> str:
        return self.store or f"{self.data_dir}/store"

    @property
    def store_is_remote(self) -> bool:
        return "://" in self.store_address
