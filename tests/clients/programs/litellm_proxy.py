"""The proxy between its own clients and Everbatch; the clients are openai's."""

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import openai_sdk
from openai import OpenAI

KEY = "sk-proxy"
START_SECONDS = 120


def config(base_url, model):
    params = {"model": f"openai/{model}", "api_base": base_url, "api_key": "none"}
    return {
        "model_list": [{"model_name": model, "litellm_params": params}],
        "general_settings": {"master_key": KEY},
    }


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_ready(url):
    try:
        with urllib.request.urlopen(f"{url}/health/liveliness", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def prepare(base_url, model):
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "config.yaml")
    with open(path, "w") as file:
        json.dump(config(base_url, model), file)  # JSON is YAML
    port = free_port()
    command = [os.path.join(os.path.dirname(sys.executable), "litellm"), "--config", path, "--host", "127.0.0.1"]
    # Without its own idea of the models of the world, which it would fetch.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    process = subprocess.Popen([*command, "--port", str(port)], cwd=folder, env=environment, stdout=sys.stderr)
    atexit.register(process.wait)
    atexit.register(process.terminate)
    os.environ["PROXY_URL"] = url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    while not is_ready(url):
        assert process.poll() is None, "the proxy ended"
        assert time.monotonic() < deadline, "the proxy does not start"
        time.sleep(0.2)


def run(base_url, model, prompts):
    # The proxy writes the model into the ids that it gives out, by which it knows later where they belong.
    client = OpenAI(base_url=f"{os.environ['PROXY_URL']}/v1", api_key=KEY, default_headers={"x-litellm-model": model})
    return openai_sdk.run(base_url, model, prompts, client)
