"""The part of a batch's specification that the operator sets, not the client."""

from __future__ import annotations

from typing import Any, Final, Literal, cast

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer, model_validator

SETTINGS: Final = "settings"


class BatchSettings(BaseModel):
    """Fields that are written in one member of the JSON, and read from there or beside the others. Temporal's UI shows
    this JSON, and people who read it see the batch itself first.
    """

    max_requests: int = 50_000
    max_input_bytes: int = 209_715_200
    max_line_bytes: int = 64 << 20
    """Maximum length of an input line. A request in a longer line is not sent and becomes an error line."""
    max_attempts: int = 5
    """Number of counted failures after which a request becomes an error line."""
    unknown_model: Literal["batch", "line"] = "batch"
    mixed_models: bool = True
    strict_error_lines: bool = False
    """Whether ``error`` is null in the error line of a request that got an HTTP response, as in OpenAI's files."""
    heartbeat_timeout: float = 10.0
    """Seconds without a heartbeat after which an activity's worker is considered lost."""
    inference_task_queue: str = "everbatch-inference"
    counts_towards_limits: bool = False
    """Whether the tenant's running batches are counted, for its limits and for its share."""
    max_queued_requests: int | None = None
    """Maximum number of requests in all running batches of the tenant together."""
    fairness_weight: float = 1.0
    """The tenant's weight, which its running batches share."""

    @model_serializer(mode="wrap")
    def _nest(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        settings = {name: fields.pop(name) for name in BatchSettings.model_fields if name in fields}
        return fields | {SETTINGS: settings}

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, value: object) -> object:
        if not isinstance(value, dict) or SETTINGS not in value:
            return cast("object", value)
        fields = cast("dict[str, Any]", value)
        nested = fields[SETTINGS]
        return {**fields, **(cast("dict[str, Any]", nested) if isinstance(nested, dict) else {})}
