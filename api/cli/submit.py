"""What ``everbatch submit`` does."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from openai.types import Batch

from api.cli.answer_schema import AnswerSchema
from api.cli.batch_commands import (
    ALL_SUCCEEDED,
    SOME_FAILED,
    STDIN,
    STDOUT,
    BadInputError,
    Session,
    check_targets,
    exit_status,
    say_outcome,
    take,
)
from api.cli.tables import (
    OUTPUT_SUFFIXES,
    PROMPT,
    AnsweredRows,
    Answers,
    OutputColumns,
    Template,
    read_rows,
    write_table,
)
from api.client.files import replacing
from api.client.lines import endpoint_of


@dataclass(frozen=True)
class Submission:
    """What was typed."""

    source: Path
    output: Path | None
    errors: Path | None
    wait: bool
    endpoint: str | None
    window: str
    idempotency_key: str | None
    model: str | None
    prompt: str | None
    response_column: str
    error_column: str
    schema: Path | None = None

    @property
    def is_table(self) -> bool:
        """Whether prompts are made of rows. Else the input has whole requests, a line for each."""
        return bool(self.model or self.prompt) or self.source.suffix.lower() in (".csv", ".txt", ".parquet")

    @property
    def output_suffix(self) -> str:
        """The format in which the table is written."""
        if self.output and self.output != STDOUT and (self.output.is_file() or not self.output.exists()):
            return self.output.suffix.lower()
        return ".csv" if self.source.suffix.lower() == ".csv" else ".jsonl"

    def output_columns(self) -> OutputColumns:
        """Raises ``BadInputError``: the schema cannot be used."""
        if self.schema and not self.is_table:
            raise BadInputError("--schema is for tables of prompts; requests of an input file name their own")
        return OutputColumns(
            self.response_column, self.error_column, AnswerSchema(self.schema) if self.schema else None
        )


def submit(session: Session, job: Submission) -> int:
    """Run a batch from file to file."""
    check_targets(job.output, job.errors, job.source)
    with tempfile.TemporaryDirectory() as folder:
        source = _copied(job.source, Path(folder)) if job.is_table or job.source == STDIN else job.source
        columns: list[str] = []
        added = job.output_columns()
        if job.is_table:
            batch = _submit_table(session, job, source, added, columns)
        else:
            endpoint = job.endpoint or endpoint_of(source)
            if not endpoint:
                raise BadInputError(f"{job.source}: the first line has no url; give the --endpoint")
            key = job.idempotency_key
            batch = session.client.submit(source, endpoint, job.window, idempotency_key=key)
        session.waiting_for = batch
        session.display.say(f"batch {batch.id}")
        if not (job.wait or job.output or job.errors):
            click.echo(batch.id)
            return ALL_SUCCEEDED
        batch = session.watch(batch)
        if job.is_table and job.output and batch.status != "failed":
            return _write_table(session, job, source, added, columns, batch)
        return take(session, batch, job.output, job.errors)


def _copied(source: Path, folder: Path) -> Path:
    """A copy: standard input can be read only once, and a table may change while its batch runs."""
    copy = folder / (source.name if source != STDIN else "input.jsonl")
    with sys.stdin.buffer if source == STDIN else source.open("rb") as original, copy.open("wb") as target:
        shutil.copyfileobj(original, target)
    return copy


def _submit_table(session: Session, job: Submission, source: Path, added: OutputColumns, columns: list[str]) -> Batch:
    """Submit a prompt for each row; ``columns`` becomes those of the answered table."""
    if not job.model:
        raise BadInputError("prompts need the name of a model; give the --model")
    if job.output and job.output_suffix not in OUTPUT_SUFFIXES:
        raise BadInputError(f"{job.output}: a table is written as {' or '.join(OUTPUT_SUFFIXES)}")
    template = Template(_prompt_text(job.prompt))
    prompts = _prompts(job, template, source, added, columns)
    requests = added.schema.requests(prompts, job.endpoint) if added.schema else prompts
    client, key = session.client, job.idempotency_key
    return client.submit(requests, job.endpoint, job.window, model=job.model, idempotency_key=key)


def _prompt_text(prompt: str | None) -> str:
    """The template: given as it is, or as the path of a file."""
    if prompt is None:
        return "{" + PROMPT + "}"
    with contextlib.suppress(OSError, ValueError):  # most prompts could not be the name of a file
        if Path(prompt).is_file():
            return Path(prompt).read_text(encoding="utf-8-sig")
    return prompt


def _prompts(
    job: Submission, template: Template, source: Path, added: OutputColumns, columns: list[str]
) -> Iterator[str]:
    found: dict[str, None] = {}
    for row in read_rows(source):
        found |= dict.fromkeys(row)
        yield template.fill(row)
    choose = "choose another name with "
    advice = {added.response: f"{choose}--response-column", added.error: f"{choose}--error-column"}
    for name in (added.response, added.error, *added.kinds):
        if job.output and name in found:
            what = advice.get(name, "rename it, or the member of the schema")
            raise BadInputError(f"{job.source} already has a column {name!r}; {what}")
        found[name] = None
    columns[:] = found


def _write_table(
    session: Session, job: Submission, source: Path, added: OutputColumns, columns: list[str], batch: Batch
) -> int:
    """Write the rows with their answers."""
    assert job.output
    say_outcome(session, batch)
    client = session.patient
    with contextlib.ExitStack() as opened:
        ids = filter(None, (batch.output_file_id, batch.error_file_id))
        answers = Answers([opened.enter_context(client.open(file_id)) for file_id in ids])
        rows = AnsweredRows(source, answers, added)
        to_stdout = job.output == STDOUT
        target = opened.enter_context(contextlib.nullcontext(sys.stdout.buffer) if to_stdout else replacing(job.output))
        write_table(rows, columns, added.kinds, source, target, job.output_suffix)
    if not to_stdout:
        session.display.say(f"results: {job.output}")
    if job.errors:
        client.download(batch.error_file_id, job.errors)
        session.display.say(f"errors: {job.errors}")
    if rows.invalid:
        session.display.say(f"{rows.invalid} answers do not match the schema: see the column {added.error}")
    return exit_status(batch) or (SOME_FAILED if rows.invalid else ALL_SUCCEEDED)
