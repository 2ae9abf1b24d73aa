"""Finds the upstream that serves a model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from activities.upstreams.config import Order, Upstream, is_pattern
from activities.upstreams.dialects import DIALECTS
from activities.upstreams.dialects.dialect import Members, Refusal
from activities.upstreams.errors import UpstreamUnavailableError
from activities.upstreams.labels import upstream_label

if TYPE_CHECKING:  # a process that checks inputs needs routes, and would start half a second later with a client
    from activities.upstreams.client import InferenceClient


def _routes_by_list(upstream: Upstream) -> bool:
    """Return whether the upstream's own list says which models it serves, rather than only its settings."""
    return upstream.lists_models and not upstream.models


class ModelRoutes:
    """The routes from models to upstreams, as known at one moment.

    A model is served by the first upstream, in the order of the file, that

    1. names it, in ``models`` or as an alias,
    2. has a pattern for it in ``models``,
    3. has no ``models`` and lists it,
    4. has no ``models``, does not answer, and is the only such upstream. If there were several, a batch that is created
       while they are down could be sent to the wrong one, and fail.
    """

    def __init__(self, upstreams: Sequence[Upstream], listed: Sequence[frozenset[str] | None]) -> None:
        """Args: ``listed`` are the models that each upstream lists, ``None`` if it is not known."""
        self._upstreams = upstreams
        self._found: dict[str, int | None] = {}
        for index, upstream in enumerate(upstreams):
            for name in (*upstream.aliases, *upstream.models):
                if name in upstream.aliases or not is_pattern(name):
                    self._found.setdefault(name, index)
        self._listed = [
            (index, names)
            for index, (upstream, names) in enumerate(zip(upstreams, listed, strict=True))
            if _routes_by_list(upstream)
        ]
        self._default_upstream = self._listed[0][0] if self._listed else 0
        self.by_prefix = frozenset(index for index, upstream in enumerate(upstreams) if upstream.order != "input")
        """Indexes of the upstreams whose requests may be sent in another order than that of the input."""

    def find(self, model: str) -> int | None:
        """Return the index of the upstream that serves a model, or ``None`` if there is none.

        Raises:
            UpstreamUnavailableError: several upstreams may serve it and do not answer.
        """
        if model not in self._found:
            self._found[model] = self._look(model)
        return self._found[model]

    def _look(self, model: str) -> int | None:
        for index, upstream in enumerate(self._upstreams):
            if upstream.takes(model):
                return index
        for index, names in self._listed:
            if names is not None and model in names:
                return index
        unlisted = [index for index, names in self._listed if names is None]
        if len(unlisted) > 1:
            names = " or ".join(upstream_label(self._upstreams[index]) for index in unlisted)
            raise UpstreamUnavailableError(f"may be served by {names}, of which none lists its models just now")
        return unlisted[0] if unlisted else None

    def known(self) -> list[str]:
        """Return the names of all models that are known to be served."""
        named = (name for upstream in self._upstreams for name in (*upstream.aliases, *upstream.models))
        listed = (name for _, names in self._listed for name in sorted(names or ()))
        return list(dict.fromkeys(chain((name for name in named if not is_pattern(name)), listed)))

    @property
    def default_upstream(self) -> int:
        """The index of the upstream for requests with no model or an unknown model: its answer decides."""
        return self._default_upstream

    def name(self, index: int) -> str:
        return self._upstreams[index].name

    def order(self, index: int) -> Order:
        return self._upstreams[index].order

    def refusal(self, index: int, endpoint: str, body: Members) -> Refusal | None:
        """Return the reason why the upstream would refuse a request, if it would."""
        refusal = DIALECTS[self._upstreams[index].dialect].refusal
        return refusal(endpoint, body) if refusal else None

    def has_refusals(self, index: int) -> bool:
        """Return whether :meth:`refusal` may return a reason. It is costly, because the body must be decoded."""
        return DIALECTS[self._upstreams[index].dialect].refusal is not None


async def model_routes(clients: Sequence[InferenceClient], *, any_model: bool) -> ModelRoutes:
    """Ask the upstreams for their models and return the resulting routes.

    Args: ``any_model`` is whether requests for an unknown model are sent anyway. If so, a single upstream is not asked.
    """
    upstreams = [client.upstream for client in clients]
    if any_model and len(clients) == 1:
        return ModelRoutes(upstreams, [None])

    async def listed(client: InferenceClient) -> frozenset[str] | None:
        return await client.list_models() if _routes_by_list(client.upstream) else None

    return ModelRoutes(upstreams, await asyncio.gather(*map(listed, clients)))
