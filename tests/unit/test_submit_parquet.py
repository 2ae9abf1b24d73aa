"""``everbatch submit`` of Parquet files, and answers in the form of a schema."""

from __future__ import annotations

import csv
import datetime
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.batch_server import BatchServer, answered, counts, lines
from tests.fakes.commands import Run, commands_against, said

pyarrow: Any = import_module("pyarrow")  # which has no types
parquet: Any = import_module("pyarrow.parquet")

DAY = datetime.date(2026, 11, 27)
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "people": {"type": ["integer", "null"]},
        "area": {"type": "number"},
        "is_capital": {"type": "boolean"},
        "rivers": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
}
PARIS = {"city": "Paris", "people": 2_100_000.0, "area": 105, "is_capital": True, "rivers": ["Seine"]}


@pytest.fixture
def server() -> BatchServer:
    return BatchServer()


@pytest.fixture
def run(server: BatchServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return commands_against(server, monkeypatch, tmp_path)


def write(name: str, **columns: Any) -> None:
    parquet.write_table(pyarrow.table(columns), name, row_group_size=1)


def read(name: str) -> list[dict[str, Any]]:
    return parquet.read_table(name).to_pylist()


def answer(server: BatchServer, *results: dict[str, Any]) -> None:
    server.on_create = {"output_file_id": "file-out", **counts(len(results), len(results))}
    server.files["file-out"] = lines(*results)


def test_a_parquet_file_comes_back_with_its_types(server: BatchServer, run: Run) -> None:
    prompts = [f"p{number}" for number in range(2500)]
    write("in.parquet", id=list(range(2500)), day=[DAY] * 2500, tags=[["a", "b"], None] * 1250, prompt=prompts)
    answer(server, answered("prompt-2", "two \ud800"), answered("prompt-2500", "last"))
    options = ["--model", "m", "--prompt", "{prompt} on {day}", "-o", "out.parquet"]
    assert run("submit", "in.parquet", *options).exit_code == 0
    sent = [json.loads(line)["body"]["messages"][0]["content"] for line in server.files["file-1"].splitlines()]
    assert sent == [f"{prompt} on 2026-11-27" for prompt in prompts]
    rows = read("out.parquet")
    assert rows[1] == {"id": 1, "day": DAY, "tags": None, "prompt": "p1", "response": "two ?", "error": ""}
    assert (rows[0]["response"], rows[0]["tags"]) == ("", ["a", "b"])
    assert rows[0]["error"].startswith("missing: ")
    assert (len(rows), rows[-1]["response"]) == (2500, "last")


def test_a_parquet_file_as_csv_and_as_json_lines(server: BatchServer, run: Run) -> None:
    write("in.parquet", day=[DAY], n=[None], tags=[["a"]], prompt=["p"])
    answer(server, answered("prompt-1", "one"))
    assert run("submit", "in.parquet", "--model", "m", "-o", "out.csv").exit_code == 0
    assert Path("out.csv").read_text() == 'day,n,tags,prompt,response,error\n2026-11-27,,"[""a""]",p,one,\n'
    answer(server, answered("prompt-1", "one"))
    assert run("submit", "in.parquet", "--model", "m", "-o", "-").exit_code == 0
    assert run("submit", "in.parquet", "--model", "m", "-o", "out.jsonl").exit_code == 0
    (row,) = map(json.loads, Path("out.jsonl").read_text().splitlines())
    assert row == {"day": "2026-11-27", "n": None, "tags": ["a"], "prompt": "p", "response": "one", "error": ""}


def test_a_csv_as_parquet(server: BatchServer, run: Run) -> None:
    Path("in.csv").write_text("n,prompt\n1,p\n")
    answer(server, answered("prompt-1", "one"))
    assert run("submit", "in.csv", "--model", "m", "-o", "out.parquet").exit_code == 0
    assert read("out.parquet") == [{"n": "1", "prompt": "p", "response": "one", "error": ""}]


def test_what_is_no_parquet_file_and_pyarrow_that_is_not_there(
    server: BatchServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("in.parquet").write_bytes(b"PAR1")
    result = run("submit", "in.parquet", "--model", "m")
    assert said(result)[0].startswith("everbatch submit: the input is not a Parquet file: ")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    result = run("submit", "in.parquet", "--model", "m")
    problem = "everbatch submit: Parquet files need the package pyarrow: pip install 'everbatch[parquet]'"
    assert (said(result), result.exit_code, server.asked) == ([problem], 64, [])


@pytest.mark.parametrize(
    ("endpoint", "member"),
    [(None, "response_format"), ("/v1/responses", "text")],
)
def test_a_schema_is_asked_for(server: BatchServer, run: Run, endpoint: str | None, member: str) -> None:
    Path("in.txt").write_text("Paris\n")
    Path("city.json").write_text(json.dumps(CITY))
    options = ["--endpoint", endpoint] if endpoint else []
    assert run("submit", "in.txt", "--model", "m", "--schema", "city.json", *options).exit_code == 0
    (line,) = map(json.loads, server.files["file-0"].splitlines())
    assert (line["custom_id"], line["body"]["model"]) == ("prompt-1", "m")
    asked = line["body"][member]
    schema = asked["json_schema"] if endpoint is None else asked["format"]
    assert (schema["name"], schema["schema"], schema["strict"]) == ("answer", CITY, True)


def test_members_of_answers_are_columns_and_what_does_not_match_says_why(server: BatchServer, run: Run) -> None:
    Path("in.csv").write_text("prompt\n" + "".join(f"p{number}\n" for number in range(5)))
    Path("city.json").write_text(json.dumps(CITY))
    answer(
        server,
        answered("prompt-1", json.dumps(PARIS)),
        answered("prompt-2", '{"city": 7}'),
        answered("prompt-3", '{"city": "Lim'),
        answered("prompt-4", '{"people": 1}'),
    )
    options = ["--model", "m", "--schema", "city.json"]
    result = run("submit", "in.csv", *options, "-o", "out.parquet")
    assert result.exit_code == 2
    assert said(result)[-1] == "3 answers do not match the schema: see the column error"
    rows = read("out.parquet")
    empty = dict.fromkeys(CITY["properties"])
    found = {"city": "Paris", "people": 2_100_000, "area": 105.0, "is_capital": True, "rivers": '["Seine"]'}
    assert rows[0] == {"prompt": "p0", "response": json.dumps(PARIS), "error": "", **found}
    assert rows[1] == {
        "prompt": "p1",
        "response": '{"city": 7}',
        "error": "invalid_answer: city: 7 is not of type 'string'",
        **empty,
    }
    assert rows[2]["error"].startswith("invalid_answer: it is not JSON: ")
    assert rows[3]["error"] == "invalid_answer: it: 'city' is a required property"
    assert rows[4] == {**rows[4], "response": "", **empty}
    assert run("submit", "in.csv", *options, "-o", "out.csv").exit_code == 2
    with open("out.csv", newline="") as file:
        first, second, *_ = csv.DictReader(file)
    assert (first["people"], first["rivers"], first["is_capital"]) == ("2100000.0", '["Seine"]', "true")
    assert second["city"] == ""


@pytest.mark.parametrize(
    ("schema", "options", "problem"),
    [
        ("nope", [], "city.json is not JSON: "),
        ('{"type": "string"}', [], "city.json is not a JSON schema of objects: it has no properties"),
        ('{"properties": {}, "type": "objekt"}', [], "city.json is not a JSON schema: 'objekt' is not valid"),
        (json.dumps(CITY), ["--endpoint", "/v1/embeddings"], "--schema is for /v1/chat/completions and /v1/responses"),
        ('{"properties": {"prompt": {}}}', ["-o", "o.csv"], "in.csv already has a column 'prompt'; rename it, or"),
    ],
)
def test_schemas_that_cannot_be_used(
    server: BatchServer, run: Run, schema: str, options: list[str], problem: str
) -> None:
    Path("in.csv").write_text("prompt\nHello\n")
    Path("city.json").write_text(schema)
    result = run("submit", "in.csv", "--model", "m", "--schema", "city.json", *options)
    assert said(result)[0].startswith(f"everbatch submit: {problem}"), result.output
    assert (result.exit_code, server.asked) == (64, [])


def test_a_schema_is_for_tables(server: BatchServer, run: Run) -> None:
    Path("in.jsonl").write_text("{}\n")
    Path("city.json").write_text(json.dumps(CITY))
    result = run("submit", "in.jsonl", "--schema", "city.json")
    assert (result.exit_code, server.asked) == (64, [])
    assert said(result)[0].startswith("everbatch submit: --schema is for tables of prompts")
