"""Tables for ``everbatch submit``: each row becomes a prompt, and is written again with its answer.

A table is a CSV file with a header, a JSONL file of objects, a text file with a prompt on each line, or a Parquet file
(:mod:`api.cli.parquet`).
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO, cast

from api.cli.answer_schema import AnswerSchema
from api.cli.session import BadInputError
from api.client import Result
from api.client.lines import custom_id_of, missing, read_result

PROMPT: Final = "prompt"
"""The name of a text file's only column, which is also the column that is sent if no template is given."""
OUTPUT_SUFFIXES: Final = (".csv", ".jsonl", ".parquet")

Row = Mapping[str, Any]
_TEMPLATE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def read_rows(source: Path) -> Iterator[Row]:
    """Yield the rows of a table, one at a time.

    Raises:
        BadInputError: the table is invalid; the message says where.
    """
    if source.suffix.lower() == ".parquet":
        from api.cli import parquet

        yield from parquet.read_rows(source)
        return
    with source.open(encoding="utf-8-sig", newline="") as file:
        try:
            match source.suffix.lower():
                case ".csv":
                    yield from _csv_rows(file)
                case ".txt":
                    yield from ({PROMPT: line.strip()} for line in file if line.strip())
                case _:
                    yield from _json_rows(file)
        except UnicodeDecodeError as error:
            raise BadInputError(f"the input is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _csv_rows(file: TextIO) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a cell may hold a long prompt, and the default limit is 131,072 characters
    reader = csv.DictReader(file, restval="", strict=True)
    try:
        columns = list(reader.fieldnames or ())
        if len(set(columns)) < len(columns):
            raise BadInputError(f"two columns have the same name: {', '.join(columns)}")
        for number, row in enumerate(reader, 1):
            if None in row:
                raise BadInputError(f"row {number} has more cells than the header has columns")
            yield row
    except csv.Error as error:
        raise BadInputError(f"line {reader.reader.line_num}: {error}") from None


def _json_rows(file: TextIO) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadInputError(f"line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise BadInputError(f"line {number} is not a JSON object")
        yield cast("Row", row)


class Template:
    """A prompt in which ``{column}`` stands for a row's value, and ``{{`` and ``}}`` for literal braces."""

    def __init__(self, text: str) -> None:
        self._text = text

    def fill(self, row: Row) -> str:
        """Return the prompt for a row. An empty or null value is replaced by an empty text.

        Raises:
            BadInputError: the row has no such column, or the template has an unmatched brace.
        """

        def value(match: re.Match[str]) -> str:
            column = match[1]
            if match[0] in ("{{", "}}"):
                return match[0][0]
            if column is None:
                raise BadInputError(f"the prompt has a single {match[0]!r}; write {match[0] * 2!r} for a brace")
            if column not in row:
                raise BadInputError(
                    f"there is no column {column!r:.100}; the columns are: {', '.join(row)}. Write '{{{{' for a brace"
                )
            return text_of(row[column])

        return _TEMPLATE.sub(value, self._text)


def text_of(value: object) -> str:
    """Format a value for a prompt or a cell: text as it is, null as an empty text, and other values as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (bool, int, float, list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)  # for example a date from a Parquet file


class Answers:
    """Finds the results of a batch by custom_id in its files, holding only their positions in memory.

    Args:
        files: the output file and the error file, if they exist.
    """

    def __init__(self, files: Sequence[BinaryIO]) -> None:
        self._locations: dict[str, tuple[BinaryIO, int]] = {}
        for file in files:
            offset = 0
            for line in file:
                self._locations.setdefault(custom_id_of(line), (file, offset))
                offset += len(line)

    def of(self, custom_id: str) -> Result:
        """Return the result of a request.

        Raises:
            ValueError: the line of the request is not a result.
        """
        if custom_id not in self._locations:
            return missing(custom_id)
        file, offset = self._locations[custom_id]
        file.seek(offset)
        return read_result(file.readline())


@dataclass(frozen=True)
class OutputColumns:
    """The columns that answers add to a table."""

    response: str
    error: str
    schema: AnswerSchema | None = None
    """The schema of the answers, if any. Its properties become columns too."""

    @property
    def kinds(self) -> dict[str, str]:
        """The types of the columns that come from the schema, by name."""
        return self.schema.columns if self.schema else {}

    def cells(self, result: Result) -> tuple[dict[str, Any], bool]:
        """Return the cells for a result, and whether its answer matches the schema."""
        cells: dict[str, Any] = {self.response: "", self.error: "", **dict.fromkeys(self.kinds)}
        if not result.ok:
            return {**cells, self.error: f"{result.error_code}: {result.error_message}"}, True
        text = text_of(result.body) if result.text is None else result.text
        members, problem = self.schema.read(text) if self.schema else ({}, "")
        return {**cells, self.response: text, self.error: problem, **members}, not problem


def write_table(
    rows: Iterator[Row], columns: Sequence[str], kinds: Mapping[str, str], source: Path, target: BinaryIO, suffix: str
) -> None:
    """Write a table as CSV, JSONL or Parquet, depending on ``suffix``.

    :func:`api.cli.parquet.write_rows` explains the other parameters.
    """
    if suffix == ".parquet":
        from api.cli import parquet

        parquet.write_rows(rows, columns, kinds, source, target)
        return
    text = io.TextIOWrapper(target, encoding="utf-8", errors="replace", newline="")
    if suffix == ".csv":
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({column: text_of(value) for column, value in row.items()} for row in rows)
    else:
        text.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    text.flush()
    text.detach()
