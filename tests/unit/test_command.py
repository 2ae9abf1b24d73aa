"""The ``everbatch`` command where its packages are hidden by others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["api", "activities", "workflows"])
def test_a_package_of_the_same_name_is_reported(tmp_path: Path, package: str) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.append(sys.argv[1]); import everbatch; everbatch.main()", ROOT],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (
        f"the Python package '{package}' of Everbatch is hidden by another one of that name: {tmp_path}" in done.stderr
    )
    assert "pip install everbatch-client" in done.stderr
    assert "Traceback" not in done.stderr
