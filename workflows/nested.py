"""A model whose JSON has some of its fields in a member of their own, so that people see the others first."""

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
"""The fields of a batch's spec that an operator has chosen and no client."""


class NestedSettings(BaseModel):
    """In Temporal's UI, the input of a workflow is this JSON."""

    NESTED: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields that are in the member ``settings``."""

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
