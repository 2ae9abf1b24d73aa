"""Defines a dialect. The defaults are those of the plain dialect: OpenAI's API, with other fields unchanged.

vLLM, SGLang, llama.cpp, Ollama, TGI and OpenAI itself receive the original bytes of a body, including unknown fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

Members = dict[str, msgspec.Raw]
"""The members of a JSON object, each as its original bytes, so that numbers and unknown fields stay unchanged."""


class Refusal(NamedTuple):
    """The reason why the upstream would refuse a request, found at validation."""

    param: str
    """The name of the offending member, for example ``top_k``."""
    message: str


def _bearer(key: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _endpoint(endpoint: str, model: str, api_version: str) -> str:
    return endpoint.removeprefix("/v1")


@dataclass(frozen=True)
class Dialect:
    body: Callable[[str, Members], Members] | None = None
    """Maps the endpoint and a body to the body that is sent; ``None`` sends the original bytes."""
    refusal: Callable[[str, Members], Refusal | None] | None = None
    """Maps the endpoint and a body to the reason why this dialect cannot express it, or to ``None`` if it can."""
    auth: Callable[[str], Mapping[str, str]] = _bearer
    """Maps an API key to the headers that carry it."""
    path: Callable[[str, str, str], str] = _endpoint
    """Maps the endpoint, the engine's name of the model and the API version to the path after the base URL."""
    path_has_model: bool = False
    """Whether :attr:`path` depends on the model."""
    base_path: str = "/v1"
    """Path of a base URL that is configured without one."""
    metrics_path: str | None = "../metrics"
    """Path of the engine's own metrics, relative to the base URL; ``None`` if it has none."""
    needs_api_version: bool = False
    needs_models: bool = False
    """Whether the models must be configured, because the server's list does not have the names that requests use."""
