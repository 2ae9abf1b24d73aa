"""P9: a worker is told to stop in the middle of a batch, and another is started. How long its requests stand still.

Each round is a batch of its own. What is measured is what the batch took from the moment that the new worker was ready,
beyond the time that the engine needed for what was left. Were a task lost with the old worker's last polls, it would
wait for a heartbeat timeout, here 30 seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path

from openai import AsyncOpenAI
from temporalio.client import Client

from benchmarks.figures import report, write_input
from tests.e2e.engine_log import EngineLog
from tests.e2e.processes import Child, Launcher, launcher, until_batch
from tests.e2e.restarts import left_behind, stopped
from tests.fakes.engine_process import EngineProcess
from tests.integration.stack import until

HEARTBEAT_TIMEOUT = 30
IN_FLIGHT, LATENCY = 64, 0.5


async def one_round(
    processes: Launcher, api: AsyncOpenAI, temporal: Client, log: EngineLog, worker: Child, source: Path, count: int
) -> tuple[Child, float, float, int]:
    """The new worker, seconds that the old one took to stop, seconds of standing still, and what it left behind."""
    before = len(log.read().events)
    file = await api.files.create(file=source, purpose="batch")
    batch = await api.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")

    def answered() -> int:
        return sum(event.kind == "sent" for event in log.read().events[before:])

    fraction = random.uniform(0.05, 0.7)

    async def enough() -> bool:
        return answered() >= fraction * count

    await until(enough, f"{fraction} of the answers", 120)
    stopped_in = await stopped(worker)
    orphans = len(await left_behind(temporal, batch.id, worker))
    left = count - answered()
    new = await processes.worker("--max-in-flight", str(IN_FLIGHT))
    ready = time.monotonic()
    await until_batch(api, batch.id, lambda batch: batch.status == "completed", 120)
    still = time.monotonic() - ready - left * LATENCY / IN_FLIGHT
    return new, stopped_in, still, orphans


async def main(rounds: int, count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="everbatch-bench-") as folder:
        log = EngineLog(Path(folder) / "engine.log")
        source = write_input(Path(folder) / "in.jsonl", count)
        async with EngineProcess(latency=LATENCY, log=log.path) as engine, launcher(Path(folder) / "data") as processes:
            address = (await processes.temporal())[1]
            processes.env |= {
                "TEMPORAL_ADDRESS": address,
                "EVERBATCH_UPSTREAM_URL": engine.url,
                "EVERBATCH_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT),
            }
            worker = await processes.worker("--max-in-flight", str(IN_FLIGHT))
            _, api = await processes.serve()
            temporal = await Client.connect(address)
            stops: list[float] = []
            stills: list[float] = []
            lost = 0
            async with api:
                for number in range(rounds):
                    worker, stopped_in, still, orphans = await one_round(
                        processes, api, temporal, log, worker, source, count
                    )
                    stops.append(round(stopped_in, 2))
                    stills.append(round(still, 2))
                    lost += orphans > 0
                    print(
                        f"{number}: stopped in {stopped_in:.2f} s, stood still {still:.2f} s, lost {orphans}",
                        flush=True,
                    )
    text = (
        f"{rounds} rounds of {count} requests: stood still {statistics.median(stills):.1f} s in the middle, "
        f"{max(stills):.1f} s at most; tasks left behind in {lost} rounds; stopped within {max(stops):.1f} s"
    )
    report("P9", max(stills), "≤ 8 s", text, still_seconds=sorted(stills), stop_seconds=sorted(stops), lost=lost)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--requests", type=int, default=500)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.requests))
