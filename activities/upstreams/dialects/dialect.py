"""What a dialect is. Its defaults are the plain dialect: OpenAI's API, and other fields unchanged.

vLLM, SGLang, llama.cpp, Ollama, TGI and OpenAI itself are sent a body's own bytes, fields unknown to us included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

Members = dict[str, msgspec.Raw]
"""The members of a JSON object, each as the bytes that it came as: a number or a field of another's stays as it is."""


class Refusal(NamedTuple):
    """The reason why the upstream would refuse a request, found at validation."""

    param: str
    """The member, for example ``top_k``."""
    message: str


def _bearer(key: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _endpoint(endpoint: str, model: str, api_version: str) -> str:
    return endpoint.removeprefix("/v1")


@dataclass(frozen=True)
class Dialect:
    body: Callable[[str, Members], Members] | None = None
    """From endpoint and body to the body to be sent; ``None`` sends it as it came."""
    refusal: Callable[[str, Members], Refusal | None] | None = None
    """Why a body cannot be expressed in this dialect, if it cannot."""
    auth: Callable[[str], Mapping[str, str]] = _bearer
    """From a key to the headers that carry it."""
    path: Callable[[str, str, str], str] = _endpoint
    """From endpoint, the engine's name of the model and API version to what follows the base URL."""
    path_has_model: bool = False
    """Whether :attr:`path` looks at the model."""
    base_path: str = "/v1"
    """Path of a base URL that is given without one."""
    metrics_path: str | None = "../metrics"
    """Of the engine's own metrics, seen from the base URL; ``None`` where there are none."""
    needs_api_version: bool = False
    needs_models: bool = False
    """Whether the server's own list does not name what requests may name."""
