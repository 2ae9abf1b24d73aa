"""What ``make demo`` runs: ``everbatch dev``, three batches by the stock OpenAI client, and where to look at them.

Without ``EVERBATCH_UPSTREAM_URL`` the built-in echo model answers; with it, the first model of that server.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from demo_server import DemoError, DevServer
from openai import OpenAI, OpenAIError
from openai.types import Batch

_EXAMPLES = Path(__file__).resolve().parent
_TERMINAL = ("completed", "failed", "expired", "cancelled")
_POLL_SECONDS = 0.15
_SHORT = 150


class Job(NamedTuple):
    name: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    failed: int
    """Number of its requests that the echo model refuses."""


JOBS = [
    Job("chat", "/v1/chat/completions", failed=1),
    Job("completions", "/v1/completions", failed=0),
    Job("embeddings", "/v1/embeddings", failed=0),
]


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run()
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130
    except (DemoError, OpenAIError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def run() -> None:
    upstream = os.environ.get("EVERBATCH_UPSTREAM_URL", "")
    data_dir = os.environ.get("EVERBATCH_DATA_DIR") or ".everbatch"
    if not upstream and "EVERBATCH_MAX_IN_FLIGHT" not in os.environ:
        print("Four requests at a time, so that there is something to see (EVERBATCH_MAX_IN_FLIGHT).")
        os.environ["EVERBATCH_MAX_IN_FLIGHT"] = "4"
    print("Starting `everbatch dev`; the first start may have to build the Temporal server, which takes minutes.")
    with DevServer(data_dir) as server:
        server.wait_ready()
        with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            model = next(iter(client.models.list())).id if upstream else None
            batches = follow(client, [submit(client, job, model) for job in JOBS])
            show_results(client, batches)
        show_places(server.ui_port, data_dir, batches)
        for job, batch in zip(JOBS, batches, strict=True):
            counts = batch.request_counts
            if batch.status != "completed" or not counts or (not upstream and counts.failed != job.failed):
                raise DemoError(f"Not as expected: {job.name} is {describe(batch)}")
        print("\nStopping `everbatch dev` …")
    print("Done.")


def submit(client: OpenAI, job: Job, model: str | None) -> Batch:
    """Upload the job's file and create its batch, with the file's model replaced where one is given."""
    requests = [json.loads(line) for line in (_EXAMPLES / f"{job.name}.jsonl").read_text().splitlines()]
    for request in requests:
        request["body"]["model"] = model or request["body"]["model"]
    content = "".join(json.dumps(request) + "\n" for request in requests).encode()
    file = client.files.create(file=(f"{job.name}.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint=job.endpoint,
        completion_window="24h",
        metadata={"demo": job.name},
        extra_headers={"Idempotency-Key": f"demo-{file.id}"},
    )
    print(f"{job.name}: {file.bytes} bytes uploaded as {file.id}, batch {batch.id}")
    return batch


def follow(client: OpenAI, batches: list[Batch]) -> list[Batch]:
    """Poll until all have ended, showing how they get on: on a terminal in place, else a line per change."""
    last = [""] * len(batches)
    while True:
        batches = [b if b.status in _TERMINAL else client.batches.retrieve(b.id) for b in batches]
        lines = [f"{job.name:<12} {describe(batch)}" for job, batch in zip(JOBS, batches, strict=True)]
        if sys.stdout.isatty():
            # Cut to the window: a line that wraps would shift those to write over.
            width = shutil.get_terminal_size().columns - 1
            up = f"\x1b[{len(last)}A" if any(last) else ""
            print(up + "".join(f"\x1b[K{line[:width]}\n" for line in lines), end="", flush=True)
        else:
            print("".join(f"{line}\n" for line in lines if line not in last), end="", flush=True)
        last = lines
        if all(batch.status in _TERMINAL for batch in batches):
            return batches
        time.sleep(_POLL_SECONDS)


def describe(batch: Batch) -> str:
    """Status, counts and, from Everbatch's own ``progress``, how it gets on."""
    parts = [batch.status]
    if counts := batch.request_counts:
        parts.append(f"{counts.completed + counts.failed}/{counts.total}")
        parts += [f"({counts.failed} failed)"] if counts.failed else []
    progress: dict[str, Any] = (batch.model_extra or {}).get("progress") or {}
    if progress.get("in_flight"):
        parts.append(f"{progress['in_flight']} in flight")
    if progress.get("requests_per_second"):
        parts.append(f"{progress['requests_per_second']:.1f}/s")
    return " ".join([*parts, progress.get("waiting_reason") or ""]).rstrip()


def show_results(client: OpenAI, batches: list[Batch]) -> None:
    """The first lines of the first output file, and every line that was refused."""
    if output := batches[0].output_file_id:
        print("\nThe first results of the chat batch, shortened:")
        for line in client.files.content(output).text.splitlines()[:3]:
            print(f"  {_shortened(json.loads(line))}")
    refused = [line for b in batches if b.error_file_id for line in client.files.content(b.error_file_id).iter_lines()]
    if refused:
        print("\nRefused by the model, as lines of the error file:")
        for line in refused[:5]:
            print(f"  {_shortened(json.loads(line))}")


def _shortened(result: dict[str, Any]) -> str:
    response: dict[str, Any] = result["response"] or {"status_code": "not answered", "body": result}
    error = response["body"].get("error")
    said = f"{error['code']}: {error['message']}" if error else response["body"]["choices"][0]["message"]["content"]
    line = f"{result['custom_id']}: {response['status_code']}, {said!r}"
    return line if len(line) <= _SHORT else line[:_SHORT] + "…"


def show_places(ui_port: int, data_dir: str, batches: list[Batch]) -> None:
    """Where everything is kept and where it can be looked at."""
    store = Path(os.environ.get("EVERBATCH_STORE") or Path(data_dir) / "store").resolve()
    print(f"\nStored under {store}:")
    for job, batch in zip(JOBS, batches, strict=True):
        print(f"  {job.name}: batch {batch.id}, output {batch.output_file_id}, errors {batch.error_file_id}")
        print(f"    http://127.0.0.1:{ui_port}/namespaces/default/workflows/{batch.id}")
    print("The addresses are the batches in Temporal's UI. It ends with the demo; `make dev` brings it back up.")


if __name__ == "__main__":
    sys.exit(main())
