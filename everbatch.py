"""The ``everbatch`` command. It checks that the packages of Everbatch can be imported before it imports them.

Their names are short, so another package or a folder of a project may have one of them.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("workflows", "activities", "api")


def main() -> None:
    home = Path(__file__).resolve().parent
    for name in PACKAGES:
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != home / name:
            sys.exit(
                f"everbatch: the Python package {name!r} of Everbatch is hidden by another one of that name: {found}.\n"
                "Install Everbatch into an environment of its own, for example with `uv tool install everbatch` or "
                "`pipx install everbatch`, and run it without PYTHONPATH.\n"
                "A program that only submits batches does not need it: `pip install everbatch-client`."
            )
    from api.cli.main import main as run

    run(prog_name="everbatch")


if __name__ == "__main__":
    main()
