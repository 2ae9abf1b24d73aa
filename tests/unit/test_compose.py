"""docker-compose.yml, Dockerfile and .env.example against the code, since no container runs in the tests."""

from __future__ import annotations

import fnmatch
import importlib
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import click
import pytest
import yaml
from pydantic import SecretStr

import everbatch
from activities.settings import Settings
from activities.temporal import tracing
from api.cli.main import main
from tests import compose, s3_server
from tests.compose import ROOT, Variable
from tests.fakes.api import open_api

OURS = ("setup", "api", "worker")
JOBS = ("temporal-schema", "setup")
SECRETS = {"POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
FILLED_IN = {
    **dict.fromkeys(SECRETS, "x"),
    "EVERBATCH_UPSTREAM_URL": "http://host.docker.internal:8001/v1",
}
FILE: dict[str, Any] = compose.read()
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
TEXT = "\n".join(
    line.partition(" #")[0]
    for line in (ROOT / "docker-compose.yml").read_text().splitlines()
    if not line.lstrip().startswith("#")
)

every_service = pytest.mark.parametrize("name", SERVICES)
ours = pytest.mark.parametrize("name", OURS)


def settings_of(monkeypatch: pytest.MonkeyPatch, service: str) -> Settings:
    for name, value in compose.environment(service, FILLED_IN).items():
        monkeypatch.setenv(name, value)
    return Settings.model_validate({})


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options of an ``everbatch`` command line.

    Raises:
        click.UsageError: there is no such command or option.
    """
    group, values = main, dict[str, Any]()
    context = click.Context(main)
    while arguments:
        _, command, rest = group.resolve_command(context, arguments)
        assert command
        if not isinstance(command, click.Group):
            values = command.make_context(command.name, rest).params
            break
        group, arguments = command, rest
    return values


# Everbatch's services


@ours
def test_a_command_is_one_of_ours(name: str) -> None:
    assert parsed(list(SERVICES[name]["command"])) is not None


def test_a_command_that_is_not_ours_is_found() -> None:
    for arguments in (["server"], ["serve", "--hots", "x"], ["keys", "make"], ["serve", "--port", "x"]):
        with pytest.raises(click.UsageError):
            parsed(arguments)


@ours
def test_a_variable_is_a_setting(name: str) -> None:
    known = {f"EVERBATCH_{field.upper()}" for field in Settings.model_fields} | {
        "TEMPORAL_ADDRESS",
        "TEMPORAL_NAMESPACE",
        tracing.ENDPOINT,
    }
    assert set(SERVICES[name]["environment"]) <= known


@ours
def test_the_settings_are_valid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    settings = settings_of(monkeypatch, name)
    assert settings.store == "s3://everbatch"
    assert not settings.s3_secure
    assert settings.s3_secret_key == SecretStr("x")


def test_only_a_key_opens_the_public_port() -> None:
    options = parsed(list(SERVICES["api"]["command"]))
    assert options["host"] == "0.0.0.0"
    assert not options["insecure"]
    assert SERVICES["api"]["environment"]["EVERBATCH_KEYS_FILE"]


def test_everbatch_can_write_its_keys_and_nothing_else() -> None:
    path = Path(SERVICES["api"]["environment"]["EVERBATCH_KEYS_FILE"])
    assert SERVICES["api"]["volumes"] == [f"keys:{path.parent}"]
    assert re.search(rf"install .*--owner everbatch .*{path.parent}\n", dockerfile())
    for name in OURS:
        assert SERVICES[name]["read_only"] is True


@pytest.mark.parametrize("name", ["setup", "worker"])
def test_processes_share_what_must_be_the_same(name: str) -> None:
    api = SERVICES["api"]["environment"]
    shared = {variable for variable in api if not variable.startswith(("EVERBATCH_KEYS", "EVERBATCH_CODEC"))}
    for variable in shared:
        assert SERVICES[name]["environment"][variable] == api[variable]


def test_a_worker_may_drain_before_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SERVICES["worker"]["stop_grace_period"].endswith("s")
    grace = float(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace >= settings_of(monkeypatch, "worker").drain_timeout + 10


def test_workers_can_be_many() -> None:
    for name in SERVICES:
        assert "container_name" not in SERVICES[name]
    assert "ports" not in SERVICES["worker"]


def test_the_file_says_how_the_first_key_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERBATCH_KEYS_FILE", SERVICES["api"]["environment"]["EVERBATCH_KEYS_FILE"])
    (line,) = re.findall(
        r"docker compose run --rm --no-deps api (keys .*?)  ", (ROOT / "docker-compose.yml").read_text()
    )
    assert parsed(shlex.split(line))["tenant"] == "default"


# Addresses


def test_services_find_each_other() -> None:
    """Each host and port that a service is configured with is another service and the port that it listens on."""
    listening = {"postgres": 5432, "temporal": 7233, "s3": 7070}
    configured = {
        "temporal-schema": {"postgres": int(SERVICES["temporal-schema"]["environment"]["SQL_PORT"])},
        "temporal": {"postgres": int(SERVICES["temporal"]["environment"]["DB_PORT"])},
    }
    assert SERVICES["temporal-schema"]["environment"]["SQL_HOST"] == "postgres"
    assert SERVICES["temporal"]["environment"]["POSTGRES_SEEDS"] == "postgres"
    for name in (*OURS, "temporal-ui"):
        environment = SERVICES[name]["environment"]
        configured[name] = dict([_host_and_port(environment["TEMPORAL_ADDRESS"])])
        if name in OURS:
            configured[name] |= dict([_host_and_port(environment["EVERBATCH_S3_ENDPOINT"])])
    for name, addresses in configured.items():
        for host, port in addresses.items():
            assert listening[host] == port
            assert set(SERVICES[name]["networks"]) & set(SERVICES[host]["networks"])
    assert SERVICES["s3"]["environment"]["VGW_PORT"] == f":{listening['s3']}"
    assert "FRONTEND_GRPC_PORT" not in SERVICES["temporal"]["environment"]  # so it is 7233


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.partition(":")
    return host, int(port)


@every_service
def test_ports_are_published_on_loopback_alone(name: str) -> None:
    for published in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:(\d+|\$\{\w+:-\d+\}):\d+", published)
        assert "outside" in SERVICES[name]["networks"]


def test_what_keeps_state_cannot_be_reached_from_outside() -> None:
    assert FILE["networks"]["internal"] == {"internal": True}
    for name in ("postgres", "temporal-schema", "temporal", "s3"):
        assert SERVICES[name]["networks"] == ["internal"]


def test_published_ports_are_listened_on() -> None:
    inside = {name: [one.rpartition(":")[2] for one in SERVICES[name].get("ports", [])] for name in SERVICES}
    assert {name: ports for name, ports in inside.items() if ports} == {
        "temporal-ui": ["8080"],
        "api": [str(parsed(list(SERVICES["api"]["command"]))["port"]), "8081"],
    }


# Health


async def test_a_health_check_asks_what_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api, worker, s3 = (_checked_url(name) for name in ("api", "worker", "s3"))
    assert api.port == parsed(list(SERVICES["api"]["command"]))["port"]
    assert (await open_api(tmp_path).http.get(api.path)).status_code == 200
    assert f"0.0.0.0:{worker.port}" == settings_of(monkeypatch, "worker").metrics_address
    assert worker.path == "/metrics"
    assert f":{s3.port}" == SERVICES["s3"]["environment"]["VGW_PORT"]
    assert s3.path == SERVICES["s3"]["environment"]["VGW_HEALTH"]


def _checked_url(name: str) -> SplitResult:
    command = " ".join(SERVICES[name]["healthcheck"]["test"])
    (address,) = re.findall(r"http://[^'\" ]+", command)
    url = urlsplit(str(address))
    assert url.hostname == "127.0.0.1"
    return url


@pytest.mark.parametrize("name", ["api", "worker"])
def test_a_health_check_in_python_is_python(name: str) -> None:
    kind, program, option, code = SERVICES[name]["healthcheck"]["test"]
    assert (kind, program, option) == ("CMD", "python", "-c")
    compile(code, name, "exec")


@every_service
def test_who_waits_for_a_service_waits_until_it_is_of_use(name: str) -> None:
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        wanted = "service_completed_successfully" if other in JOBS else "service_healthy"
        assert condition == {"condition": wanted}
        assert other in JOBS or SERVICES[other]["healthcheck"]


def test_everything_waits_for_what_it_needs() -> None:
    waits = {name: set(service.get("depends_on", {})) for name, service in SERVICES.items()}
    assert waits["temporal-schema"] == {"postgres"}
    assert waits["temporal"] >= {"postgres", "temporal-schema"}
    assert waits["setup"] == {"temporal", "s3"}
    assert waits["api"] == waits["worker"] == {"setup"}


# All services


@every_service
def test_long_lived_services_alone_are_started_again_for_ever(name: str) -> None:
    restart = SERVICES[name]["restart"]
    assert restart.startswith("on-failure:") if name in JOBS else restart == "unless-stopped"


@every_service
def test_logs_do_not_fill_the_disk(name: str) -> None:
    assert {"max-size", "max-file"} <= set(SERVICES[name]["logging"]["options"])


@every_service
def test_images_have_a_version(name: str) -> None:
    tag = SERVICES[name]["image"].rpartition(":")[2]
    assert re.fullmatch(r"v?\d+(\.\d+)*", tag), tag


def test_the_s3_server_is_the_one_that_the_store_is_tested_on() -> None:
    assert SERVICES["s3"]["image"] == f"versity/versitygw:v{s3_server.VERSION}"


def test_temporal_and_its_schema_are_of_one_version() -> None:
    assert SERVICES["temporal"]["image"].rpartition(":")[2] == SERVICES["temporal-schema"]["image"].rpartition(":")[2]


def test_the_image_has_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {SERVICES[name]["image"] for name in OURS} == {f"everbatch:{project['version']}"}


@every_service
def test_what_is_mounted_is_there(name: str) -> None:
    for source, target, *mode in (volume.split(":") for volume in SERVICES[name].get("volumes", [])):
        assert target.startswith("/")
        if source.startswith("./"):
            assert (ROOT / source).is_file()
            assert mode == ["ro"]
            used = " ".join([*SERVICES[name].get("entrypoint", []), *SERVICES[name]["environment"].values()])
            assert target in used
        else:
            assert source in FILE["volumes"]


def test_every_volume_is_used() -> None:
    mounts = [volume for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert {mount.partition(":")[0] for mount in mounts if not mount.startswith(".")} == set(FILE["volumes"])


# .env


def env_example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return {line.partition("=")[0]: line.partition("=")[2] for line in lines if line and not line.startswith("#")}


def test_every_variable_is_in_the_example_and_the_other_way_round() -> None:
    used = compose.variables(TEXT)
    example = env_example()
    assert {variable.name for variable in used} == set(example)
    for name, required, default in used:
        assert required or example[name] == default, name


def test_no_secret_has_a_default() -> None:
    required = {variable.name for variable in compose.variables(TEXT) if variable.required}
    assert required == set(FILLED_IN)
    for variable in compose.variables(TEXT):
        assert variable.required or variable.name not in FILLED_IN
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|PWD|_KEY$|ACCESS_KEY", name):
                assert all(one.required or one.default == "" for one in compose.variables(value))
                assert compose.variables(value), name
    assert all(env_example()[name] == "" for name in FILLED_IN)


def test_the_file_that_is_filled_in_stays_here() -> None:
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_a_value_that_is_missing_is_refused() -> None:
    with pytest.raises(KeyError, match="POSTGRES_PASSWORD"):
        compose.environment("postgres", {})
    assert compose.environment("postgres", {"POSTGRES_PASSWORD": "p"})["POSTGRES_PASSWORD"] == "p"
    assert compose.variables("a ${A:?why} ${B:-b} ${C:-} ${D}") == [
        Variable("A", True, None),
        Variable("B", False, "b"),
        Variable("C", False, ""),
        Variable("D", False, None),
    ]
    with pytest.raises(ValueError, match=re.escape("$lower")):
        compose.variables("${A} $lower")


# The image


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text().replace("\\\n", "")


def instructions(word: str) -> list[str]:
    return re.findall(rf"^{word} (.*)$", dockerfile(), re.MULTILINE)


def test_what_the_image_copies_is_there_and_not_left_out() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert lines[1] == "*"
    for copy in instructions("COPY"):
        if copy.startswith("--from="):
            continue
        *sources, _ = copy.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert any(fnmatch.fnmatch(source, pattern) for pattern in let_in), source
    assert all((ROOT / path).exists() for path in let_in)


def test_the_image_holds_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {copy.split()[0] for copy in instructions("COPY")}
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= copied
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= {
        word for copy in instructions("COPY") for word in copy.split()
    }


def test_the_lock_holds_what_the_image_installs() -> None:
    """Else the build stops there: after a change of the dependencies, `make lock`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["otel"]]
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {re.split(r"[\[<>=]", requirement)[0] for requirement in wanted} <= locked
    assert "--extra otel" in dockerfile()


def test_the_image_starts_our_command() -> None:
    (entrypoint,) = instructions("ENTRYPOINT")
    (script,) = yaml.safe_load(entrypoint)
    module, _, function = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][script].partition(
        ":"
    )
    assert getattr(importlib.import_module(module), function) is everbatch.main


def test_the_image_runs_as_nobody_of_note() -> None:
    (user,) = instructions("USER")
    assert f"useradd --uid {user.partition(':')[0]} " in dockerfile()
    assert int(user.partition(":")[0]) >= 10_000
    assert dockerfile().index("\nUSER") < dockerfile().index("\nENTRYPOINT")


def test_the_image_is_made_of_versions() -> None:
    for image in instructions("FROM"):
        assert re.search(r":\d+\.\d+", image), image
        assert "latest" not in image
    for line in re.findall(r"uv (?:pip install|build) [^&]*", dockerfile()):
        assert "--require-hashes" in line or "--no-deps" in line


# Temporal


def test_temporal_gets_the_settings_that_the_embedded_one_has() -> None:
    from api.dev.temporal_server import _SERVER_FLAGS  # pyright: ignore[reportPrivateUsage]

    embedded = dict(flag.split("=") for flag in _SERVER_FLAGS if re.match(r"(matching|history)\.", flag))
    # One step at a time is for a database in the same process: over a network each would wait for the one before it.
    del embedded["history.transferProcessorSchedulerWorkerCount"]
    shipped = yaml.safe_load((ROOT / "deploy/temporal/dynamicconfig.yaml").read_text())
    assert {name: [{"value": yaml.safe_load(value)}] for name, value in embedded.items()} == shipped


def test_the_schema_script_is_a_script() -> None:
    subprocess.run(["sh", "-n", ROOT / "deploy/temporal/schema.sh"], check=True)
