"""Runs a tool's program in the tool's own environment: ``python harness.py NAME``, with the scenarios as JSON on stdin.

Each program has ``run(base_url, model, prompts)``, which gives a text or ``None`` for each prompt, in order. One that
starts something first, which may take its time, has ``prepare(base_url, model)`` too.
"""

import importlib
import json
import os
import signal
import sys
import traceback

SECONDS = 60


def example(name):
    """A module of the repository's examples."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.append(os.path.join(here, "..", "..", "..", "examples"))
    return importlib.import_module(name)


class TooLong(BaseException):
    """Not an Exception: SDKs would catch it, and try again."""


def too_long(*_):
    raise TooLong(f"no end after {SECONDS} s")


def main():
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    given = json.load(sys.stdin)
    answers, sys.stdout = sys.stdout, sys.stderr  # tools print
    signal.signal(signal.SIGALRM, too_long)
    os.environ.update(OPENAI_BASE_URL=given["base_url"], OPENAI_API_KEY="none")
    program = importlib.import_module(sys.argv[1])
    if hasattr(program, "prepare"):
        program.prepare(given["base_url"], given["model"])
    outcomes = {}
    for name, prompts in given["scenarios"].items():
        signal.alarm(SECONDS)
        try:
            outcomes[name] = {"texts": list(program.run(given["base_url"], given["model"], prompts))}
        except (Exception, TooLong) as error:
            traceback.print_exc()
            text = next((line for line in str(error).splitlines() if line.strip()), "")
            outcomes[name] = {"raised": type(error).__name__, "message": text[:200]}
        finally:
            signal.alarm(0)
    json.dump(outcomes, answers)


if __name__ == "__main__":
    main()
