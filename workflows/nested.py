"""A model whose JSON nests some fields in one member, so that people who read it see the other fields first."""

from __future__ import annotations

from typing import Any, ClassVar, Final, cast

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer, model_validator

SETTINGS: Final = "settings"

SETTINGS_OF_SPEC: Final = frozenset(
    {
        "max_requests",
        "max_input_bytes",
        "max_line_bytes",
        "max_attempts",
        "unknown_model",
        "mixed_models",
        "strict_error_lines",
        "heartbeat_timeout",
        "inference_task_queue",
        "counts_towards_limits",
        "max_queued_requests",
        "fairness_weight",
    }
)
"""The fields of a batch's specification that the operator sets, not the client."""


class NestedSettings(BaseModel):
    """A model that is written with nested settings, and read with or without them. Temporal's UI shows this JSON."""

    NESTED: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields that are nested in the member ``settings``."""

    @model_serializer(mode="wrap")
    def _nest(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        settings = {name: value for name, value in fields.items() if name in self.NESTED}
        return {name: value for name, value in fields.items() if name not in settings} | {SETTINGS: settings}

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, value: object) -> object:
        if not isinstance(value, dict) or SETTINGS not in value:
            return cast("object", value)
        fields = cast("dict[str, Any]", value)
        nested = fields[SETTINGS]
        return {**fields, **(cast("dict[str, Any]", nested) if isinstance(nested, dict) else {})}
