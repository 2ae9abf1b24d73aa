"""The services of docker-compose.yml as plain processes: its commands and environment, but for the addresses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from base64 import b64encode
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from openai import AsyncOpenAI

from tests import compose, s3_server
from tests.e2e.cluster_tools import FOLDER, postgres_bin
from tests.e2e.processes import Child, Launcher, api_port, launcher
from tests.free_ports import free_ports
from tests.integration.stack import until

IP: Final = "127.0.0.1"
POSTGRES_READY: Final = re.compile("database system is ready to accept connections")
START_SECONDS: Final = 90.0
STOP_SECONDS: Final = 15.0


def _ending_with_us(command: list[str | Path], number: signal.Signals, user: str = "") -> list[str]:
    """The command gets this signal when this process ends, however that happens."""
    as_user = ["--reuid", user, "--regid", user, "--clear-groups"] if user else []
    return ["setpriv", *as_user, "--pdeathsig", number.name.removeprefix("SIG"), "--", *map(str, command)]


class Cluster:
    """Postgres, Temporal and the S3 server run; what of Everbatch runs is for the test to say."""

    def __init__(self, launcher: Launcher, upstream_url: str, postgres_folder: Path) -> None:
        self.launcher = launcher
        self._postgres_folder = postgres_folder
        self._ports = iter(free_ports(11))
        self._postgres_port = str(next(self._ports))
        self._temporal_port = str(next(self._ports))
        self._s3_port = str(next(self._ports))
        self._stopping: list[tuple[Child, signal.Signals]] = []
        self.values = {
            "POSTGRES_PASSWORD": secrets.token_hex(24),
            "S3_ACCESS_KEY": secrets.token_hex(8),
            "S3_SECRET_KEY": secrets.token_hex(24),
            "EVERBATCH_UPSTREAM_URL": upstream_url,
            "EVERBATCH_PAYLOAD_KEY": b64encode(secrets.token_bytes(32)).decode(),
        }
        self._key = ""

    @property
    def temporal_address(self) -> str:
        return f"{IP}:{self._temporal_port}"

    async def start_services(self) -> None:
        await self._start_s3()
        await self._start_postgres()
        await self._make_schema()
        await self._start_temporal()

    async def close(self) -> None:
        """Each service by the signal that it ends well by, the last one first; the launcher ends what is left."""
        for child, number in reversed(self._stopping):
            with contextlib.suppress(ProcessLookupError, AssertionError):
                child.send(number)
                await child.wait(STOP_SECONDS)

    # Services

    async def _start_postgres(self) -> None:
        programs = postgres_bin()
        assert programs, "no PostgreSQL"
        user = "" if os.geteuid() else "postgres"  # it refuses to run as root
        folder = self._postgres_folder
        password, data = folder / "password", folder / "data"
        password.write_text(self.values["POSTGRES_PASSWORD"])
        if user:
            owner = pwd.getpwnam(user)
            for path in (folder, password):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        options = [
            "-U",
            "temporal",
            "-A",
            "scram-sha-256",
            f"--pwfile={password}",
            "--no-sync",
            "--no-locale",
            "-E",
            "UTF8",
        ]
        command = [programs / "initdb", "-D", data, *options]
        initdb = await self.launcher.program("initdb", _ending_with_us(command, signal.SIGKILL, user), {})
        assert await initdb.wait(START_SECONDS) == 0, initdb.stderr
        settings = [f"unix_socket_directories={folder}", "fsync=off", "full_page_writes=off"]
        command = [programs / "postgres", "-D", data, "-h", IP, "-p", self._postgres_port]
        command += [word for setting in settings for word in ("-c", setting)]
        postgres = await self.launcher.program("postgres", _ending_with_us(command, signal.SIGQUIT, user), {})
        self._stopping.append((postgres, signal.SIGINT))
        await postgres.said(POSTGRES_READY, START_SECONDS)

    async def _make_schema(self) -> None:
        """Twice, as it runs at each start of the services."""
        env = compose.environment("temporal-schema", self.values) | {"SQL_HOST": IP, "SQL_PORT": self._postgres_port}
        env["PATH"] = f"{FOLDER}:{os.environ['PATH']}"
        shell, script = compose.read()["services"]["temporal-schema"]["entrypoint"]
        command = [shell, compose.mounted("temporal-schema", script)]
        for _ in range(2):
            schema = await self.launcher.program("schema", _ending_with_us(command, signal.SIGKILL), env)
            assert await schema.wait(START_SECONDS) == 0, schema.stdout + schema.stderr

    async def _start_temporal(self) -> None:
        env = compose.environment("temporal", self.values) | {
            "POSTGRES_SEEDS": IP,
            "DB_PORT": self._postgres_port,
            "BIND_ON_IP": IP,
            "FRONTEND_GRPC_PORT": self._temporal_port,
        }
        env["DYNAMIC_CONFIG_FILE_PATH"] = str(compose.mounted("temporal", env["DYNAMIC_CONFIG_FILE_PATH"]))
        env |= {
            f"{service}_{kind}_PORT": str(next(self._ports))
            for service in ("HISTORY", "MATCHING", "WORKER", "FRONTEND")
            for kind in ("GRPC", "MEMBERSHIP")
            if (service, kind) != ("FRONTEND", "GRPC")
        }
        env["FRONTEND_HTTP_PORT"] = str(next(self._ports))
        command = _ending_with_us([FOLDER / "temporal-server", "start"], signal.SIGTERM)
        temporal = await self.launcher.program("temporal-server", command, env)
        self._stopping.append((temporal, signal.SIGTERM))
        await self._until_open(temporal, self._temporal_port)

    async def _start_s3(self) -> None:
        folder = self.launcher.folder / "s3"
        folder.mkdir()
        env = compose.environment("s3", self.values) | {"VGW_PORT": f"{IP}:{self._s3_port}"}
        *command, _ = compose.read()["services"]["s3"]["command"]
        binary = s3_server.find_binary()
        assert binary, "no versitygw"
        command = _ending_with_us([binary, *command, folder], signal.SIGTERM)
        s3 = await self.launcher.program("s3", command, env)
        self._stopping.append((s3, signal.SIGTERM))
        await self._until_open(s3, self._s3_port)

    async def _until_open(self, child: Child, port: str) -> None:
        async def look() -> bool:
            assert child.running, child.stdout[-2000:] + child.stderr[-2000:]
            with contextlib.suppress(OSError), socket.create_connection((IP, int(port)), 1):
                return True
            return False

        await until(look, f"port {port}", START_SECONDS)

    # Everbatch

    def environment(self, service: str, **env: str) -> dict[str, str]:
        """What the service has in the compose file, with the addresses of here."""
        here = {
            "TEMPORAL_ADDRESS": self.temporal_address,
            "EVERBATCH_S3_ENDPOINT": f"{IP}:{self._s3_port}",
            "EVERBATCH_KEYS_FILE": str(self.launcher.folder / "keys.toml"),
            "EVERBATCH_METRICS_ADDRESS": f"{IP}:0",
        }
        members = compose.environment(service, self.values)
        # In a container the data folder is its own; here it would be that of the working folder.
        members = {"EVERBATCH_DATA_DIR": str(self.launcher.folder / "data"), **members}
        return {name: here.get(name, value) for name, value in members.items()} | env

    async def start(self, service: str, *arguments: str, **env: str) -> Child:
        words: list[str] = list(arguments) or compose.read()["services"][service]["command"]
        command = _ending_with_us([sys.executable, "-m", "api.cli.main", *words], signal.SIGKILL)
        return await self.launcher.program(words[0], command, self.environment(service, **env))

    async def make_key(self) -> None:
        create = await self.start("api", "keys", "create", "--tenant", "default")
        assert await create.wait(START_SECONDS) == 0, create.stderr
        self._key = create.stdout.strip()

    async def setup(self, **env: str) -> Child:
        child = await self.start("setup", **env)
        await child.wait(START_SECONDS)
        return child

    async def api(self, **env: str) -> tuple[Child, AsyncOpenAI]:
        """On a free port of loopback, and a client with a key."""
        child = await self.start("api", "serve", "--host", IP, "--port", "0", **env)
        url = f"http://{IP}:{await api_port(child)}/v1"
        return child, AsyncOpenAI(base_url=url, api_key=self._key, max_retries=0, timeout=30)


@contextlib.asynccontextmanager
async def running_cluster(folder: Path, upstream_url: str) -> AsyncGenerator[Cluster]:
    # Not below `folder`, which another user, Postgres', may not enter.
    postgres_folder = Path(tempfile.mkdtemp(prefix="everbatch-postgres-"))
    try:
        async with launcher(folder) as launched:
            cluster = Cluster(launched, upstream_url, postgres_folder)
            try:
                await asyncio.gather(cluster.start_services(), cluster.make_key())
                yield cluster
            finally:
                await cluster.close()
    finally:
        shutil.rmtree(postgres_folder)
