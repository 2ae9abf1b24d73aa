"""curl, with the commands of OpenAI's own documentation."""

import json
import subprocess
import tempfile
import time

import openai_sdk

KEY = ("-H", "Authorization: Bearer none")
JSON = ("-H", "Content-Type: application/json")


def curl(*arguments):
    done = subprocess.run(["curl", "--silent", "--show-error", *arguments], capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return done.stdout


def run(base_url, model, prompts):
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(openai_sdk.input_of(model, prompts))
        file.flush()
        upload = ("-F", "purpose=batch", "-F", f"file=@{file.name}")
        uploaded = json.loads(curl(f"{base_url}/files", *KEY, *upload))
    wanted = {"input_file_id": uploaded["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = json.loads(curl(f"{base_url}/batches", *KEY, *JSON, "-d", json.dumps(wanted)))
    while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(0.2)
        batch = json.loads(curl(f"{base_url}/batches/{batch['id']}", *KEY, *JSON))
    texts = {}
    if batch["output_file_id"]:
        for line in curl(f"{base_url}/files/{batch['output_file_id']}/content", *KEY).splitlines():
            result = json.loads(line)
            texts[result["custom_id"]] = result["response"]["body"]["choices"][0]["message"]["content"]
    return [texts.get(str(number)) for number in range(len(prompts))]
