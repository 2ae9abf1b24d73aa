"""Sending order by shared prefix against random order: what of the prompts comes out of an engine's cache, what it has
to compute, and what the order costs at the end, where the results are put into input order again.

    .venv/bin/python -m benchmarks.prefix
    .venv/bin/python -m benchmarks.prefix --url http://127.0.0.1:8081/v1 --model tiny --pid 1234

Without ``--url`` the engine is simulated: it keeps blocks of 16 tokens and drops those used longest ago. It tells
nothing of time. With it, a real engine that runs already gets the same batch in both orders; with ``--pid``,
its process and those below it are asked for their CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from activities.input.scan import Scanned, scan_input
from activities.records import keys
from activities.records.catalog import Catalog
from activities.records.sending_order import ENTRY_BYTES, unpack_places
from activities.records.shard_keys import ShardRef
from activities.results.merged_lines import MergedLines
from activities.results.shard_log import ShardLog
from activities.store.local import LocalStore
from activities.upstreams.config import Order, Upstream
from activities.upstreams.routes import ModelRoutes
from benchmarks.figures import report
from benchmarks.processes import tree_usage
from benchmarks.stack import run_stack
from workflows.end_types import WriteFilesInput
from workflows.types import BatchSpec, Usage

TOKEN_BYTES: Final = 5
"""Of a word of four letters and its space."""
BLOCK_TOKENS: Final = 16
ORDERS: Final[tuple[Order, Order]] = ("input", "prefix")
SPEC: Final = BatchSpec(
    batch_id="batch_1",
    tenant="t",
    input_file_id="file-1",
    endpoint="/v1/chat/completions",
    completion_window="24h",
    window_seconds=86_400,
    created_ms=1,
    digest="d",
    max_requests=10_000_000,
)


def write_lines(count: int, prefixes: int, tokens: int, model: str = "m") -> Iterator[bytes]:
    """Requests of so many words, nine tenths of them one of the prefixes, in random order."""
    chance = random.Random(0)

    def words(number: int) -> str:
        return " ".join(f"{chance.randrange(10_000):04}" for _ in range(number))

    beginnings = [words(tokens * 9 // 10) for _ in range(prefixes)]
    for number in range(count):
        prompt = f"{chance.choice(beginnings)} {words(tokens - tokens * 9 // 10)}"
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 8}
        line = {"custom_id": f"r-{number}", "method": "POST", "url": SPEC.endpoint, "body": body}
        yield json.dumps(line).encode() + b"\n"


def scanned(content: list[bytes], order: Order) -> Scanned:
    upstream = Upstream(name="default", urls=("http://engine/v1",), is_only=True, order=order)
    return scan_input(content, SPEC, ModelRoutes([upstream], [None]))


class Engine:
    """A cache of blocks of prompts."""

    def __init__(self, cache_tokens: int) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._size = cache_tokens // BLOCK_TOKENS
        self.cached = self.computed = 0

    def take(self, prompt: str) -> None:
        step = BLOCK_TOKENS * TOKEN_BYTES
        chain, is_cached = 0, True
        for start in range(0, len(prompt), step):
            chain = hash((chain, prompt[start : start + step]))
            is_cached = is_cached and chain in self._blocks
            self.cached += is_cached * BLOCK_TOKENS
            self.computed += (not is_cached) * BLOCK_TOKENS
            self._blocks[chain] = None
            self._blocks.move_to_end(chain)
            if len(self._blocks) > self._size:
                self._blocks.popitem(last=False)


def sent(content: list[bytes], found: Scanned, shards_at_once: int) -> Iterator[str]:
    """The prompts as an engine gets them, from several shards in turn."""
    shards = [
        [place.line for place in unpack_places(found.order[shard.offset :][: shard.requests * ENTRY_BYTES])]
        if found.order
        else list(range(shard.first_line, shard.first_line + shard.requests))
        for shard in found.result.shards
    ]
    while shards:
        for shard in shards[:shards_at_once]:
            yield json.loads(content[shard.pop(0) - 1])["body"]["messages"][0]["content"]
        shards = [shard for shard in shards if shard]


def simulate(count: int, prefixes: int, tokens: int, cache_tokens: int) -> None:
    content = list(write_lines(count, prefixes, tokens))
    engines: dict[str, Engine] = {}
    for order in ORDERS:
        engine = engines[order] = Engine(cache_tokens)
        for prompt in sent(content, scanned(content, order), shards_at_once=4):
            engine.take(prompt)
    chosen = "prefix" if scanned(content, "auto").order else "input"
    random_order, by_prefix = (engines[order] for order in ORDERS)
    shares = [100 * engine.cached / (engine.cached + engine.computed) for engine in (random_order, by_prefix)]
    text = (
        f"{count:,} requests of {tokens:,} tokens, {prefixes} prefixes, cache of {cache_tokens:,} tokens: "
        f"{shares[0]:.0f} % cached in random order, {shares[1]:.0f} % by prefix; auto takes {chosen}"
    )
    report("prefix, simulated", by_prefix.computed / random_order.computed, "<= 0.5 where they do not fit", text)


# What it costs at the end


async def commit_all(store: LocalStore, found: Scanned) -> list[str | None]:
    """An answer of 1 KB for each request; the attempts."""
    assert found.cut
    attempts: list[str | None] = []
    for index, shard in enumerate(found.result.shards):
        log = ShardLog(store, ShardRef(SPEC.ref, found.cut.digest, index), "000001-a")
        places = Catalog(store).get_places(SPEC.ref, found.cut.digest, shard) if found.order else ()
        for line in [place.line for place in places] or range(shard.first_line, shard.first_line + shard.requests):
            log.add(line, "output", b'{"id":%d,"text":"' % line + b"x" * 1000 + b'"}\n', Usage(input_tokens=1))
        attempts.append((await log.finish()).attempt)
    return attempts


def merge(folder: str, attempts: list[str | None], digest: str, result: Any) -> None:
    task = WriteFilesInput(spec=SPEC, attempts=attempts, cut=digest)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: imports have a higher one
    before = tree_usage(os.getpid()).largest_mb
    started = time.process_time()
    merged = MergedLines(LocalStore(folder), task, digest)
    size = sum(len(piece) for line in merged.lines() for piece in line.data)
    seconds = time.process_time() - started
    grown = tree_usage(os.getpid()).largest_mb - before
    result.put((seconds, grown, size))


def measure_merge(count: int) -> None:
    content = list(write_lines(count, max(2, count // 100), 200))
    figures: dict[str, tuple[float, float, int]] = {}
    for order in ORDERS:
        with tempfile.TemporaryDirectory(prefix="everbatch-bench-") as folder:
            store, found = LocalStore(folder), scanned(content, order)
            assert found.cut
            store.put(keys.input_key(SPEC.ref), b"".join(content))
            Catalog(store).save_cut(SPEC.ref, found.cut, found.order)
            attempts = asyncio.run(commit_all(store, found))
            context = multiprocessing.get_context("spawn")
            result = context.Queue()
            process = context.Process(target=merge, args=(folder, attempts, found.cut.digest, result))
            process.start()
            figures[order] = result.get()
            process.join()
    (plain, plain_mb, size), (mixed, mixed_mb, _) = (figures[order] for order in ORDERS)
    text = (
        f"{count:,} results, {size / 1e6:.0f} MB: read in input order in {plain:.2f} s of CPU, + {plain_mb:.0f} MB; "
        f"in input order out of shards by prefix in {mixed:.2f} s, + {mixed_mb:.0f} MB"
    )
    report("prefix, merge", mixed / plain, "as low as possible", text)


# A real engine


def write_input(path: Path, args: argparse.Namespace) -> Path:
    path.write_bytes(b"".join(write_lines(args.count, args.prefixes, args.tokens, args.model)))
    return path


async def measure(args: argparse.Namespace, order: Order) -> dict[str, Any]:
    variables = {"EVERBATCH_ORDER": order}
    async with run_stack(max_in_flight=args.in_flight, upstream_url=args.url, variables=variables) as stack:
        path = await asyncio.to_thread(write_input, stack.folder / "in.jsonl", args)
        before = tree_usage(args.pid).cpu_seconds if args.pid else 0.0
        run = await stack.run(path)
        cpu = tree_usage(args.pid).cpu_seconds - before if args.pid else 0.0
        usage = (await stack.client.batches.retrieve(run.batch_id)).usage
    assert usage
    cached = 100 * usage.input_tokens_details.cached_tokens / usage.input_tokens
    return {**asdict(run), "cached_percent": cached, "input_tokens": usage.input_tokens, "engine_cpu": cpu}


async def main(args: argparse.Namespace) -> None:
    if not args.url:
        for prefixes, cache in ((120, 41_000), (120, 400_000), (30, 41_000), (1, 41_000), (600, 41_000)):
            simulate(600, prefixes, 1040, cache)
        simulate(20_000, 2000, 1040, 400_000)
        await asyncio.to_thread(measure_merge, args.merged)
        return
    runs: dict[Order, list[dict[str, Any]]] = {order: [] for order in ORDERS}
    for _ in range(args.rounds):
        for order in ORDERS:
            runs[order].append(await measure(args, order))
    text = "; ".join(
        f"{order}: " + ", ".join(f"{r['cached_percent']:.0f} % cached, {r['seconds']:.1f} s" for r in runs[order])
        for order in ORDERS
    )
    if args.pid:
        text += "; CPU " + ", ".join(f"{r['engine_cpu']:.1f} s" for order in ORDERS for r in runs[order])
    figure = "engine_cpu" if args.pid else "seconds"
    ratio = sum(r[figure] for r in runs["prefix"]) / sum(r[figure] for r in runs["input"])
    report(f"prefix, {figure}", ratio, "<= 0.6 where they do not fit", text, runs=runs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--merged", type=int, default=50_000, help="results of the merge")
    parser.add_argument("--url", default="")
    parser.add_argument("--model", default="m")
    parser.add_argument("--pid", type=int, default=0)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--prefixes", type=int, default=120)
    parser.add_argument("--tokens", type=int, default=260, help="words of a prompt; each may be several tokens")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(_arguments()))
