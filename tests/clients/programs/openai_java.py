import json
import os
import shutil
import subprocess
import sys
import tempfile

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "java")


def build():
    folder = tempfile.mkdtemp()
    shutil.copytree(SOURCE, folder, dirs_exist_ok=True)
    libraries = os.path.join(folder, "lib")
    fetch = ["mvn", "-B", "-q", "dependency:copy-dependencies", f"-DoutputDirectory={libraries}"]
    compile_it = ["javac", "-encoding", "UTF-8", "-cp", os.path.join(libraries, "*"), "-d", folder, "Client.java"]
    for command in (fetch, compile_it):
        subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    return os.pathsep.join((folder, os.path.join(libraries, "*")))


CLASS_PATH = build()


def run(base_url, model, prompts):
    done = subprocess.run(
        ["java", "-cp", CLASS_PATH, "Client", base_url, model],
        input=json.dumps(prompts),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)
