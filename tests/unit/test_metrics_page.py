"""The reasons of retries in docs/metrics.md are those that the code gives."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RETRIED = {"RETRY", "TIMED_OUT", "UNREACHABLE"}


def reasons_in_the_code() -> set[str]:
    """The codes of answers without an HTTP status after which a request is retried."""
    found: set[str] = set()
    for path in (ROOT / "activities" / "upstreams").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "Answer" and node.args):
                continue
            if ast.unparse(node.args[0]).rpartition(".")[2] in RETRIED:
                found |= {ast.literal_eval(each.value) for each in node.keywords if each.arg == "code"}
    return found


def test_the_documented_reasons_are_those_of_the_code() -> None:
    (row,) = re.findall(r"^\| `everbatch_retries_total` .*$", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    described = row.split("|")[5]
    assert set(re.findall(r"`(\w+)`", described)) == reasons_in_the_code()
    assert "`http_<status>`" in described
