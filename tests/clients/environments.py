"""Python environments of the users' own tools, installed from their registry into Everbatch's cache.

``python -m tests.clients.environments`` installs those of the quick tools, and fails with one line where that fails.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

from api.dev.temporal_binary import cached_path
from tests.clients.tools import TOOLS, Tool
from tests.engines.server import install_if_missing
from tests.venvs import make_venv


class Environment:
    """Tools with the same packages share one."""

    def __init__(self, tool: Tool) -> None:
        self._packages = tool.packages
        digest = hashlib.sha256("\n".join((sys.version, *tool.packages)).encode()).hexdigest()[:12]
        name = re.split(r"\W", tool.packages[0])[0]
        self._folder = cached_path().parents[1] / "clients" / f"{name}-{digest}"
        self._done = self._folder / "installed"

    @property
    def python(self) -> Path:
        return self._folder / "bin/python"

    def is_installed(self) -> bool:
        return self._done.exists()

    def install(self) -> None:
        """Blocks for some seconds.

        Raises:
            OSError, RuntimeError, subprocess.SubprocessError: it cannot be installed.
        """
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        make_venv(self._folder, *self._packages)
        self._done.touch()


def main() -> int:
    for tool in TOOLS:
        if tool.quick and not tool.needs:
            one = Environment(tool)
            if install_if_missing(tool.name, one.is_installed, one.install):
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
