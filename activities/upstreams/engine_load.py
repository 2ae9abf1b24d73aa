"""Reads an engine's load from the Prometheus text of its ``/metrics``.

Understands the metrics of vLLM, NVIDIA NIM, SGLang, llama.cpp, Text Generation Inference, and Triton with TensorRT-LLM.
"""

from __future__ import annotations

import math
import re
from typing import Final, NamedTuple

_RUNNING: Final = (
    b"vllm:num_requests_running",
    b"num_requests_running",  # NIM
    b"sglang:num_running_reqs",
    b"llamacpp:requests_processing",
    b"tgi_batch_current_size",
    b'nv_trt_llm_request_metrics{request_type="scheduled"}',
)
_WAITING: Final = (
    b"vllm:num_requests_waiting",
    b"num_requests_waiting",
    b"sglang:num_queue_reqs",
    b"llamacpp:requests_deferred",
    b"tgi_queue_size",
    b'nv_trt_llm_request_metrics{request_type="waiting"}',
)
_CACHE: Final = (
    b"vllm:kv_cache_usage_perc",
    b"vllm:gpu_cache_usage_perc",
    b"gpu_cache_usage_perc",
    b"sglang:token_usage",
)
_PREEMPTIONS: Final = (b"vllm:num_preemptions_total", b"vllm:num_preemptions")

_SAMPLE: Final = re.compile(
    rb"^((?:vllm:|sglang:|llamacpp:)?(?:num_requests_running|num_requests_waiting|num_running_reqs|num_queue_reqs"
    rb"|requests_processing|requests_deferred|kv_cache_usage_perc|gpu_cache_usage_perc|token_usage"
    rb"|num_preemptions_total|num_preemptions)|tgi_batch_current_size|tgi_queue_size|nv_trt_llm_request_metrics)"
    rb"(?:\{(.*)\})?[ \t]+(\S+)",
    re.MULTILINE,
)
_REQUEST_TYPE: Final = re.compile(rb'request_type="(\w+)"')


class EngineLoad(NamedTuple):
    """An engine's load, from all its clients together."""

    running: float
    """Number of requests that the engine is working on."""
    waiting: float
    """Number of requests in the engine's queue."""
    cache_used: float = 0.0
    """Fraction of the KV cache in use, from 0 to 1; zero if the engine does not report it."""
    preemptions: float = 0.0
    """Number of requests that lost their place in the KV cache since the engine started."""


def read_load(metrics: bytes) -> EngineLoad | None:
    """Return the load in a metrics text, or ``None`` if it has no known metrics of it or a value is not valid."""
    found: dict[bytes, list[float]] = {}
    for name, labels, text in _SAMPLE.findall(metrics):
        if name == b"nv_trt_llm_request_metrics":
            kind = _REQUEST_TYPE.search(labels)
            name += b'{request_type="%b"}' % (kind[1] if kind else b"")
        try:
            value = float(text)
        except ValueError:
            return None
        if not (math.isfinite(value) and value >= 0):
            return None
        found.setdefault(name, []).append(value)
    running, waiting, cache, preemptions = (
        next((found[name] for name in names if name in found), None)
        for names in (_RUNNING, _WAITING, _CACHE, _PREEMPTIONS)
    )
    if running is None or waiting is None:
        return None
    # Several samples of a metric belong to several models or to several ranks of one engine.
    return EngineLoad(sum(running), sum(waiting), max(cache or [0.0]), sum(preemptions or [0.0]))
