"""Writes files completely or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO, cast


@contextlib.contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """Open a file that replaces ``path`` at the end of the block, and only if the block succeeds.

    A symbolic link stays, and its target is replaced. A device or a pipe is written to, never replaced.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        with tempfile.TemporaryFile() as file:
            yield cast("BinaryIO", file)
            file.seek(0)
            with path.open("wb") as target:
                shutil.copyfileobj(file, target)
        return
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")  # unique, in case two programs write at once
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
