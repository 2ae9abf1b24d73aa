"""A real engine for tests: llama.cpp with a tiny model, installed from the package registry.

``python -m tests.engines.llama`` installs what is missing into Everbatch's cache, within seconds, and fails with one
line where the registry does not answer.
"""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp

from api.dev.temporal_binary import cached_path
from tests.integration.stack import until
from tests.venvs import make_venv, run

VERSION: Final = "2026.10.11549"
"""Of xllamacpp: llama.cpp and its server as a wheel."""
PACKAGES: Final = (f"xllamacpp=={VERSION}", "gguf==0.19.0", "numpy>=2,<3")
FOLDER: Final = cached_path().parents[1] / f"llama-{VERSION}"
HERE: Final = Path(__file__).parent
INSTALL_SECONDS: Final = 180
START_SECONDS: Final = 30

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


class LlamaServer:
    """One llama.cpp server, on a port that it keeps over restarts."""

    def __init__(self, folder: Path, port: int, kind: Kind = "chat", slots: int = 4, slot_context: int = 1024) -> None:
        self._log = folder / f"tiny-{kind}.log"
        self._port = port
        self.model = f"tiny-{kind}"
        self._options = ["--kind", kind, "--slots", str(slots), "--slot-context", str(slot_context)]
        self._process: asyncio.subprocess.Process | None = None

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    async def start(self) -> None:
        assert self._process is None, "it is running"
        command = [str(HERE / "llama_server.py"), str(FOLDER / "tiny.gguf"), "--port", str(self._port)]
        command += ["--alias", self.model, *self._options]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                str(FOLDER / "venv" / "bin" / "python"), *command, stdout=asyncio.subprocess.PIPE, stderr=log
            )
        assert self._process.stdout
        line = await asyncio.wait_for(self._process.stdout.readline(), START_SECONDS)
        assert line.startswith(b"ready "), f"it did not start: see {self._log}"

    async def kill(self) -> None:
        """``kill -9``. Does nothing when it is not running."""
        process, self._process = self._process, None
        if process:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def ask(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and body of the engine's own answer."""
        async with aiohttp.ClientSession() as session, session.post(self.root + path, json=body) as response:
            return response.status, await response.json(content_type=None)

    @property
    def busy(self) -> int:
        """Slots that work on something, by its own log: over HTTP it answers only when it has a thread free."""
        log = self._log.read_text(errors="replace")
        return log.count("processing task") - log.count("stop processing")

    async def until_busy(self, slots: int, seconds: float) -> None:
        async def look() -> bool:
            return self.busy == slots

        await until(look, f"{slots} busy slots", seconds)

    def begun(self) -> int:
        """Requests that it began to work on, by its own log, over all of its starts."""
        return self._log.read_text(errors="replace").count("processing task")


def main() -> int:
    if is_installed():
        return 0
    try:
        install()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        words = str(error).strip().splitlines() or ["no reason given"]
        sys.stderr.write(f"llama.cpp cannot be installed from the package registry: {words[-1].strip()}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
