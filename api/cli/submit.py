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
from api.cli.batch_commands import check_targets, client_commands, take
from api.cli.session import (
    ALL_SUCCEEDED,
    NOT_COMPLETED,
    SOME_FAILED,
    STDIN,
    STDOUT,
    USAGE,
    BadInputError,
    ClientCommand,
    Session,
)
from api.cli.tables import (
    OUTPUT_SUFFIXES,
    PROMPT,
    Answers,
    OutputColumns,
    Row,
    Template,
    read_rows,
    write_table,
)
from api.client import BatchClient
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
    dry_run: bool
    wait: bool
    model: str | None
    prompt: str | None
    schema: Path | None
    response_column: str
    error_column: str
    endpoint: str | None
    completion_window: str
    idempotency_key: str | None

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


_INPUT = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
_OUTPUT = click.Path(allow_dash=True, path_type=Path)
_SCHEMA = click.Path(exists=True, dir_okay=False, path_type=Path)


@client_commands.command(cls=ClientCommand)
@click.argument("sources", metavar="[INPUT]...", nargs=-1, type=_INPUT)
@click.option("-i", "--input", "named", multiple=True, type=_INPUT, help="An input file; - is standard input.")
@click.option("-o", "--output", type=_OUTPUT, help="Where to write the results; - is standard output.")
@click.option("--errors", type=_OUTPUT, help="Where to write the error file.")
@click.option("--dry-run", is_flag=True, help="Only check the input: print its errors, requests and estimated tokens.")
@click.option("--wait", is_flag=True, help="Wait for the end of the batch, as with --output or --errors.")
@click.option("--model", help="The model that a table's prompts are for.")
@click.option("--prompt", help="The prompt for each row, or a file that has it. [{prompt}]")
@click.option("--schema", type=_SCHEMA, help="A JSON schema that the answers to a table are to have.")
@click.option("--response-column", default="response", show_default=True, help="The output column of answers.")
@click.option("--error-column", default="error", show_default=True, help="The output column of errors.")
@click.option("--endpoint", help="For example /v1/embeddings. [the url of the first line]")
@click.option("--completion-window", default="24h", show_default=True, help="Time after which the batch expires.")
@click.option("--idempotency-key", help="The same key and input make the same batch, not another.")
def submit(session: Session, sources: tuple[Path, ...], named: tuple[Path, ...], **options: Any) -> int:
    """Run a batch: upload the input, create the batch, wait for it and download its results.

    The input is an OpenAI batch input file (JSONL), or with --model a table of prompts: a CSV file with a header, a
    JSONL file of objects, a Parquet file, or a text file with a prompt on each line. In --prompt, {column} is replaced
    by the value of the row, and {{ and }} stand for braces. The output is then the table with a response or an error in
    each row, as CSV, JSONL or Parquet by its name. With --schema, the members of the answers are columns too.

    With several inputs, each becomes a batch, and --output and --errors are folders in which NAME_output and
    NAME_errors are written for each input NAME. Files appear under their names only when they are complete.

    Exits with 0 when all requests succeeded, 2 when some failed, 1 when the batch did not complete, 64 when the command
    was used wrongly. Without --output, --errors and --wait it prints the id of the batch and exits.
    """
    given = (*sources, *named)
    if not given:
        raise BadInputError("give an input file: everbatch submit INPUT")
    return _submit(session, Submission(source=given[0], **options).each_of(given))


def _submit(session: Session, jobs: Sequence[Submission]) -> int:
    """Run the batches and return the exit status. All are created before the command waits for the first."""
    for job in jobs:
        check_targets(job.output, job.errors, [job.source for job in jobs])
    with contextlib.ExitStack() as opened:
        folders = [Path(opened.enter_context(tempfile.TemporaryDirectory())) for _ in jobs]
        inputs = [
            (_Table if job.is_table else _RequestFile)(job, folder) for job, folder in zip(jobs, folders, strict=True)
        ]
        if jobs[0].dry_run:
            return max([_check(given) for given in inputs])
        batches = [_create(session, given) for given in inputs]
        if not (jobs[0].wait or jobs[0].output or jobs[0].errors):
            for batch in batches:
                click.echo(batch.id)
            return ALL_SUCCEEDED
        ends = [given.finish(session, session.watch(batch)) for given, batch in zip(inputs, batches, strict=True)]
    return NOT_COMPLETED if NOT_COMPLETED in ends else max(ends)


def _check(given: _RequestFile | _Table) -> int:
    """Validate an input without a server, print the findings, and return the exit status."""
    path, endpoint = given.request_file()
    lines, is_good = dry_run.check(path, str(given.job.source), endpoint, given.job.completion_window)
    for line in lines:
        click.echo(line)
    return ALL_SUCCEEDED if is_good else USAGE


def _create(session: Session, given: _RequestFile | _Table) -> Batch:
    batch = session.waiting_for = given.create(session.client)
    session.display.say(f"batch {batch.id}")
    return batch


class _RequestFile:
    """An input whose lines are whole requests. Standard input is copied to ``folder``.

    Raises:
        BadInputError: the input is empty, has a wrong format, or names no endpoint.
    """

    def __init__(self, job: Submission, folder: Path) -> None:
        if job.schema:
            raise BadInputError("--schema is for tables of prompts; requests of an input file name their own")
        self.job = job
        self._path = _copied(job.source, folder) if job.source == STDIN else job.source
        with self._path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if problem := file_error(head) or (None if head.strip() else "The file is empty."):
            raise BadInputError(f"{job.source}: {problem}")
        self._endpoint = job.endpoint or endpoint_of(self._path)
        if not self._endpoint:
            raise BadInputError(f"{job.source}: {_why_no_endpoint(self._path)}")

    def request_file(self) -> tuple[Path, str]:
        """Return the file with the lines of the requests, and their endpoint."""
        return self._path, self._endpoint

    def create(self, client: BatchClient) -> Batch:
        job = self.job
        return client.submit(self._path, self._endpoint, job.completion_window, idempotency_key=job.idempotency_key)

    def finish(self, session: Session, batch: Batch) -> int:
        """Download the results of the batch, which has ended, and return the exit status."""
        return take(session, batch, self.job.output, self.job.errors)


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


class _Table:
    """A table whose rows become prompts. It is copied to ``folder``, because it could change during the batch.

    Raises:
        BadInputError: an option is missing or wrong.
    """

    def __init__(self, job: Submission, folder: Path) -> None:
        if not job.model:
            raise BadInputError("prompts need the name of a model; give the --model")
        if job.output and job.output_suffix not in OUTPUT_SUFFIXES:
            raise BadInputError(f"{job.output}: a table is written as {' or '.join(OUTPUT_SUFFIXES)}")
        self.job = job
        self._folder = folder
        self._path = _copied(job.source, folder)
        self._template = Template(_prompt_text(job.prompt))
        schema = AnswerSchema(job.schema) if job.schema else None
        self._added = OutputColumns(job.response_column, job.error_column, schema)
        self._columns: list[str] = []
        """The columns of the output table, once all rows are read."""
        self._invalid = 0

    def request_file(self) -> tuple[Path, str]:
        """Return a file with the lines of the requests, and their endpoint."""
        path = self._folder / "requests.jsonl"
        with path.open("wb") as target:
            writer = InputWriter(target, self.job.endpoint, self.job.model)
            for request in self._requests():
                writer.add(request)
            endpoint, _ = writer.end()
        return path, endpoint

    def create(self, client: BatchClient) -> Batch:
        job, key = self.job, self.job.idempotency_key
        return client.submit(
            self._requests(), job.endpoint, job.completion_window, model=job.model, idempotency_key=key
        )

    def _requests(self) -> Iterable[str | tuple[str, dict[str, Any]]]:
        schema = self._added.schema
        return schema.requests(self._prompts(), self.job.endpoint) if schema else self._prompts()

    def _prompts(self) -> Iterator[str]:
        found: dict[str, None] = {}
        for row in read_rows(self._path):
            found |= dict.fromkeys(row)
            yield self._template.fill(row)
        added, choose = self._added, "choose another name with "
        advice = {added.response: f"{choose}--response-column", added.error: f"{choose}--error-column"}
        for name in (added.response, added.error, *added.kinds):
            if self.job.output and name in found:
                what = advice.get(name, "rename it, or the member of the schema")
                raise BadInputError(f"{self.job.source} already has a column {name!r}; {what}")
            found[name] = None
        self._columns = list(found)

    def finish(self, session: Session, batch: Batch) -> int:
        """Write the table with its answers, if the batch has any, and return the exit status."""
        status = take(session, batch, self.job.output, self.job.errors, self._write)
        if self._invalid:
            session.display.say(f"{self._invalid} answers do not match the schema: see the column {self._added.error}")
        return status or (SOME_FAILED if self._invalid else ALL_SUCCEEDED)

    def _write(self, client: BatchClient, batch: Batch, output: Path) -> None:
        with contextlib.ExitStack() as opened:
            ids = filter(None, (batch.output_file_id, batch.error_file_id))
            answers = Answers([opened.enter_context(client.open(file_id)) for file_id in ids])
            to = contextlib.nullcontext(sys.stdout.buffer) if output == STDOUT else replacing(output)
            target = opened.enter_context(to)
            rows, suffix = self._rows(answers), self.job.output_suffix
            write_table(rows, self._columns, self._added.kinds, self._path, target, suffix)

    def _rows(self, answers: Answers) -> Iterator[Row]:
        for number, row in enumerate(read_rows(self._path), 1):
            cells, is_valid = self._added.cells(answers.of(f"prompt-{number}"))
            self._invalid += not is_valid
            yield {**row, **cells}


def _prompt_text(prompt: str | None) -> str:
    """Return the prompt template: ``prompt`` itself, or the contents of the file that it names."""
    if prompt is None:
        return "{" + PROMPT + "}"
    with contextlib.suppress(OSError, ValueError):  # most prompts are not valid file names
        if Path(prompt).is_file():
            return Path(prompt).read_text(encoding="utf-8-sig")
    return prompt
