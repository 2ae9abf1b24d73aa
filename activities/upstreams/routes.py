"""Which upstream serves which model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain

from activities.upstreams.client import InferenceClient, UpstreamUnavailableError
from activities.upstreams.config import Order, Upstream, is_pattern
from activities.upstreams.dialects import DIALECTS
from activities.upstreams.dialects.dialect import Members, Refusal
from activities.upstreams.waits import upstream_label


def _is_asked(upstream: Upstream) -> bool:
    """Whether its own list says which models it takes, and not only its settings."""
    return upstream.lists_models and not upstream.models


class ModelRoutes:
    """What is known at one moment.

    A model is taken by the first upstream, in the order of the file, that

    1. names it, in ``models`` or as an alias,
    2. has a pattern for it in ``models``,
    3. has no ``models`` and lists it,
    4. has no ``models`` and could not be asked for its list, if it is the only such one. Were it one of several, a
       batch that comes while engines are down would be sent to the wrong one, and fail.
    """

    def __init__(self, upstreams: Sequence[Upstream], listed: Sequence[frozenset[str] | None]) -> None:
        """Args: ``listed`` is what each upstream lists, ``None`` where it could not be asked or was not."""
        self._upstreams = upstreams
        self._found: dict[str, int | None] = {}
        for index, upstream in enumerate(upstreams):
            for name in (*upstream.aliases, *upstream.models):
                if name in upstream.aliases or not is_pattern(name):
                    self._found.setdefault(name, index)
        self._listed = [
            (index, names)
            for index, (upstream, names) in enumerate(zip(upstreams, listed, strict=True))
            if _is_asked(upstream)
        ]
        self._default_upstream = self._listed[0][0] if self._listed else 0
        self.by_prefix = frozenset(index for index, upstream in enumerate(upstreams) if upstream.order != "input")
        """Upstreams that may be sent requests in another order than that of the input."""

    def find(self, model: str) -> int | None:
        """The index of the upstream that takes a model, ``None`` if none does.

        Raises:
            UpstreamUnavailableError: several may, and cannot be asked.
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
        unasked = [index for index, names in self._listed if names is None]
        if len(unasked) > 1:
            names = " or ".join(upstream_label(self._upstreams[index]) for index in unasked)
            raise UpstreamUnavailableError(f"may be served by {names}, of which none lists its models just now")
        return unasked[0] if unasked else None

    def known(self) -> list[str]:
        """The names of all models that are known to be served."""
        named = (name for upstream in self._upstreams for name in (*upstream.aliases, *upstream.models))
        listed = (name for _, names in self._listed for name in sorted(names or ()))
        return list(dict.fromkeys(chain((name for name in named if not is_pattern(name)), listed)))

    @property
    def default_upstream(self) -> int:
        """The upstream for a request that names no model, or one that nobody is known to have: its answer decides."""
        return self._default_upstream

    def name(self, index: int) -> str:
        return self._upstreams[index].name

    def order(self, index: int) -> Order:
        return self._upstreams[index].order

    def refusal(self, index: int, endpoint: str, body: Members) -> Refusal | None:
        """What the upstream would refuse a request for."""
        refusal = DIALECTS[self._upstreams[index].dialect].refusal
        return refusal(endpoint, body) if refusal else None

    def has_refusals(self, index: int) -> bool:
        """Whether :meth:`refusal` ever has anything to say of an upstream; to ask it costs looking into the body."""
        return DIALECTS[self._upstreams[index].dialect].refusal is not None


async def model_routes(clients: Sequence[InferenceClient], *, any_model: bool) -> ModelRoutes:
    """The routes as the upstreams' lists of models make them just now.

    Args:
        clients: one for each upstream.
        any_model: whether a model that nobody lists is to be sent all the same. Then one upstream need not be asked.
    """
    upstreams = [client.upstream for client in clients]
    if any_model and len(clients) == 1:
        return ModelRoutes(upstreams, [None])

    async def listed(client: InferenceClient) -> frozenset[str] | None:
        return await client.list_models() if _is_asked(client.upstream) else None

    return ModelRoutes(upstreams, await asyncio.gather(*map(listed, clients)))
