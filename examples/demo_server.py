"""``everbatch dev`` as the demo's child: ports that are free, its lines while it starts, a clean end."""

from __future__ import annotations

import collections
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import TracebackType

import httpx2

_READY_SECONDS = 900.0
"""The first start may have to build the Temporal server."""
_STOP_SECONDS = 60.0


class DemoError(Exception):
    """The demo cannot go on; the message is for whoever runs it."""


def _free_port(name: str, wanted: int) -> int:
    """Return the wanted port, or any that is free if it is taken, which is said."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            # As servers do: a port whose last connection has only just ended is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            got = int(probe.getsockname()[1])
        if got != wanted:
            print(f"Port {wanted} is taken; the {name} gets {got}.")
        return got
    raise DemoError("No port of 127.0.0.1 is free.")


class DevServer:
    """Runs ``everbatch dev`` for the length of a ``with`` and ends it by SIGINT.

    Raises:
        DemoError: at the end of the block, if it did not end by itself with exit code 0.
    """

    def __init__(self, data_dir: str) -> None:
        port, temporal_port = _free_port("API", 8000), _free_port("Temporal server", 7233)
        self.ui_port = _free_port("Temporal UI", 8233)
        self.url = f"http://127.0.0.1:{port}"
        self._options = ["--port", str(port), "--temporal-port", str(temporal_port)]
        self._options += ["--ui-port", str(self.ui_port), "--data-dir", data_dir]
        self._shown = True
        self._lines: collections.deque[str] = collections.deque(maxlen=40)

    def __enter__(self) -> DevServer:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "api.cli.main", "dev", *self._options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            # Ctrl-C is for the demo, which then ends the child once and in order.
            process_group=0,
        )
        self._pump = threading.Thread(target=self._pass_through, daemon=True)
        self._pump.start()
        return self

    def _pass_through(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.append(line)
            if self._shown:
                print(f"  dev | {line}", end="", flush=True)

    def wait_ready(self) -> None:
        """Show its lines until it can take batches."""
        deadline = time.monotonic() + _READY_SECONDS
        with httpx2.Client(trust_env=False, timeout=5) as http:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    self._pump.join(5)
                    raise DemoError(f"`everbatch dev` ended with exit code {self._process.returncode}.")
                try:
                    if http.get(f"{self.url}/ready").status_code == 200:
                        self._shown = False
                        return
                except httpx2.TransportError:
                    pass
                time.sleep(0.2)
        raise DemoError("`everbatch dev` did not get ready.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = self._stop()
        if code == 0 or (kind is not None and issubclass(kind, KeyboardInterrupt)):
            return
        if not self._shown:
            print("The last lines of `everbatch dev`:")
            sys.stdout.writelines(f"  dev | {line}" for line in self._lines)
        if kind is None:
            raise DemoError(f"`everbatch dev` did not end well: exit code {code}.")

    def _stop(self) -> int:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C: enough of waiting
            self._process.kill()
            self._process.wait()
        self._pump.join(5)
        return self._process.returncode
