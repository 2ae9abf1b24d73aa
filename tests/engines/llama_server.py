"""llama.cpp's server, told by its arguments what to serve. Runs in the environment of :mod:`tests.engines.llama`."""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import argparse
import os
import time

import xllamacpp as llama


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kind", choices=["chat", "embed", "rerank"], default="chat")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--slot-context", type=int, default=1024)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--metrics", action="store_true")
    args = parser.parse_args()
    params = llama.CommonParams()
    params.model.path = args.model
    params.model_alias = {args.alias}
    params.port = args.port
    params.n_parallel = args.slots
    params.n_ctx = args.slots * args.slot_context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.use_jinja = True
    params.endpoint_metrics = args.metrics
    pooling = llama.llama_pooling_type
    if args.kind == "embed":
        params.embedding, params.pooling_type = True, pooling.LLAMA_POOLING_TYPE_MEAN
    elif args.kind == "rerank":
        params.embedding, params.pooling_type = True, pooling.LLAMA_POOLING_TYPE_RANK
    _server = llama.Server(params)  # listens from here on
    parent = os.getppid()
    while os.getppid() == parent:  # a killed test run leaves no engine behind
        time.sleep(0.5)


if __name__ == "__main__":
    main()
