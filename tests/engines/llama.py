"""A real engine for tests: llama.cpp with a tiny model, installed from the package registry.

``python -m tests.engines.llama`` installs what is missing into Everbatch's cache, within seconds, and fails with one
line where the registry does not answer.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Final, Literal

from api.dev.temporal_binary import cached_path
from tests.engines.server import EngineServer, install_if_missing
from tests.venvs import make_venv, run

VERSION: Final = "2026.10.11549"
"""Of xllamacpp: llama.cpp and its server as a wheel."""
PACKAGES: Final = (f"xllamacpp=={VERSION}", "gguf==0.19.0", "numpy>=2,<3")
FOLDER: Final = cached_path().parents[1] / f"llama-{VERSION}"
HERE: Final = Path(__file__).parent
INSTALL_SECONDS: Final = 180

Kind = Literal["chat", "embed", "rerank"]


def is_installed() -> bool:
    return (FOLDER / "tiny.gguf").exists()


def install() -> None:
    """Blocks for some seconds.

    Raises:
        OSError, RuntimeError, subprocess.SubprocessError: it cannot be installed.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    python = make_venv(FOLDER / "venv", *PACKAGES, seconds=INSTALL_SECONDS)
    with tempfile.TemporaryDirectory(dir=FOLDER) as making:
        run(python, HERE / "make_gguf.py", f"{making}/tiny.gguf", cwd=FOLDER, seconds=INSTALL_SECONDS)
        os.replace(f"{making}/tiny.gguf", FOLDER / "tiny.gguf")


class LlamaServer(EngineServer):
    """llama.cpp's server."""

    def __init__(
        self,
        folder: Path,
        port: int,
        kind: Kind = "chat",
        slots: int = 4,
        slot_context: int = 1024,
        *,
        tells_metrics: bool = False,
    ) -> None:
        self.model = f"tiny-{kind}"
        command = [str(FOLDER / "venv" / "bin" / "python"), str(HERE / "llama_server.py"), str(FOLDER / "tiny.gguf")]
        command += ["--port", str(port), "--alias", self.model, "--kind", kind]
        command += ["--slots", str(slots), "--slot-context", str(slot_context)]
        command += ["--metrics"] if tells_metrics else []
        super().__init__(folder / f"{self.model}.log", port, command)

    async def busy(self) -> int:
        # By its own log: over HTTP it answers only when it has a thread free.
        log = self._log.read_text(errors="replace")
        return log.count("processing task") - log.count("stop processing")

    def begun(self) -> int:
        return self._count("processing task")


if __name__ == "__main__":
    sys.exit(install_if_missing("llama.cpp", is_installed, install))
