"""``GET /v1/models`` of several upstreams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2

from activities.upstreams.config import Upstream
from activities.upstreams.errors import UpstreamUnavailableError
from api.app import create_app
from tests.fakes.api import open_api


class Listed:
    """An upstream with what it lists; ``None`` where it is down."""

    def __init__(self, upstream: Upstream, *models: str, down: bool = False) -> None:
        self.upstream = upstream
        self.models = None if down else models

    async def get_models_raw(self) -> tuple[int, bytes]:
        if self.models is None:
            raise UpstreamUnavailableError("it does not answer")
        return 200, json.dumps({"data": [{"id": name, "max_model_len": 1.0} for name in self.models]}).encode()


def named(name: str, *models: str, **more: Any) -> Upstream:
    return Upstream(name=name, urls=("http://10.0.0.1/v1",), models=models, **more)


async def test_models_of_several_upstreams(tmp_path: Path) -> None:
    proxies = [
        Listed(named("a", "m/1", "m/2*", aliases={"nick": "m/1"}), "m/1", "m/22", "other"),
        Listed(named("b"), "m/1", "mine"),
        Listed(named("c", "gone", "p-*"), down=True),
        Listed(named("z", "gpt", dialect="azure", api_version="1"), "never asked"),
    ]
    made = open_api(tmp_path)
    app = create_app(made.settings, made.gateway, made.store, proxies)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as http:
        data = (await http.get("/v1/models")).json()["data"]
        assert [model["id"] for model in data] == ["m/1", "m/22", "nick", "mine", "gone", "gpt"]
        assert data[0] == {"id": "m/1", "max_model_len": 1.0}
        assert data[2] == {"id": "nick", "object": "model", "created": 0, "owned_by": "a"}
        assert (await http.get("/v1/models/gone")).status_code == 200
        assert (await http.get("/v1/models/other")).status_code == 404
