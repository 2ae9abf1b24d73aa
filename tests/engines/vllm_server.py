"""vLLM's command line, which ends with the process that started it. Runs in the environment of
:mod:`tests.engines.vllm`.
"""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import os
import signal
import sys
import threading
import time


def end_with(parent: int) -> None:
    while os.getppid() == parent:  # a killed test run leaves no engine behind
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    from vllm.entrypoints.cli.main import main

    sys.exit(main())
