"""Python environments of their own for programs that must not see ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path


def run(*command: str | Path, cwd: Path, seconds: float = 300) -> str:
    """Run a program without our paths; its output.

    Raises:
        RuntimeError: it failed. The message has what it said.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def make_venv(folder: Path, *packages: str | Path, seconds: float = 300) -> Path:
    """A new environment with some packages from their registry; returns its interpreter.

    Args: ``seconds`` is how long each of its steps may take.
    """
    python = folder / "bin/python"
    if uv := shutil.which("uv"):
        run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder, cwd=folder.parent, seconds=seconds)
        run(uv, "pip", "install", "--quiet", "--python", python, *packages, cwd=folder.parent, seconds=seconds)
    else:
        venv.create(folder, clear=True, with_pip=True)
        install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*install, *packages, cwd=folder.parent, seconds=seconds)
    return python
