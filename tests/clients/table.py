"""What the tools make of a batch, as a table for people: ``docs/clients.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.clients.tools import PROMPTS, TOOLS, Tool

PATH: Final = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
BEGIN: Final = "<!-- written by `make clients` -->\n"
END: Final = "<!-- end -->\n"


class Table:
    def __init__(self) -> None:
        self._found: dict[str, dict[str, str]] = {}

    def add(self, tool: Tool, found: dict[str, str]) -> None:
        self._found[tool.name] = found

    def write(self) -> None:
        """Write the rows of the tools that ran. The rest of the page stays, also the rows of those that did not run."""
        before, _, rest = PATH.read_text(encoding="utf-8").partition(BEGIN)
        table, _, after = rest.partition(END)
        written = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()}
        heading = ["Tool", "Version", "Call", *(name.capitalize() for name in PROMPTS), "Note"]
        lines = [_line(heading), _line(["---"] * len(heading))]
        for tool in TOOLS:
            found = self._found.get(tool.name)
            if found is None and tool.name in written:
                lines.append(written[tool.name])
                continue
            outcomes = (found or dict.fromkeys(PROMPTS, "not run")).values()
            lines.append(_line([tool.name, "<br>".join(tool.packages), tool.call, *outcomes, tool.note]))
        text = "".join(f"{line}\n" for line in lines)
        PATH.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
