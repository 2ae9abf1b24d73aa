"""What import-linter (see pyproject.toml) cannot check: workflows are repeatable, modules and functions stay short."""

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

PURE = sys.stdlib_module_names | {"pydantic", "temporalio", "workflows"}

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
    imported = set(imports(module))
    yield from (f"imports {name}" for name in imported if name.partition(".")[0] not in PURE)
    names = {dotted(node) for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)} | imported
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


CHECKS: list[Callable[[Module], Iterator[str]]] = [purity_faults, size_faults, init_faults]


def modules() -> list[Module]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [Module(name, path.read_text()) for name, path in zip(names, paths, strict=True)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_code_keeps_the_rules(check: Callable[[Module], Iterator[str]]) -> None:
    found = modules()
    assert len(found) > 30
    assert [f"{module.name} {fault}" for module in found for fault in check(module)] == []


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
        "import msgspec",
        "from tests.fakes import worker",
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
