"""Two engines behind one server, and one of them is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.engine_log import EngineLog
from tests.e2e.processes import Launcher, done, finished, now, submit, until_batch
from tests.fakes.engine_process import EngineProcess
from tests.integration.stack import progress_of, request

COUNT = 1200


async def test_an_engine_is_killed_in_the_middle_of_a_batch_over_two(cluster: Launcher, tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "doomed.log")
    async with EngineProcess(latency=0.05) as steady, EngineProcess(latency=0.1, model="b", log=log.path) as doomed:
        path = tmp_path / "upstreams.toml"
        path.write_text(
            f'[[upstream]]\nname = "steady"\nurl = "{steady.url}"\nmodels = ["fake"]\n\n'
            f'[[upstream]]\nname = "doomed"\nurl = "{doomed.url}"\nmodels = ["b"]\nmax_in_flight = 16\n'
        )
        env = {"EVERBATCH_UPSTREAMS": str(path), "EVERBATCH_HEARTBEAT_TIMEOUT": "5"}
        await cluster.worker(**env)
        _, client = await cluster.serve(**env)
        lines: list[dict[str, Any]] = [request(f"r-{n}", model=("fake", "b")[n % 2]) for n in range(COUNT)]
        async with client:
            batch_id = await submit(client, lines)
            await until_batch(client, batch_id, lambda _: len(log.read().answered) > 50)
            await doomed.kill()
            killed = now()
            at_risk = log.read().unanswered(killed - 200_000_000, killed)  # in flight, or not committed yet
            # All of the other's are answered meanwhile, and the batch says whom it waits for.
            batch = await until_batch(
                client,
                batch_id,
                lambda batch: (
                    done(batch) >= COUNT // 2 + len(log.answered) - len(at_risk)
                    and 'upstream "doomed"' in (progress_of(batch).get("waiting_reason") or "")
                ),
                seconds=30,
            )
            assert done(batch) < COUNT
            counters = await steady.counters()
            assert counters.received == {f"r-{n}": 1 for n in range(0, COUNT, 2)}
            await doomed.start()
            result = await finished(client, batch_id)
        assert result.counts == (COUNT, COUNT, 0)
        assert result.answered == [f"r-{n}" for n in range(COUNT)]
        assert set(log.read().sent_again()) <= at_risk
        assert (await steady.counters()).received == counters.received
