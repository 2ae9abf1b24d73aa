"""The client library as it is published: a wheel of its own, in an environment without the server."""

from __future__ import annotations

import asyncio
import os
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.e2e.processes import ROOT
from tests.e2e.shared_dev import SharedDev
from tests.venvs import make_venv, run

SOURCE = ROOT / "packages" / "everbatch-client"
OPT_OUT = "EVERBATCH_TEST_CLIENT_WHEEL"

PROGRAM = """
import asyncio, importlib.util, sys
from openai import AsyncOpenAI, OpenAI
from everbatch_client import AsyncBatchClient, BatchClient

for name in ("workflows", "activities", "temporalio", "fastapi", "click"):
    assert importlib.util.find_spec(name) is None, name
import api
assert api.MINE

with BatchClient(OpenAI(base_url=sys.argv[1], api_key="none")) as client:
    results = client.run(["one", "two"], model="fake")
assert list(results) == ["prompt-1", "prompt-2"] and all(result.text for result in results.values()), results

async def main():
    async with AsyncBatchClient(AsyncOpenAI(base_url=sys.argv[1], api_key="none")) as client:
        return await client.run([("a", {"model": "fake", "messages": [{"role": "user", "content": "hi"}]})])

print(asyncio.run(main())["a"].ok)
"""


def built_and_installed(folder: Path) -> Path:
    """A fresh environment with the wheel; returns its interpreter."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=SOURCE)
    (wheel,) = folder.glob("everbatch_client-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"everbatch_client/__init__.py", "everbatch_client/py.typed"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"everbatch_client"}
    return make_venv(folder / "venv", wheel, f"openai=={version('openai')}")


def test_both_distributions_have_one_version() -> None:
    versions = {
        tomllib.loads((folder / "pyproject.toml").read_text())["project"]["version"] for folder in (ROOT, SOURCE)
    }
    assert len(versions) == 1


@pytest.mark.timeout(200)
async def test_the_wheel_runs_without_the_server(server: SharedDev, tmp_path: Path) -> None:
    if os.environ.get(OPT_OUT) == "0":
        pytest.skip(f"{OPT_OUT}=0: openai would come from a package index")
    python = await asyncio.to_thread(built_and_installed, tmp_path)
    project = tmp_path / "project"
    (project / "api").mkdir(parents=True)  # a project may have its own package of that name
    (project / "api" / "__init__.py").write_text("MINE = True")
    (project / "program.py").write_text(PROGRAM)
    said = await asyncio.to_thread(run, python, "program.py", str(server.client.base_url), cwd=project)
    assert said == "True\n"
