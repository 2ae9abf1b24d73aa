"""The file that names the upstreams: what it may say, and the one clear error where it says something else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from activities.configured import load_upstreams
from activities.settings import Settings
from activities.toml_file import SettingsFileError
from activities.upstreams.config import Upstream


def load(folder: Path, text: str, **settings: Any) -> list[Upstream]:
    path = folder / "upstreams.toml"
    path.write_text(text)
    return load_upstreams(Settings.model_validate({"upstreams": str(path), "upstream_url": "", **settings}))


FULL = """
# Engines of the team.
[[upstream]]
name = "nim-1"
urls = ["http://gpu1:8000", "http://gpu2:8000/v1/"]
key_file = "{key_file}"
models = ["meta/llama-3.1-8b", "nvidia/*"]
timeout = 1200
max_in_flight = 16
order = "prefix"
dialect = "nim"
interactive_headroom = 0.2
body = {{ priority = 100, extra = {{ deep = [1.0, true, "é"] }} }}
headers = {{ X-Team = "search", X-Gate = {{ env = "GATE_KEY" }} }}
[upstream.aliases]
small = "meta/llama-3.1-8b"

[[upstream]]
name = "azure"
url = "https://us.openai.azure.com/"
key_env = "AZURE_KEY"
models = ["gpt-4o"]
dialect = "azure"
api_version = "2024-10-21"

[[upstream]]
name = "default"
url = "http://127.0.0.1:8001"
"""


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "key").write_text("file-secret\n")
    monkeypatch.setenv("AZURE_KEY", "env-secret")
    monkeypatch.setenv("GATE_KEY", "gate-secret")
    return FULL.format(key_file=tmp_path / "key")


def test_all_that_a_file_may_say(tmp_path: Path, full: str) -> None:
    nim, azure, default = load(tmp_path, full, max_in_flight=7, request_timeout=30.0)
    assert (nim.name, nim.urls, nim.dialect) == ("nim-1", ("http://gpu1:8000/v1", "http://gpu2:8000/v1"), "nim")
    assert (nim.models, nim.aliases) == (("meta/llama-3.1-8b", "nvidia/*"), {"small": "meta/llama-3.1-8b"})
    assert (nim.timeout, nim.max_in_flight, nim.key.get_secret_value()) == (1200.0, 16, "file-secret")
    assert {name: value.get_secret_value() for name, value in nim.headers.items()} == {
        "X-Team": "search",
        "X-Gate": "gate-secret",
    }
    assert (nim.interactive_headroom, nim.body) == (0.2, {"priority": 100, "extra": {"deep": [1.0, True, "é"]}})
    assert (nim.most_in_flight, nim.needs_watch) == (12, True)
    assert (default.interactive_headroom, default.body, default.needs_watch) == (0.0, {}, False)
    assert (azure.urls, azure.api_version) == (("https://us.openai.azure.com",), "2024-10-21")
    assert azure.key.get_secret_value() == "env-secret"
    assert (default.urls, default.models, default.timeout, default.max_in_flight) == (
        ("http://127.0.0.1:8001/v1",),
        (),
        30.0,
        7,
    )
    assert not default.is_only


def test_the_order_is_that_of_the_settings_unless_the_file_says_another(tmp_path: Path, full: str) -> None:
    assert [upstream.order for upstream in load(tmp_path, full)] == ["prefix", "auto", "auto"]
    assert [upstream.order for upstream in load(tmp_path, full, order="input")] == ["prefix", "input", "input"]
    with pytest.raises(SettingsFileError, match=r"order"):
        load(tmp_path, full.replace('order = "prefix"', 'order = "shuffled"'))


def test_secrets_do_not_show(tmp_path: Path, full: str) -> None:
    assert "secret" not in repr(load(tmp_path, full))


def test_one_upstream_of_the_settings() -> None:
    settings = Settings.model_validate(
        {"upstream_url": "http://e:1", "upstream_api_key": "k", "max_in_flight": 5, "request_timeout": 9.0}
    )
    (only,) = load_upstreams(settings)
    assert (only.name, only.urls, only.dialect, only.is_only) == ("default", ("http://e:1/v1",), "plain", True)
    assert (only.key.get_secret_value(), only.max_in_flight, only.timeout) == ("k", 5, 9.0)
    assert load_upstreams(Settings.model_validate({"upstream_url": ""})) == []


@pytest.mark.parametrize("name", ["upstream_url", "upstream_api_key"])
def test_a_file_and_an_upstream_beside_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsFileError, match=f"Both EVERBATCH_UPSTREAMS and EVERBATCH_{name.upper()} are set"):
        load(tmp_path, "", **{name: "http://e:1"})


HEAD = '[[upstream]]\nname = "a"\nurl = "http://e:1/v1"\n'


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "upstream: is required"),
        ("[[upstream]]\nname = \n", 2, "Invalid value"),
        ('[[upstream]]\nname = "a', 2, ""),
        ('upstreams = "x"\n' + HEAD, 1, "upstreams: there is no such setting"),
        (HEAD + "\n[other]\nx = 1\n", 5, "other: there is no such setting"),
        ("upstream = 5\n", 1, "upstream: Input should be a valid list"),
        ('upstream = [{ name = "a" }]\n', 1, "upstream a: needs either url or urls"),
        ("upstream = [5]\n", 1, "upstream[0]: must be a table"),
        ('[[upstream]]\nurl = "http://e:1"\n', 1, "upstream[0]: name: is required"),
        ('\n[[upstream]]\nname = "a"\n', 2, "upstream a: needs either url or urls"),
        (HEAD + 'urls = ["http://f:1"]\n', 1, "upstream a: needs either url or urls"),
        ('[[upstream]]\nname = "a b"\nurl = "http://e:1"\n', 2, "upstream a b: name: must be"),
        (HEAD + HEAD, 5, "there is another upstream of this name"),
        ('[[upstream]]\nname = "a"\nurl = "e:1"\n', 3, "is not an http:// or https:// URL; did you mean http://e:1?"),
        ('[[upstream]]\nname = "a"\nurl = "http://e:99999"\n', 3, "upstream a: url: "),
        ('[[upstream]]\nname = "a"\nurl = "http://u:hush@e:1"\n', 3, "url: must not hold credentials"),
        ('[[upstream]]\nname = "a"\nurl = "http://e:1/v1?key=hush"\n', 3, "url: must not have a query or a fragment"),
        ('[[upstream]]\nname = "a"\nurls = []\n', 3, "urls"),
        ('[[upstream]]\nname = "a"\nurls = ["http://e:1", "http://e:1/v1"]\n', 3, "names a replica twice"),
        (HEAD + 'key = "hush"\n', 4, "upstream a: key: there is no such setting"),
        (HEAD + 'key_env = "NOBODY_SETS_THIS"\n', 4, "environment variable NOBODY_SETS_THIS is not set"),
        (HEAD + 'key_file = "/nowhere/key"\n', 4, "key_file: /nowhere/key: No such file"),
        (HEAD + 'key_env = "A"\nkey_file = "b"\n', 1, "has both key_env and key_file"),
        (HEAD + "models = []\n", 4, "models: "),
        (HEAD + 'models = "m"\n', 4, "models: "),
        (HEAD + "\n[upstream.aliases]\na = 5\n", 5, "aliases: "),
        (HEAD + "timeout = 0\n", 4, "timeout: "),
        (HEAD + 'timeout = "9"\n', 4, "timeout: "),
        (HEAD + "max_in_flight = 1.5\n", 4, "max_in_flight: "),
        (HEAD + "interactive_headroom = 1\n", 4, "interactive_headroom: Input should be less than 1"),
        (HEAD + "interactive_headroom = -0.1\n", 4, "interactive_headroom: Input should be greater than or equal to 0"),
        (HEAD + "interactive_headroom = nan\n", 4, "interactive_headroom: Input should be a finite number"),
        (HEAD + 'interactive_headroom = "0.2"\n', 4, "interactive_headroom: "),
        (HEAD + "body = 5\n", 4, "body: Input should be a valid dictionary"),
        (HEAD + 'body = { model = "hush" }\n', 4, "body: model is for the clients to set; none of model, "),
        (HEAD + "body = { stream = true }\n", 4, "body: stream is for the clients to set"),
        (HEAD + "body = { messages = [] }\n", 4, "body: messages is for the clients to set"),
        (HEAD + 'body = { input = "hush" }\n', 4, "body: input is for the clients to set"),
        (HEAD + 'body = { prompt = "hush" }\n', 4, "body: prompt is for the clients to set"),
        (HEAD + "\n[upstream.body]\nsince = 2026-01-01\n", 5, "body: since is not a JSON value"),
        (HEAD + "body = { x = [1, { y = inf }] }\n", 4, "body: x is not a JSON value"),
        (HEAD + 'dialect = "french"\n', 4, "dialect: must be one of plain, nim, azure"),
        (HEAD + 'api_version = "1"\n', 1, "dialect plain does not use api_version"),
        (HEAD + 'dialect = "azure"\nmodels = ["m"]\n', 1, "dialect azure needs api_version"),
        (HEAD + 'dialect = "azure"\napi_version = "1"\n', 1, "dialect azure needs models or aliases"),
        (HEAD + 'headers = { "a b" = "c" }\n', 4, "is not the name of a header"),
        (HEAD + 'headers = { a = "hush\\n" }\n', 4, "headers: a: holds characters"),
        (HEAD + "headers = { a = {} }\n", 4, "headers: a: must be a text, or a table with either env or file"),
        (HEAD + HEAD.replace('"a"', '"b"') + "max_inflight = 5\n", 7, "b: max_inflight: there is no such setting"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    with pytest.raises(SettingsFileError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    found = re.match(rf"EVERBATCH_UPSTREAMS={re.escape(str(tmp_path))}/upstreams.toml, line (\d+): ", message)
    assert found, message
    assert (int(found[1]), words in message, "hush" in message) == (line, True, False), message
    assert "\n" not in message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsFileError, match="No such file"):
        load_upstreams(Settings.model_validate({"upstreams": str(tmp_path / "none"), "upstream_url": ""}))
    (tmp_path / "latin").write_bytes(b"# \xe9")
    with pytest.raises(SettingsFileError, match="not UTF-8"):
        load_upstreams(Settings.model_validate({"upstreams": str(tmp_path / "latin"), "upstream_url": ""}))
