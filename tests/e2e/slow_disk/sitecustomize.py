"""On the path of a Python process, this makes its disk slow: each fsync takes 0.15 s."""

import os
import time

_fsync = os.fsync


def _slow_fsync(descriptor: int) -> None:
    time.sleep(0.15)
    _fsync(descriptor)


os.fsync = _slow_fsync
