"""Reads and writes tables in Parquet files with pyarrow, which is an optional dependency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

from api.cli.session import BadInputError
from api.cli.tables import Row, text_of

SUFFIX: Final = ".parquet"
_ROWS: Final = 1000
_BUFFER_BYTES: Final = 1 << 20
_ARROW_TYPES: Final = {"integer": "int64", "number": "float64", "boolean": "bool_"}


def read_rows(source: Path) -> Iterator[Row]:
    """Yield the rows of a file, one at a time.

    Raises:
        BadInputError: ``source`` is not a Parquet file, or pyarrow is not installed.
    """
    file = _opened(source)
    try:
        for batch in file.iter_batches(batch_size=_ROWS, use_threads=False):
            yield from batch.to_pylist()
    finally:
        file.close()


def write_rows(
    rows: Iterator[Row], columns: Sequence[str], kinds: Mapping[str, str], source: Path, target: BinaryIO
) -> None:
    """Write a table as a Parquet file. Values may be missing.

    Columns of ``source`` keep their types if it is a Parquet file; ``kinds`` are types of others, as in
    :attr:`api.cli.answer_schema.AnswerSchema.columns`. All other columns are written as text.
    """
    arrow = _arrow("")
    known: dict[str, Any] = {}
    if source.suffix.lower() == SUFFIX:
        file = _opened(source)
        known = {field.name: field.type for field in file.schema_arrow}
        file.close()
    types = {
        name: known[name] if name in known else getattr(arrow, _ARROW_TYPES.get(kinds.get(name, ""), "string"))()
        for name in columns
    }
    schema = arrow.schema(list(types.items()))
    with _arrow(".parquet").ParquetWriter(target, schema) as writer:
        while chunk := list(islice(rows, _ROWS)):
            converted = [
                {name: row.get(name) if name in known else _value(row.get(name), kinds.get(name)) for name in columns}
                for row in chunk
            ]
            writer.write_batch(arrow.RecordBatch.from_pylist(converted, schema=schema))


def _value(value: object, kind: str | None) -> object:
    """Convert a value to its column's type. A schema's column has ``None`` for null and integers beyond 64 bits."""
    if value is None and kind:
        return None
    if kind == "integer" and isinstance(value, int | float):
        return int(value) if abs(value) < 1 << 63 else None
    if kind == "number" and isinstance(value, int | float):
        return float(value)
    if kind == "boolean":
        return value
    return text_of(value).encode("utf-8", "replace").decode()


def _opened(source: Path) -> Any:
    parquet = _arrow(".parquet")
    try:
        # With pre-buffering, a whole row group, which may be the whole file, would be held in memory.
        return parquet.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except _arrow("").ArrowException as error:
        raise BadInputError(f"the input is not a Parquet file: {error}") from None


def _arrow(module: str) -> Any:
    try:
        return import_module(f"pyarrow{module}")
    except ImportError:
        raise BadInputError("Parquet files need the package pyarrow: pip install 'everbatch[parquet]'") from None
