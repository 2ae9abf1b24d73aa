"""What engines say of their queues, as they write it."""

from __future__ import annotations

import pytest

from activities.upstreams.engine_load import EngineLoad, read_load

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a}b"} 125.0
vllm:num_requests_running{engine="1",model_name="a}b"} 3.0
vllm:num_requests_waiting{engine="0",model_name="a}b"} 534.0
vllm:num_requests_waiting{engine="1",model_name="a}b"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0
vllm:kv_cache_usage_perc{engine="0",model_name="a}b"} 0.93
vllm:num_preemptions_total{engine="0",model_name="a}b"} 7.0
vllm:num_preemptions_created{engine="0",model_name="a}b"} 1.7e+09
"""
SGLANG = (
    b'sglang:num_running_reqs{model_name="m"} 12\nsglang:num_queue_reqs{model_name="m"} 4\nsglang:token_usage{} 0.5\n'
)
LLAMA = b"llamacpp:requests_processing 8\nllamacpp:requests_deferred 56\nllamacpp:n_busy_slots_per_decode 7.9\n"
TGI = b"tgi_queue_size 5\ntgi_batch_current_size 32\ntgi_batch_current_max_tokens 9000\n"
NIM = b"num_requests_running 10.0\nnum_requests_waiting 2.0\ngpu_cache_usage_perc 0.25\nnum_request_max 2048.0\n"
TRITON = b"""nv_inference_pending_request_count{model="m",version="1"} 0
nv_trt_llm_request_metrics{model="m",request_type="context",version="1"} 1
nv_trt_llm_request_metrics{model="m",request_type="scheduled",version="1"} 30
nv_trt_llm_request_metrics{model="m",request_type="waiting",version="1"} 6
"""


@pytest.mark.parametrize(
    ("text", "load"),
    [
        (VLLM, EngineLoad(128, 534, 0.93, 7)),
        (SGLANG, EngineLoad(12, 4, 0.5)),
        (LLAMA, EngineLoad(8, 56)),
        (TGI, EngineLoad(32, 5)),
        (NIM, EngineLoad(10, 2, 0.25)),
        (TRITON, EngineLoad(30, 6)),
    ],
)
def test_engines_report_their_queues(text: bytes, load: EngineLoad) -> None:
    assert read_load(text) == load


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html>no such page</html>",
        b'{"status":"ok"}',
        b"go_goroutines 12\n",
        b"vllm:num_requests_running 5\n",
        b"vllm:num_requests_running 5\nvllm:num_requests_waiting NaN\n",
        b"vllm:num_requests_running 5\nvllm:num_requests_waiting -1\n",
        b"vllm:num_requests_running 5\nvllm:num_requests_waiting many\n",
    ],
)
def test_what_is_absent_or_odd_says_nothing(text: bytes) -> None:
    assert read_load(text) is None
