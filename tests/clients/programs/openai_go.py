import json
import os
import shutil
import subprocess
import sys
import tempfile

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "go")


def build():
    folder = tempfile.mkdtemp()
    shutil.copytree(SOURCE, folder, dirs_exist_ok=True)
    for command in (["mod", "tidy"], ["build", "-o", "client", "."]):
        subprocess.run(["go", *command], cwd=folder, check=True, stdout=sys.stderr)
    return os.path.join(folder, "client")


PROGRAM = build()


def run(base_url, model, prompts):
    done = subprocess.run(
        [PROGRAM, base_url, model], input=json.dumps(prompts), capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)
