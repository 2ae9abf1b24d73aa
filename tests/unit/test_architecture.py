"""The one direction of imports (STYLE.md A4), by the syntax tree; and that modules and functions stay readable."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("workflows", "activities", "api")
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60

PURE = sys.stdlib_module_names | {"pydantic", "temporalio"}

# Which modules alone may import something. A name stands for itself and all below it.
ONLY_IN: dict[str, set[str]] = {
    "aiohttp": {"activities.inference", "activities.deliver_webhook"},
    "yarl": {"activities.inference", "activities.deliver_webhook"},
    "minio": {"activities.storage_s3", "activities.s3_client"},
    "urllib3": {"activities.storage_s3", "activities.s3_client"},
    "activities.storage_local": {"activities.stores"},
    "activities.storage_s3": {"activities.stores"},
    "activities.s3_client": {"activities.storage_s3", "activities.stores"},
    "openai": {"api.client", "api.client_errors", "api.client_retry", "api.batch_commands", "api.display"},
    "workflows.batch": {"activities.worker", "api.gateway"},
    "activities.worker": {"api.processes", "api.setup"},
    "activities.connection": {"api.processes", "api.setup"},
    "activities.tracing": {"api.processes"},
    "activities.namespace": {"api.processes", "api.setup", "api.cli"},
}
API_MAY_IMPORT_OF_ACTIVITIES = {
    "activities.settings",
    "activities.storage",
    "activities.catalog",
    "activities.running_batches",
    "activities.upload_records",
}
API_MAY_ALSO: dict[str, set[str]] = {
    "api.processes": {
        "activities.payload_codec",
        "activities.connection",
        "activities.tracing",
        "activities.worker",
        "activities.namespace",
        "activities.inference",
        "activities.metrics",
        "activities.schedule",
        "activities.stores",
        "activities.upstreams",
    },
    "api.setup": {
        "activities.connection",
        "activities.deployment",
        "activities.payload_codec",
        "activities.tracing",
        "activities.worker",
        "activities.namespace",
        "activities.schedule",
        "activities.stores",
    },
    "api.codec_server": {"activities.payload_codec"},
    "api.gateway": {"activities.payload_codec"},
    "api.cli": {"activities"},
    "api.models": {"activities.inference", "activities.upstreams"},
}
API_WITH_TEMPORAL = {
    "api.codec_server",
    "api.gateway",
    "api.progress",
    "api.processes",
    "api.setup",
    "api.temporal_server",
    "api.temporal_binary",
}

# What workflow code may not call: the wall clock, chance, and what depends on the order of a set.
NOT_IN_WORKFLOWS = {
    "asyncio.wait",
    "asyncio.as_completed",
    "time",
    "random",
    "secrets",
    "uuid.uuid4",
    "uuid.uuid1",
    "os.environ",
    "os.getenv",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
}


class Module(NamedTuple):
    name: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def imports(module: Module) -> Iterator[str]:
    """Dotted names that are imported, wherever in the module: ``from a import b`` gives ``a`` and ``a.b``."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(filter(None, [module.package, base]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def import_faults(module: Module) -> Iterator[str]:
    for name in imports(module):
        top = name.partition(".")[0]
        ours = top in PACKAGES
        if top == "tests":
            yield f"imports {name}"
        if ours and PACKAGES.index(top) > PACKAGES.index(module.package):
            yield f"imports {name} against the arrow"
        if module.package == "workflows" and not ours and top not in PURE:
            yield f"imports {name}"
        if module.package == "activities" and top in ("fastapi", "starlette", "uvicorn"):
            yield f"imports {name}"
        allowed_here = API_MAY_IMPORT_OF_ACTIVITIES | API_MAY_ALSO.get(module.name, set())
        activities = top == "activities" and name != "activities" and is_module(name)
        if module.package == "api" and activities and name not in allowed_here:
            yield f"imports {name}"
        if module.package == "api" and top == "temporalio" and module.name not in API_WITH_TEMPORAL:
            yield f"imports {name}"
        for guarded, allowed in ONLY_IN.items():
            if within(name, guarded) and module.name not in allowed:
                yield f"imports {name}, which is for {', '.join(sorted(allowed))}"


def dotted(node: ast.AST) -> str:
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return f"{dotted(node.value)}.{node.attr}"
        case _:
            return ""


def purity_faults(module: Module) -> Iterator[str]:
    if module.package != "workflows":
        return
    names = {dotted(node) for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)} | set(imports(module))
    for name in names:
        for forbidden in NOT_IN_WORKFLOWS:
            # `workflow.time()` is Temporal's own clock; `datetime.datetime.now` is the other one.
            if within(name, forbidden) or (forbidden.count(".") and name.endswith("." + forbidden)):
                yield f"uses {name}"


def size_faults(module: Module) -> Iterator[str]:
    lines = len(module.text.splitlines())
    if lines > MAX_MODULE_LINES:
        yield f"has {lines} lines"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{node.name} has {length} lines"


def init_faults(module: Module) -> Iterator[str]:
    """Importing a package costs nothing: a docstring, at most constants."""
    if "." not in module.name:
        for node in module.tree.body:
            if not isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign):
                yield f"line {node.lineno} does something"


CHECKS: list[Callable[[Module], Iterator[str]]] = [import_faults, purity_faults, size_faults, init_faults]


def modules() -> list[Module]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [Module(name, path.read_text()) for name, path in zip(names, paths, strict=True)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_code_keeps_the_rules(check: Callable[[Module], Iterator[str]]) -> None:
    found = modules()
    assert len(found) > 30
    assert [f"{module.name} {fault}" for module in found for fault in check(module)] == []


def test_the_rules_name_modules_that_are_there() -> None:
    names = {module.name for module in modules()}
    ruled = set[str]().union(*ONLY_IN.values(), API_WITH_TEMPORAL, API_MAY_ALSO, API_MAY_IMPORT_OF_ACTIVITIES)
    assert ruled <= names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("workflows.x", "import httpx2"),
        ("workflows.x", "from activities import catalog"),
        ("workflows.x", "def f():\n    import api.app"),
        ("workflows.x", "from tests.fakes import worker"),
        ("activities.x", "import tests"),
        ("activities.x", "from api.app import create_app"),
        ("activities.x", "import fastapi.routing"),
        ("activities.x", "import aiohttp"),
        ("activities.x", "from yarl import URL"),
        ("activities.storage_local", "import minio"),
        ("activities.catalog", "from workflows.batch import BatchWorkflow"),
        ("activities.catalog", "from workflows import batch"),
        ("activities.x", "from openai import AsyncOpenAI"),
        ("api.files", "import minio"),
        ("api.files", "from temporalio.client import Client"),
        ("api.files", "from activities.worker import BatchWorker"),
        ("api.files", "from activities import worker"),
        ("api.files", "from activities.inference import InferenceClient"),
        ("api.gateway", "from activities.results import look_up"),
        ("api.files", "import openai.types"),
    ],
)
def test_a_bad_import_is_found(name: str, text: str) -> None:
    assert list(import_faults(Module(name, text)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("workflows.x", "import asyncio, pydantic\nfrom temporalio import workflow\nfrom workflows import types"),
        ("activities.inference", "import aiohttp\nfrom yarl import URL\nfrom workflows.types import Usage"),
        ("activities.storage_s3", "from minio import Minio"),
        ("activities.worker", "from workflows.batch import BatchWorkflow"),
        ("api.processes", "from activities.worker import BatchWorker"),
        ("api.gateway", "from temporalio.client import Client\nfrom activities.catalog import Catalog"),
        ("api.client", "from openai import AsyncOpenAI"),
    ],
)
def test_a_good_import_passes(name: str, text: str) -> None:
    assert list(import_faults(Module(name, text))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import time",
        "from time import monotonic",
        "import random",
        "import asyncio\nasync def f(): await asyncio.wait([])",
        "from asyncio import wait",
        "import datetime\nx = datetime.datetime.now()",
        "from datetime import datetime\nx = datetime.utcnow()",
        "import uuid\nx = uuid.uuid4()",
        "import os\nx = os.environ['A']",
    ],
)
def test_what_makes_a_workflow_unrepeatable_is_found(text: str) -> None:
    assert list(purity_faults(Module("workflows.x", text)))
    assert not list(purity_faults(Module("activities.x", text)))


def test_temporals_own_clock_and_waiting_pass() -> None:
    text = "import asyncio\nfrom temporalio import workflow\nworkflow.time(); workflow.now(); asyncio.wait_for"
    assert list(purity_faults(Module("workflows.x", text))) == []


def test_what_is_too_long_is_found() -> None:
    assert list(size_faults(Module("api.x", "x = 1\n" * 401))) == ["has 401 lines"]
    function = "async def f():\n" + "    x = 1\n" * 60
    assert list(size_faults(Module("api.x", function))) == ["f has 61 lines"]
    assert list(size_faults(Module("api.x", "class A:\n" + "    x = 1\n" * 100))) == []


def test_a_package_that_does_something_is_found() -> None:
    assert list(init_faults(Module("api", '"""Text."""\n__version__ = "1"'))) == []
    assert list(init_faults(Module("api", "import os")))
    assert list(init_faults(Module("api", "for x in (): pass")))
