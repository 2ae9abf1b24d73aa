"""Which upstream takes which model."""

from __future__ import annotations

from typing import Any, cast

import pytest

from activities.upstreams.client import InferenceClient
from activities.upstreams.config import Upstream
from activities.upstreams.errors import UpstreamUnavailableError
from activities.upstreams.routes import ModelRoutes, model_routes


def upstream(name: str, *models: str, **more: Any) -> Upstream:
    return Upstream(name=name, urls=(f"http://{name}/v1",), models=models, **more)


def test_names_come_before_patterns_and_these_before_what_is_listed() -> None:
    found = ModelRoutes(
        [
            upstream("lists"),
            upstream("pattern", "org/*", "exact"),
            upstream("names", "org/big", "exact", aliases={"nick": "org/real"}),
            upstream("any", "*"),
        ],
        [frozenset({"org/small", "listed", "nick"}), None, None, None],
    )
    places = {
        name: found.find(name) for name in ("org/small", "org/big", "exact", "nick", "listed", "else", "org/real")
    }
    assert places == {"org/small": 1, "org/big": 2, "exact": 1, "nick": 2, "listed": 3, "else": 3, "org/real": 1}
    assert found.default_upstream == 0


def test_upstreams_without_models_take_what_they_list() -> None:
    found = ModelRoutes([upstream("a"), upstream("b")], [frozenset({"x", "both"}), frozenset({"y", "both"})])
    assert [found.find(model) for model in ("x", "y", "both", "z")] == [0, 1, 0, None]


def test_one_that_cannot_be_asked_takes_what_nobody_else_has() -> None:
    found = ModelRoutes([upstream("a"), upstream("b"), upstream("c", "m")], [frozenset({"x"}), None, None])
    assert [found.find(model) for model in ("x", "z", "m")] == [0, 1, 2]


def test_several_that_cannot_be_asked_are_waited_for() -> None:
    found = ModelRoutes([upstream("a"), upstream("b"), upstream("c", "m")], [None, None, None])
    assert found.find("m") == 2
    with pytest.raises(UpstreamUnavailableError, match=r'upstream "a" .* or upstream "b"'):
        found.find("x")


def test_one_whose_list_says_nothing_takes_its_aliases_alone() -> None:
    azure = {"dialect": "azure", "api_version": "1"}
    upstreams = [upstream("x", aliases={"a": "d"}, **azure), upstream("y", aliases={"b": "d"}, **azure), upstream("z")]
    found = ModelRoutes(upstreams, [None, None, frozenset({"m"})])
    assert [found.find(model) for model in ("a", "b", "m", "else")] == [0, 1, 2, None]
    assert found.default_upstream == 2


def test_patterns_mind_the_case() -> None:
    found = ModelRoutes([upstream("a", "Llama-?[0-9]")], [None])
    assert [found.find(model) for model in ("Llama-x3", "llama-x3", "Llama-3")] == [0, None, None]


class Client:
    def __init__(self, of: Upstream, listed: frozenset[str] | None = None) -> None:
        self.upstream = of
        self.listed = listed
        self.asked = 0

    async def list_models(self) -> frozenset[str] | None:
        self.asked += 1
        return self.listed


async def routes_of(*clients: Client, any_model: bool = False) -> ModelRoutes:
    return await model_routes([cast(InferenceClient, client) for client in clients], any_model=any_model)


async def test_only_those_are_asked_whose_settings_do_not_say() -> None:
    says, lists = Client(upstream("a", "m")), Client(upstream("b"), frozenset({"x"}))
    found = await routes_of(says, lists)
    assert (says.asked, lists.asked) == (0, 1)
    azure = Client(upstream("a", aliases={"m": "d"}, dialect="azure", api_version="1"), frozenset({"may-be-deployed"}))
    assert (await routes_of(azure)).find("may-be-deployed") is None
    assert azure.asked == 0
    assert [found.find(model) for model in ("m", "x", "y")] == [0, 1, None]
    alone = Client(upstream("a"), frozenset({"x"}))
    assert (await routes_of(alone, any_model=True)).find("y") == 0
    assert alone.asked == 0
