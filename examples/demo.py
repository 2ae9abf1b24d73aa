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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from demo_server import DemoError, DevServer, Ports, choose_ports
from openai import OpenAI, OpenAIError
from openai.types import Batch

_EXAMPLES = Path(__file__).resolve().parent
_TERMINAL = ("completed", "failed", "expired", "cancelled")
_POLL_SECONDS = 0.15
_SHORT = 150


@dataclass(frozen=True)
class Job:
    name: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    completed: int
    failed: int
    """What the echo model makes of it."""


JOBS = [
    Job("chat", "/v1/chat/completions", completed=44, failed=1),
    Job("completions", "/v1/completions", completed=6, failed=0),
    Job("embeddings", "/v1/embeddings", completed=12, failed=0),
]


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run()
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130
    except DemoError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except OpenAIError as error:
        print(f"\nThe API refused or did not answer: {error}", file=sys.stderr)
        return 1
    return 0


def run() -> None:
    upstream = os.environ.get("EVERBATCH_UPSTREAM_URL", "")
    data_dir = os.environ.get("EVERBATCH_DATA_DIR") or ".everbatch"
    if not upstream and "EVERBATCH_MAX_IN_FLIGHT" not in os.environ:
        print("Four requests at a time, so that there is something to see (EVERBATCH_MAX_IN_FLIGHT).")
        os.environ["EVERBATCH_MAX_IN_FLIGHT"] = "4"
    print("Starting `everbatch dev`; the first start may have to build the Temporal server, which takes minutes.")
    with DevServer(choose_ports(Ports(8000, 7233, 8233)), data_dir) as server:
        server.wait_ready()
        with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            model = next(iter(client.models.list())).id if upstream else None
            batches = [submit(client, job, model) for job in JOBS]
            batches = follow(client, batches)
            show_results(client, batches)
            show_places(server.ports, data_dir, batches)
        if wrong := complaints(batches, echo=not upstream):
            raise DemoError("Not as expected: " + "; ".join(wrong))
        print("\nStopping `everbatch dev` …")
    print("Done.")


def submit(client: OpenAI, job: Job, model: str | None) -> Batch:
    """Upload the job's file and create its batch, with the file's model replaced where one is given."""
    content = (_EXAMPLES / f"{job.name}.jsonl").read_bytes()
    if model is not None:
        requests = [json.loads(line) for line in content.splitlines()]
        for request in requests:
            request["body"]["model"] = model
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
    last: list[str] = []
    while True:
        batches = [b if b.status in _TERMINAL else client.batches.retrieve(b.id) for b in batches]
        lines = [f"{job.name:<12} {describe(batch)}" for job, batch in zip(JOBS, batches, strict=True)]
        if sys.stdout.isatty():
            # Cut to the window: a line that wraps would shift those to write over.
            width = shutil.get_terminal_size().columns - 1
            up = f"\x1b[{len(last)}A" if last else ""
            print(up + "".join(f"\x1b[K{line[:width]}\n" for line in lines), end="", flush=True)
        else:
            changed = [line for line, before in zip(lines, last or [""] * len(lines), strict=True) if line != before]
            print("".join(f"{line}\n" for line in changed), end="", flush=True)
        last = lines
        if all(batch.status in _TERMINAL for batch in batches):
            return batches
        time.sleep(_POLL_SECONDS)


def describe(batch: Batch) -> str:
    """Status, counts and, from Everbatch's own ``progress``, how it gets on."""
    counts = batch.request_counts
    parts = [batch.status]
    if counts:
        failed = f" ({counts.failed} failed)" if counts.failed else ""
        parts.append(f"{counts.completed + counts.failed}/{counts.total}{failed}")
    progress = cast("dict[str, Any]", (batch.model_extra or {}).get("progress") or {})
    if batch.status in _TERMINAL:
        return " ".join(parts)
    if progress.get("in_flight"):
        parts.append(f"{progress['in_flight']} in flight")
    if progress.get("requests_per_second"):
        parts.append(f"{progress['requests_per_second']:.1f}/s")
    if progress.get("waiting_reason"):
        parts.append(progress["waiting_reason"])
    return " ".join(parts)


def show_results(client: OpenAI, batches: list[Batch]) -> None:
    """Final counts, the first lines of the first output file, and every line that was refused."""
    print("\nEnded:")
    for job, batch in zip(JOBS, batches, strict=True):
        counts = batch.request_counts
        numbers = f"{counts.completed} completed, {counts.failed} failed of {counts.total}" if counts else "no counts"
        print(f"  {job.name}: {batch.status}, {numbers}")
        for error in (batch.errors.data if batch.errors else None) or []:
            print(f"    {error.code}: {error.message}")
    if output := batches[0].output_file_id:
        print("\nThe first results of the chat batch, shortened:")
        for line in client.files.content(output).text.splitlines()[:3]:
            print(f"  {_result(line)}")
    refused = [line for b in batches if b.error_file_id for line in client.files.content(b.error_file_id).iter_lines()]
    if refused:
        print("\nRefused by the model, as lines of the error file:")
        for line in refused[:5]:
            print(f"  {_refusal(line)}")


def _shortened(line: str) -> str:
    return line if len(line) <= _SHORT else line[:_SHORT] + "…"


def _result(line: str) -> str:
    result: Any = json.loads(line)
    response: Any = result["response"]
    said = response["body"]["choices"][0]["message"]["content"]
    return _shortened(f"{result['custom_id']}: {response['status_code']}, {said!r}")


def _refusal(line: str) -> str:
    result: Any = json.loads(line)
    response: Any = result["response"]
    error: Any = response["body"].get("error", {}) if response else result["error"]
    status = response["status_code"] if response else "not answered"
    return _shortened(f"{result['custom_id']}: {status}, {error.get('code')}: {error.get('message')}")


def show_places(ports: Ports, data_dir: str, batches: list[Batch]) -> None:
    """Where everything is kept and where it can be looked at."""
    store = Path(os.environ.get("EVERBATCH_STORE") or Path(data_dir) / "store").resolve()
    print(f"\nStored under {store}:")
    for job, batch in zip(JOBS, batches, strict=True):
        print(f"  {job.name}: batch {batch.id}, output {batch.output_file_id}, errors {batch.error_file_id}")
        print(f"    http://127.0.0.1:{ports.ui}/namespaces/default/workflows/{batch.id}")
    print("The addresses are the batches in Temporal's UI. It ends with the demo; `make dev` brings it back up.")


def complaints(batches: list[Batch], echo: bool) -> list[str]:
    """What is not as it should be. Of another model than echo only an end is expected, whatever the counts."""
    wrong: list[str] = []
    for job, batch in zip(JOBS, batches, strict=True):
        counts = batch.request_counts
        total = job.completed + job.failed
        if batch.status != "completed":
            wrong.append(f"{job.name} is {batch.status}")
        elif counts is None or counts.total != total or counts.completed + counts.failed != total:
            wrong.append(f"{job.name} has counts {counts}")
        elif echo and counts.failed != job.failed:
            wrong.append(f"{job.name} has {counts.failed} failed requests, not {job.failed}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
