"""Azure OpenAI: the key in an ``api-key`` header, the deployment in the path, the API version in the query.

A deployment takes the place of a model: the model of a request, or the name that its alias stands for, is the name of
the deployment. Azure's newer API under ``/openai/v1`` needs none of this; it is a plain upstream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from activities.upstreams.dialects.dialect import Dialect


def _api_key(key: str) -> Mapping[str, str]:
    return {"api-key": key}


def _deployment(endpoint: str, model: str, api_version: str) -> str:
    operation = endpoint.removeprefix("/v1")
    return f"/openai/deployments/{quote(model, safe='')}{operation}?api-version={quote(api_version, safe='')}"


DIALECT: Final = Dialect(
    metrics_path=None,
    auth=_api_key,
    path=_deployment,
    path_has_model=True,
    base_path="",
    needs_api_version=True,
    needs_models=True,  # Azure lists the models that can be deployed, not the deployments
)
