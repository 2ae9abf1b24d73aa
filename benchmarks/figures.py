"""What the scripts share besides the stack: input files, options, and how a figure is printed."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any


def write_input(path: Path, count: int, body_bytes: int = 300, prefix: str = "r") -> Path:
    """A batch file of chat requests whose bodies have about this size; the engine knows them by ``user``."""
    with path.open("w") as file:
        for number in range(count):
            custom_id = f"{prefix}-{number:06d}"
            body: dict[str, Any] = {"model": "fake", "user": custom_id, "messages": [{"role": "user", "content": ""}]}
            body["messages"][0]["content"] = ("tell me " * (body_bytes // 8 + 1))[: max(1, body_bytes - 90)]
            line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


def quick() -> bool:
    """Whether the command line asks for a run that only shows that the script works."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tenth or less of the work; figures mean little")
    return parser.parse_args().quick


def report(figure: str, ratio: float, target: str, text: str, **raw: Any) -> None:
    """One line for people and one for machines."""
    print(f"{figure}: {ratio:.3f} (target {target}): {text}", flush=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"figure": figure, "ratio": round(ratio, 4), "target": target, **raw, "machine": machine}))
