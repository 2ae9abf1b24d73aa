"""Runs the embedded Temporal server as a child process that always ends with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import time
from pathlib import Path

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.runtime import Runtime
from temporalio.service import RPCError

from api.dev.temporal_binary import EmbeddedTemporalError, TemporalBinary
from api.dev.temporal_data import TemporalData

IP = "127.0.0.1"

_HEALTHY_SECONDS = 60.0
_STOP_SECONDS = 10

_SERVER_FLAGS = [
    *("--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=2"),
    *("--dynamic-config-value", "matching.useNewMatcher=true"),
    *("--dynamic-config-value", "matching.enableFairness=true"),
    # Each tenant has a few fairness keys. Beyond this number of keys (by default a hundred), Temporal counts them in a
    # sketch with collisions, and a new tenant may wait as if it had queued the tasks of another.
    *("--dynamic-config-value", 'matching.fairnessCounter={"MapLimit":10000}'),
    # The order between batches is only kept within one partition.
    *("--dynamic-config-value", "matching.numTaskqueueReadPartitions=1"),
    *("--dynamic-config-value", "matching.numTaskqueueWritePartitions=1"),
    # Tasks are moved from the history to the task queues by polls of the database, at most this many per second. With
    # the default of 20, steps of workflows are 50 ms apart as soon as there are several: measured, one request took
    # 340 ms instead of 110, and a batch of 500 single requests took three times as long.
    *("--dynamic-config-value", "history.transferProcessorMaxPollRPS=2000"),
    *("--dynamic-config-value", "history.timerProcessorMaxPollRPS=2000"),
    *("--dynamic-config-value", "history.visibilityProcessorMaxPollRPS=2000"),
    # One worker, so that activities reach their task queue in the order in which the workflow scheduled them. With the
    # default of 512, the shards of a batch started in random order (number 125 of 157 among the first three), and a
    # batch ended late because requests of its first lines were sent last. More gain nothing: all share one connection.
    *("--dynamic-config-value", "history.transferProcessorSchedulerWorkerCount=1"),
    *("--log-format", "json", "--log-level", "warn"),
]

# Standard input is a pipe whose other end only this process holds, so it is closed when this process ends, even by
# `kill -9`. A shell, which every Unix has, waits for both the pipe and the server. `nap` runs in the background so that
# the watcher can kill it when the shell terminates the watcher after the server's end. If the shell itself was killed,
# the watcher notices the server's end by itself. Files that the server writes are readable by their owner only.
_KEEPER = f"""
umask 077
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
{{
    read -r _ <&3
    kill -TERM "$server"
    trap 'kill "$nap"; exit' TERM
    for second in $(seq {_STOP_SECONDS}); do
        sleep 1 3<&- & nap=$!
        wait "$nap"
        kill -0 "$server" || exit
    done
    kill -KILL "$server"
}} 2>/dev/null &
watcher=$!
exec 3<&-
wait "$server"
status=$?
kill "$watcher" 2>/dev/null
wait "$watcher" 2>/dev/null
exit "$status"
"""


class EmbeddedTemporal:
    """Temporal's development server with a database file, as a child of this process.

    Use it as an async context manager, or with `start` and `stop`. Port 0 means any free port. The first connection
    fixes the SDK's runtime, so pass a runtime or set the default one before `start`.
    """

    def __init__(
        self,
        binary: TemporalBinary,
        data_dir: Path,
        port: int,
        ui_port: int,
        *,
        port_option: str = "--temporal-port",
        runtime: Runtime | None = None,
        codec_endpoint: str = "",
    ) -> None:
        """Args: ``codec_endpoint`` is the URL of the UI's codec server, if payloads are encrypted."""
        self.port = port
        self.ui_port = ui_port
        self._binary = binary
        self._data = TemporalData(data_dir)
        self._port_option = port_option
        self._runtime = runtime
        self._codec_endpoint = codec_endpoint
        self._process: asyncio.subprocess.Process | None = None
        self._lifeline = -1
        self._lock = -1

    @property
    def address(self) -> str:
        return f"{IP}:{self.port}"

    @property
    def ui_url(self) -> str:
        return f"http://{IP}:{self.ui_port}"

    @property
    def log_path(self) -> Path:
        return self._data.log

    async def __aenter__(self) -> EmbeddedTemporal:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the server and wait until it answers. Ports that were 0 have their actual number afterwards.

        Raises:
            EmbeddedTemporalError: the directory or a port is in use, the database is of another version, or the server
                does not start.
        """
        try:
            self._lock = await self._take_lock()
            self._data.prepare(self._binary)
            self.port = _free_port(self.port, "Temporal", self._port_option)
            self.ui_port = _free_port(self.ui_port, "the Temporal UI", "--ui-port", taken=self.port)
            log_start = self._data.log.stat().st_size if self._data.log.exists() else 0
            self._process = await self._spawn()
            await self._until_healthy(self._process, log_start)
            self._data.mark_healthy(self._binary)
        except OSError as error:
            await self.stop()
            raise EmbeddedTemporalError(f"cannot start the embedded Temporal server: {error}") from error
        except BaseException:
            await self.stop()
            raise

    async def wait(self) -> int:
        """Wait until the server ends, by itself or by `stop`, and return its exit status (128 + n for signal n)."""
        assert self._process, "a server is awaited once it has started"
        return await self._process.wait()

    async def stop(self) -> None:
        """Stop the server, by force after ten seconds, and unlock the directory. Does nothing if it is not running."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._process is not None:
            try:
                async with asyncio.timeout(_STOP_SECONDS + 5):
                    await self._process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                await self._process.wait()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def _take_lock(self) -> int:
        """Wait for the lock in a thread. If this is cancelled, a lock that is obtained later is released."""
        taking = asyncio.get_running_loop().run_in_executor(None, self._data.lock)
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(lambda done: done.exception() or os.close(done.result()))
            raise

    async def _spawn(self) -> asyncio.subprocess.Process:
        command = [str(self._binary.path), "server", "start-dev", "--db-filename", str(self._data.database)]
        command += ["--ip", IP, "--port", str(self.port), "--ui-port", str(self.ui_port), *_SERVER_FLAGS]
        if self._codec_endpoint:
            command += ["--ui-codec-endpoint", self._codec_endpoint]
        # TEMPORAL_* variables configure clients. A profile or file named there can keep the server from starting.
        env = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
        lifeline, self._lifeline = os.pipe()
        try:
            with self._data.open_log() as log:
                return await asyncio.create_subprocess_exec(
                    *("/bin/sh", "-c", _KEEPER, "everbatch-temporal", *command),
                    stdin=lifeline,
                    stdout=log,
                    stderr=log,
                    env=env,
                    # The directory stays locked until the server has ended, however this process ends.
                    pass_fds=(self._lock,),
                    # Ctrl-C in the terminal must only reach this process: the server ends last.
                    start_new_session=True,
                )
        finally:
            os.close(lifeline)

    async def _until_healthy(self, process: asyncio.subprocess.Process, log_start: int) -> None:
        deadline = time.monotonic() + _HEALTHY_SECONDS
        while True:
            try:
                client = await Client.connect(self.address, runtime=self._runtime)
                await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
            except (RuntimeError, RPCError) as error:
                problem = str(error)
            else:
                # Another process may have taken the port and answered. If so, our child has failed because of that.
                problem = ""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    status = await process.wait()
                    tail = self._data.log_tail(log_start) or "it logged nothing"
                    raise EmbeddedTemporalError(
                        f"the embedded Temporal server ended while starting (exit status {status}; "
                        f"log {self._data.log}): {tail}"
                    )
            if not problem:
                return
            if time.monotonic() > deadline:
                raise EmbeddedTemporalError(
                    f"the embedded Temporal server did not answer within {_HEALTHY_SECONDS:.0f} s "
                    f"(log {self._data.log}): {problem}"
                )


def _free_port(wanted: int, what: str, option: str, taken: int = 0) -> int:
    """Return the wanted port, or any free one for 0.

    Raises:
        EmbeddedTemporalError: the port cannot be used.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # The server does the same: lingering connections of an earlier server are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            if wanted and wanted == taken:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            probe.bind((IP, wanted))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise EmbeddedTemporalError(
                f"port {wanted} for {what} cannot be used ({reason}): choose another with {option}"
            ) from error
        port: int = probe.getsockname()[1]
        if not wanted:
            # A connection that the listening side closes lingers, so that the system gives this port to no one who asks
            # for a free one or connects from one. The server does both many times before it binds the port.
            probe.listen(1)
            with socket.create_connection((IP, port)):
                probe.accept()[0].close()
        return port
