"""docs/contract.md names the tests that hold the rules: they must exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "contract.md"
NAMED = re.compile(r"`((?:unit|integration)/\w+\.py)(?:::(\w+))?`")


def names_in(path: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, functions)}


def test_every_test_in_the_table_is_there() -> None:
    named = NAMED.findall(TABLE.read_text())
    assert len(named) > 100
    for path in sorted({path for path, _ in named}):
        found = names_in(TESTS / path)
        assert {name for file, name in named if file == path and name} <= found


def test_every_rule_has_a_test_or_says_why_not() -> None:
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| Rule")]
    assert len(rows) > 80
    for row in rows:
        rule, state, tests = row.strip("|").split(" | ")
        assert re.match("(met|ours|differs)\\b", state), rule
        assert NAMED.search(tests) or state.startswith("differs"), rule
