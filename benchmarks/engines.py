"""A real engine, which has to run already, at fixed settings and at ``auto``: the share of the best one's throughput.

.venv/bin/python -m benchmarks.engines --url http://127.0.0.1:8081/v1 --model tiny
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from benchmarks.figures import report
from benchmarks.stack import Run, run_stack


def write_chat(path: Path, count: int, model: str, tokens: int) -> Path:
    """Answers of a fifth of ``tokens`` to all of them, most of them short."""
    chance = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            longest = min(tokens, int(tokens / 5 * chance.paretovariate(1.5)))
            body = {
                "model": model,
                "messages": [{"role": "user", "content": f"tell me {number}"}],
                "max_tokens": longest,
                "ignore_eos": True,
            }
            line = {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


async def measure(args: argparse.Namespace, setting: int | Literal["auto"]) -> Run:
    async with run_stack(max_in_flight=setting, upstream_url=args.url) as stack:
        await stack.run(write_chat(stack.folder / "warm.jsonl", 8, args.model, args.tokens))
        return await stack.run(write_chat(stack.folder / "in.jsonl", args.count, args.model, args.tokens))


async def main(args: argparse.Namespace) -> None:
    fixed = {setting: await measure(args, setting) for setting in args.fixed}
    auto = await measure(args, "auto")
    best = max(fixed, key=lambda setting: fixed[setting].per_second)
    each = ", ".join(f"{setting}: {run.per_second:.1f}/s" for setting, run in fixed.items())
    text = f"{args.count:,} requests, {each}, auto: {auto.per_second:.1f}/s, every request answered"
    ratio = auto.per_second / fixed[best].per_second
    report("engines", ratio, ">= 0.9 of the best fixed setting", text, everbatch=asdict(auto))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=128, help="in the longest answer")
    parser.add_argument("--fixed", type=_numbers, default=[1, 8, 64], help="settings, separated by commas")
    return parser.parse_args()


def _numbers(text: str) -> Sequence[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    asyncio.run(main(_arguments()))
