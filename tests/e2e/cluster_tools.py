"""The programs that the cluster test runs, in the versions that docker-compose.yml names.

``python -m tests.e2e.cluster_tools`` builds what is missing with Go into Everbatch's cache; with ``--check`` it only
says what that is, and fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from api.dev.temporal_binary import cached_path
from tests import compose, s3_server

POSTGRES_PROGRAMS = ("initdb", "postgres")
VERSION = compose.read()["services"]["temporal"]["image"].rpartition(":")[2]
FOLDER = cached_path().parents[1] / f"temporal-server-{VERSION}"
PACKAGES = {
    "temporal-server": "go.temporal.io/server/cmd/server",
    "temporal-sql-tool": "go.temporal.io/server/cmd/tools/sql",
}
"""Temporal's programs, by the names that they have in its images."""


def build(name: str) -> None:
    """Blocks for minutes.

    Raises:
        subprocess.CalledProcessError: it cannot be built.
    """
    sys.stderr.write(f"Building {name} {VERSION} with Go, once; this may take ten minutes.\n")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as making:
        # The machine has something else to do as well.
        command = ["nice", "go", "install", f"{PACKAGES[name]}@v{VERSION}"]
        subprocess.run(command, check=True, env={**os.environ, "GOBIN": making})
        os.replace(Path(making) / PACKAGES[name].rpartition("/")[2], FOLDER / name)


def postgres_bin() -> Path | None:
    """The folder of Postgres' programs; Debian keeps it off PATH."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((one for one in folders if all((one / name).exists() for name in POSTGRES_PROGRAMS)), None)


def missing() -> list[str]:
    """What the cluster test lacks, and where that comes from."""
    found = [f"{name} {VERSION} (make cluster-tools)" for name in PACKAGES if not (FOLDER / name).exists()]
    if not s3_server.find_binary():
        found.append("versitygw (make cluster-tools)")
    return found if postgres_bin() else [*found, "PostgreSQL (apt-get install postgresql)"]


def main() -> int:
    if "--check" not in sys.argv[1:]:
        s3_server.build()
        for name in PACKAGES:
            if not (FOLDER / name).exists():
                build(name)
    lacking = missing()
    if lacking:
        sys.stderr.write(f"The cluster test cannot run without: {', '.join(lacking)}\n")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
