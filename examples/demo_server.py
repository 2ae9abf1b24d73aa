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
from dataclasses import dataclass
from types import TracebackType

import httpx2

_READY_SECONDS = 900.0
"""The first start may have to build the Temporal server."""
_STOP_SECONDS = 60.0


class DemoError(Exception):
    """The demo cannot go on; the message is for whoever runs it."""


@dataclass(frozen=True)
class Ports:
    api: int
    temporal: int
    ui: int


def choose_ports(wanted: Ports) -> Ports:
    """The wanted ports, or any that are free in place of those that are taken, which is said."""
    return Ports(_choose("API", wanted.api), _choose("Temporal", wanted.temporal), _choose("Temporal UI", wanted.ui))


def _choose(name: str, wanted: int) -> int:
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

    def __init__(self, ports: Ports, data_dir: str) -> None:
        self.ports = ports
        self._data_dir = data_dir
        self._shown = True
        self._lines: collections.deque[str] = collections.deque(maxlen=40)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports.api}"

    def __enter__(self) -> DevServer:
        options = ["--port", str(self.ports.api), "--data-dir", self._data_dir]
        options += ["--temporal-port", str(self.ports.temporal), "--ui-port", str(self.ports.ui)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "api.cli.main", "dev", *options],
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
                sys.stdout.write(f"  dev | {line}")
                sys.stdout.flush()

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
