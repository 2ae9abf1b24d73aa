"""Keys over a real socket: who may listen where, a stranger's large upload, keys that come and go while it runs."""

from __future__ import annotations

import time
from pathlib import Path

import openai
import pytest

from api.tenants.key_editing import create_key, revoke_key
from tests.e2e.processes import Launcher
from tests.integration.stack import until


async def test_keys_come_and_go_while_the_server_runs(processes: Launcher, tmp_path: Path) -> None:
    env = {"EVERBATCH_UPSTREAM_URL": "http://127.0.0.1:9/v1", "TEMPORAL_ADDRESS": "127.0.0.1:9"}
    refused = await processes.start("serve", "--host", "0.0.0.0", "--port", "0", env=env)
    assert await refused.wait(30) == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith("Error: --host 0.0.0.0 ")
    assert "--insecure" in line

    path = tmp_path / "keys.toml"
    first, key = create_key(path, "search")
    env["EVERBATCH_KEYS_FILE"] = str(path)
    child, client = await processes.serve(**env)

    async with client:
        # The client reads the answer only when it has sent all.
        began = time.monotonic()
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.files.create(file=("in.jsonl", b"x" * 50_000_000), purpose="batch")
        assert caught.value.code == "invalid_api_key"
        assert time.monotonic() - began < 10
        assert not [path for path in (processes.folder / "store").rglob("*content*") if path.is_file()]

        known = client.with_options(api_key=key)
        uploaded = await known.files.create(file=("in.jsonl", b"{}"), purpose="batch")
        _, second = create_key(path, "search")
        successor = client.with_options(api_key=second)

        async def knows(client: openai.AsyncOpenAI) -> bool:
            try:
                await client.files.retrieve(uploaded.id)
            except openai.AuthenticationError:
                return False
            return True

        await until(lambda: knows(successor), "the new key is known", 5)
        assert await knows(known)
        revoke_key(path, first.id)

        async def forgotten() -> bool:
            return not await knows(known)

        await until(forgotten, "the old key is forgotten", 5)
        assert await knows(successor)
        for secret in (key, second):
            assert secret not in child.stdout + child.stderr
