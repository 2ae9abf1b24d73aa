"""Validation of inputs of several kinds, against a plain read of the same bytes that decodes each line.

    .venv/bin/python -m benchmarks.validation

Each kind runs in a process of its own, for its peak of memory. The baseline cuts the same chunks at line ends and has
msgspec decode each line into an untyped object's raw members, in the same run. Rates are of one core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from activities.input.scan import scan_input
from activities.upstreams.config import Order, Upstream
from activities.upstreams.routes import ModelRoutes
from workflows.types import BatchSpec

CHAT: Final = "/v1/chat/completions"
CHUNK: Final = 1 << 20


def _line(number: int, content: str) -> bytes:
    body = f'{{"model":"m","messages":[{{"role":"user","content":{content}}}]}}'
    return f'{{"custom_id":"r{number}","method":"POST","url":"{CHAT}","body":{body}}}\n'.encode()


def _newlines(number: int) -> bytes:
    return b"\n" * 1000


KINDS: Final[dict[str, Callable[[int], bytes]]] = {
    "newlines": _newlines,
    "tiny lines": lambda number: _line(number, '""'),
    "ordinary lines of 1 KB": lambda number: _line(number, json.dumps("word " * 200)),
    "lines of 1 MB": lambda number: _line(number, json.dumps("word " * 200_000)),
    "deep JSON": lambda number: _line(number, "[" * 400 + "1" + "]" * 400),
    "half surrogate pairs": lambda number: _line(number, '"' + "some words of a text \\ud83d " * 40 + '"'),
    "120 prefixes of 4 KB": lambda number: _line(number, json.dumps(f"{number * 7919 % 120:03} " * 1000 + str(number))),
    "text in UTF-8": lambda number: _line(number, '"' + "Grüße aus Köln 😀 " * 60 + '"'),
    "not JSON": lambda number: b'{"a":\n',
}


def content(kind: str, size: int) -> Iterator[bytes]:
    """Chunks of some ``size`` bytes in all."""
    number, made = 0, 0
    while made < size:
        chunk = bytearray()
        while len(chunk) < CHUNK:
            chunk += KINDS[kind](number)
            number += 1
        made += len(chunk)
        yield bytes(chunk)


def baseline(chunks: Iterator[bytes]) -> None:
    decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    for chunk in chunks:
        for line in chunk.split(b"\n"):
            if line:
                try:
                    decode(line)
                except msgspec.DecodeError:
                    continue


def measure(kind: str, size: int) -> tuple[float, float, float, float]:
    """MB/s of the validation, the same where no other order than that of the input is looked for, the same of the
    baseline, and MB that the process grew by at its peak.
    """
    chunks = list(content(kind, size))
    total = sum(map(len, chunks)) / 1e6
    started = time.perf_counter()
    baseline(iter(chunks))
    plain = time.perf_counter() - started

    def validate(order: Order) -> float:
        upstream = Upstream(name="default", urls=("http://engine/v1",), is_only=True, order=order)
        started = time.perf_counter()
        scan_input(iter(chunks), spec, ModelRoutes([upstream], [None]))
        return time.perf_counter() - started

    spec = BatchSpec(
        batch_id="batch_1",
        tenant="t",
        input_file_id="file-1",
        endpoint=CHAT,
        completion_window="24h",
        window_seconds=86_400,
        created_ms=1,
        digest="d",
        max_requests=10_000_000,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = validate("auto")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return total / seconds, total / validate("input"), total / plain, grown


def _run(kind: str, size: int) -> None:
    rate, unsorted, plain, grown = measure(kind, size)
    rates = "".join(f"{one:>10.0f} MB/s" for one in (rate, unsorted, plain))
    print(f"{kind:<24}{rates}{rate / plain:>8.2f}{grown:>8.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    size = parser.parse_args().megabytes * 1_000_000
    print(f"{'input':<24}{'validation':>15}{'order = input':>15}{'baseline':>15}{'ratio':>8}{'memory':>11}")
    for kind in KINDS:
        process = multiprocessing.get_context("spawn").Process(target=_run, args=(kind, size))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
