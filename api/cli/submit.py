"""The command ``everbatch submit``."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
from openai.types import Batch

from activities.input.encodings import file_error
from api.cli import dry_run
from api.cli.answer_schema import AnswerSchema
from api.cli.batch_commands import (
    ALL_SUCCEEDED,
    NOT_COMPLETED,
    SOME_FAILED,
    STDIN,
    STDOUT,
    USAGE,
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
from api.client.lines import InputWriter, endpoint_of

HEAD_BYTES: Final = 1 << 16
"""Number of bytes at the beginning of an input that are checked for a wrong format."""


@dataclass(frozen=True)
class Submission:
    """The arguments of the command, for one input."""

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
    dry_run: bool = False

    @property
    def is_table(self) -> bool:
        """Whether the input is a table whose rows become prompts. Otherwise each of its lines is a whole request."""
        return bool(self.model or self.prompt) or self.source.suffix.lower() in (".csv", ".txt", ".parquet")

    @property
    def output_suffix(self) -> str:
        """The file name suffix that selects the format of the output table."""
        if self.output and self.output != STDOUT and (self.output.is_file() or not self.output.exists()):
            return self.output.suffix.lower()
        return ".csv" if self.source.suffix.lower() == ".csv" else ".jsonl"

    def each_of(self, sources: Sequence[Path]) -> list[Submission]:
        """Return a submission for each input.

        Raises:
            BadInputError: the inputs cannot be combined, or would not each have an output file of their own.
        """
        targets = list(filter(None, (self.output, self.errors)))
        if len(sources) == 1:
            if folder := next((target for target in targets if target.is_dir()), None):
                raise BadInputError(f"{folder} is a folder; give the name of a file")
            return [self]
        if self.idempotency_key or STDIN in sources:
            raise BadInputError("several inputs can neither be standard input nor have an --idempotency-key")
        for target in targets:
            if not target.is_dir():
                problem = f"{target} is not a folder" if target.exists() else f"there is no folder {target}"
                advice = "" if target.exists() else "; make it first"
                raise BadInputError(f"{problem}, which the results of several inputs need{advice}")
        names = [source.stem if targets else source.resolve() for source in sources]
        if source := next((one for one, name in zip(sources, names, strict=True) if names.count(name) > 1), None):
            problem = "several inputs of this name would have the same results file"
            raise BadInputError(f"{source.name}: {problem if targets else 'this input is given twice'}")
        return [self._of(source) for source in sources]

    def _of(self, source: Path) -> Submission:
        """Return the submission of one of several inputs, with its output files in the folders that were given."""
        job = replace(self, source=source)
        output = self.output and self.output / f"{source.stem}_output{job.output_suffix}"
        return replace(job, output=output, errors=self.errors and self.errors / f"{source.stem}_errors.jsonl")

    def output_columns(self) -> OutputColumns:
        """Return the columns that the answers add to the table.

        Raises:
            BadInputError: the schema cannot be used.
        """
        if self.schema and not self.is_table:
            raise BadInputError("--schema is for tables of prompts; requests of an input file name their own")
        return OutputColumns(
            self.response_column, self.error_column, AnswerSchema(self.schema) if self.schema else None
        )


def submit(session: Session, jobs: Sequence[Submission]) -> int:
    """Run the batches and return the exit status. All are created before the command waits for the first."""
    for job in jobs:
        check_targets(job.output, job.errors, [job.source for job in jobs])
    with contextlib.ExitStack() as opened:
        inputs = [_Input(job, Path(opened.enter_context(tempfile.TemporaryDirectory()))) for job in jobs]
        if jobs[0].dry_run:
            return max([given.check() for given in inputs])
        batches = [given.create(session) for given in inputs]
        if not (jobs[0].wait or jobs[0].output or jobs[0].errors):
            for batch in batches:
                click.echo(batch.id)
            return ALL_SUCCEEDED
        ends = [given.finish(session, batch) for given, batch in zip(inputs, batches, strict=True)]
    return NOT_COMPLETED if NOT_COMPLETED in ends else max(ends)


class _Input:
    """A readable input. Standard input is copied to ``folder``, and so is a table, which could change during the batch.

    Raises:
        BadInputError: the input is empty, has a wrong format, or names no endpoint.
    """

    def __init__(self, job: Submission, folder: Path) -> None:
        self._job = job
        self._folder = folder
        self._added = job.output_columns()
        self._columns: list[str] = []
        self._source = _copied(job.source, folder) if job.is_table or job.source == STDIN else job.source
        if not job.is_table:
            with self._source.open("rb") as file:
                head = file.read(HEAD_BYTES)
            if problem := file_error(head) or (None if head.strip() else "The file is empty."):
                raise BadInputError(f"{job.source}: {problem}")
            self._endpoint = job.endpoint or endpoint_of(self._source)
            if not self._endpoint:
                raise BadInputError(f"{job.source}: {_why_no_endpoint(self._source)}")

    def check(self) -> int:
        """Validate the input without a server, print the findings, and return the exit status."""
        path, name = self._source, str(self._job.source)
        if self._job.is_table:
            path = self._folder / "requests.jsonl"
            with path.open("wb") as target:
                writer = InputWriter(target, self._job.endpoint, self._job.model)
                for request in _requests_of_table(self._job, self._source, self._added, self._columns):
                    writer.add(request)
                self._endpoint, _ = writer.end()
        lines, is_good = dry_run.check(path, name, self._endpoint, self._job.window)
        for line in lines:
            click.echo(line)
        return ALL_SUCCEEDED if is_good else USAGE

    def create(self, session: Session) -> Batch:
        job, client, key = self._job, session.client, self._job.idempotency_key
        if job.is_table:
            requests = _requests_of_table(job, self._source, self._added, self._columns)
            batch = client.submit(requests, job.endpoint, job.window, model=job.model, idempotency_key=key)
        else:
            batch = client.submit(self._source, self._endpoint, job.window, idempotency_key=key)
        session.waiting_for = batch
        session.display.say(f"batch {batch.id}")
        return batch

    def finish(self, session: Session, batch: Batch) -> int:
        batch = session.watch(batch)
        if self._job.is_table and self._job.output and batch.status != "failed":
            return _write_table(session, self._job, self._source, self._added, self._columns, batch)
        return take(session, batch, self._job.output, self._job.errors)


def _why_no_endpoint(path: Path) -> str:
    with path.open("rb") as file:
        number, first = next((number, line) for number, line in enumerate(file, 1) if line.strip())
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return f"line {number}: not valid JSON"
    return "the first line has no url; give the --endpoint"


def _copied(source: Path, folder: Path) -> Path:
    copy = folder / (source.name if source != STDIN else "input.jsonl")
    with sys.stdin.buffer if source == STDIN else source.open("rb") as original, copy.open("wb") as target:
        shutil.copyfileobj(original, target)
    return copy


def _requests_of_table(
    job: Submission, source: Path, added: OutputColumns, columns: list[str]
) -> Iterable[str | tuple[str, dict[str, Any]]]:
    """Return the requests for the rows. Once all are read, ``columns`` holds the columns of the output table.

    Raises:
        BadInputError: an option is missing or wrong, or, during iteration, the table cannot be used.
    """
    if not job.model:
        raise BadInputError("prompts need the name of a model; give the --model")
    if job.output and job.output_suffix not in OUTPUT_SUFFIXES:
        raise BadInputError(f"{job.output}: a table is written as {' or '.join(OUTPUT_SUFFIXES)}")
    template = Template(_prompt_text(job.prompt))
    prompts = _prompts(job, template, source, added, columns)
    return added.schema.requests(prompts, job.endpoint) if added.schema else prompts


def _prompt_text(prompt: str | None) -> str:
    """Return the prompt template: ``prompt`` itself, or the contents of the file that it names."""
    if prompt is None:
        return "{" + PROMPT + "}"
    with contextlib.suppress(OSError, ValueError):  # most prompts are not valid file names
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
    """Write the rows of the table with their answers, and return the exit status."""
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
