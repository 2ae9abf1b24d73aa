"""``everbatch submit`` of a table: a prompt for each row, and the rows again with their answers.

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
from api.cli.batch_commands import BadInputError
from api.client import Result
from api.client.lines import custom_id_of, missing, read_result

PROMPT: Final = "prompt"
"""The column of a text file, and the one that is sent where no template is given."""
OUTPUT_SUFFIXES: Final = (".csv", ".jsonl", ".parquet")

Row = Mapping[str, Any]
_TEMPLATE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class TableError(BadInputError):
    """A table or a template that cannot be used; the message is one line for the user."""


def read_rows(source: Path) -> Iterator[Row]:
    """The rows of a table, one at a time.

    Raises:
        TableError: while reading, what is wrong and in which row.
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
            raise TableError(f"the input is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _csv_rows(file: TextIO) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # a cell may be as long as a prompt
    reader = csv.DictReader(file, restval="", strict=True)
    try:
        columns = list(reader.fieldnames or ())
        if len(set(columns)) < len(columns):
            raise TableError(f"two columns have the same name: {', '.join(columns)}")
        for number, row in enumerate(reader, 1):
            if None in row:
                raise TableError(f"row {number} has more cells than the header has columns")
            yield row
    except csv.Error as error:
        raise TableError(f"line {reader.reader.line_num}: {error}") from None


def _json_rows(file: TextIO) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TableError(f"line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise TableError(f"line {number} is not a JSON object")
        yield cast("Row", row)


class Template:
    """A prompt with ``{column}`` in the place of a row's value; ``{{`` and ``}}`` stand for braces."""

    def __init__(self, text: str) -> None:
        self._text = text

    def fill(self, row: Row) -> str:
        """The prompt of a row. A value that is empty or null is replaced by nothing.

        Raises:
            TableError: the row does not have the column, or a brace stands alone.
        """

        def value(match: re.Match[str]) -> str:
            column = match[1]
            if match[0] in ("{{", "}}"):
                return match[0][0]
            if column is None:
                raise TableError(f"the prompt has a single {match[0]!r}; write {match[0] * 2!r} for a brace")
            if column not in row:
                raise TableError(
                    f"there is no column {column!r:.100}; the columns are: {', '.join(row)}. Write '{{{{' for a brace"
                )
            return text_of(row[column])

        return _TEMPLATE.sub(value, self._text)


def text_of(value: object) -> str:
    """A value as it stands in a prompt or a cell: texts as they are, nothing for null, all else as JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (bool, int, float, list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)  # a date, for example, of a Parquet file


class Answers:
    """Finds the results of a batch by custom_id in its files, without holding them in memory.

    Args:
        files: the output file and the error file, as far as there are any.
    """

    def __init__(self, files: Sequence[BinaryIO]) -> None:
        self._locations: dict[str, tuple[BinaryIO, int]] = {}
        for file in files:
            offset = 0
            for line in file:
                self._locations.setdefault(custom_id_of(line), (file, offset))
                offset += len(line)

    def of(self, custom_id: str) -> Result:
        """The result of a request.

        Raises:
            ValueError: its line is not a result.
        """
        if custom_id not in self._locations:
            return missing(custom_id)
        file, offset = self._locations[custom_id]
        file.seek(offset)
        return read_result(file.readline())


@dataclass(frozen=True)
class OutputColumns:
    """Of an answered table, beside those that it has."""

    response: str
    error: str
    schema: AnswerSchema | None = None
    """Whose members become columns too."""

    @property
    def kinds(self) -> dict[str, str]:
        """Types of the columns that are members of answers."""
        return self.schema.columns if self.schema else {}


class AnsweredRows:
    """The rows of a table, each with its answer, its error, and the members of the answer where there is a schema."""

    def __init__(self, source: Path, answers: Answers, columns: OutputColumns) -> None:
        self._source = source
        self._answers = answers
        self._columns = columns
        self.invalid = 0
        """Answers so far that the schema does not allow."""

    def __iter__(self) -> Iterator[Row]:
        response, error = self._columns.response, self._columns.error
        for number, row in enumerate(read_rows(self._source), 1):
            result = self._answers.of(f"prompt-{number}")
            if result.ok:
                text = text_of(result.body) if result.text is None else result.text
                members, problem = self._members(text)
                yield {**row, response: text, error: problem, **members}
            else:
                problem = f"{result.error_code}: {result.error_message}"
                yield {**row, response: "", error: problem, **dict.fromkeys(self._columns.kinds)}

    def _members(self, text: str) -> tuple[dict[str, Any], str]:
        if self._columns.schema is None:
            return {}, ""
        members, problem = self._columns.schema.read(text)
        self.invalid += bool(problem)
        return dict.fromkeys(self._columns.kinds) | members, problem


def write_table(
    rows: AnsweredRows, columns: Sequence[str], kinds: Mapping[str, str], source: Path, target: BinaryIO, suffix: str
) -> None:
    """Write a table as CSV, JSONL or Parquet; see :func:`api.cli.parquet.write_rows` for what it needs."""
    if suffix == ".parquet":
        from api.cli import parquet

        parquet.write_rows(iter(rows), columns, kinds, source, target)
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
