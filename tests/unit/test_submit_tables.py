"""``everbatch submit`` of a table: a prompt for each row, and the rows again with their answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.batch_server import BatchServer, answered, counts, lines
from tests.fakes.commands import Run, commands_against, said

CITIES = "city,land\nParis,France\n,Peru\n"


@pytest.fixture
def server() -> BatchServer:
    return BatchServer()


@pytest.fixture
def run(server: BatchServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    return commands_against(server, monkeypatch, tmp_path)


def prompts(server: BatchServer) -> list[str]:
    uploaded = [json.loads(line) for line in server.files["file-0"].splitlines()]
    assert {line["body"]["model"] for line in uploaded} == {"m"}
    return [line["body"]["messages"][0]["content"] for line in uploaded]


@pytest.mark.parametrize(
    ("name", "content", "prompt", "sent"),
    [
        ("in.csv", CITIES, "What is {city}, {land}?", ["What is Paris, France?", "What is , Peru?"]),
        ("in.csv", "\ufeffa\n1\n", "{a}{{a}} {{{a}}}", ["1{a} {1}"]),
        ("in.csv", 'text\n"two\nlines, one cell"\n', "{text}!", ["two\nlines, one cell!"]),
        ("in.csv", "a,b\n{b},2\n", "{a} {b}", ["{b} 2"]),
        ("in.csv", "a b,c:d!r\n1,2\n", "{a b} {c:d!r}", ["1 2"]),
        ("in.csv", f"a\n{'x' * 200_000}\n", "{a}", ["x" * 200_000]),
        ("in.csv", "prompt\nHello\n", None, ["Hello"]),
        ("in.txt", "Hello {x}\n\n  Ça va ?\n", None, ["Hello {x}", "Ça va ?"]),
        ("in.txt", "Paris\n", "Say {prompt}", ["Say Paris"]),
        ("in.jsonl", '{"a": null, "n": 1.5, "l": ["ż"]}\n\n', "[{a}] {n} {l}", ['[] 1.5 ["ż"]']),
    ],
)
def test_a_prompt_is_made_of_each_row(
    server: BatchServer, run: Run, name: str, content: str, prompt: str | None, sent: list[str]
) -> None:
    Path(name).write_text(content, encoding="utf-8")
    result = run("submit", name, "--model", "m", *(["--prompt", prompt] if prompt else []))
    assert (result.exit_code, result.stdout) == (0, "batch_0\n"), result.output
    assert prompts(server) == sent
    assert server.asked == ["POST /files", "POST /batches"]


def test_the_prompt_may_be_in_a_file(server: BatchServer, run: Run) -> None:
    Path("prompt.txt").write_text("Name a river\nof {land}.")
    Path("in.csv").write_text(CITIES)
    assert run("submit", "in.csv", "--model", "m", "--prompt", "prompt.txt").exit_code == 0
    assert prompts(server)[1] == "Name a river\nof Peru."


@pytest.mark.parametrize(
    ("name", "content", "options", "problem"),
    [
        ("in.csv", CITIES, ["--prompt", "{town}"], "there is no column 'town'; the columns are: city, land."),
        ("in.csv", CITIES, [], "there is no column 'prompt'; the columns are: city, land."),
        ("in.csv", CITIES, ["--prompt", '{"a": {city}}'], "the prompt has a single '{'; write '{{' for a brace"),
        ("in.csv", CITIES, ["--prompt", "city}"], "the prompt has a single '}'; write '}}' for a brace"),
        ("in.csv", "a,a\n1,2\n", ["--prompt", "{a}"], "two columns have the same name: a, a"),
        ("in.csv", "a\n1\n1,2\n", ["--prompt", "{a}"], "row 2 has more cells than the header has columns"),
        ("in.csv", 'a\n"open\n', ["--prompt", "{a}"], "line 2: unexpected end of data"),
        ("in.csv", "a\n", ["--prompt", "{a}"], "there is no request"),
        ("in.jsonl", '{"a": 1}\n{"b": 1}\n', ["--prompt", "{a}"], "there is no column 'a'; the columns are: b."),
        ("in.jsonl", "[1]\n", ["--prompt", "{a}"], "line 1 is not a JSON object"),
        ("in.jsonl", '{"a": 1}\nnope\n', ["--prompt", "{a}"], "line 2 is not JSON"),
        ("in.csv", "a,response\n1,2\n", ["-o", "o.csv"], "there is no column 'prompt'"),
        (
            *("in.csv", "prompt,response\n1,2\n", ["-o", "o.csv"]),
            "in.csv already has a column 'response'; choose another name with --response-column",
        ),
        (
            *("in.csv", "prompt\n1\n", ["-o", "o.csv", "--error-column", "response"]),
            "in.csv already has a column 'response'; choose another name with --error-column",
        ),
        ("in.csv", "prompt\n1\n", ["-o", "o.xlsx"], "o.xlsx: a table is written as .csv or .jsonl"),
        ("in.txt", "Hello\n", ["--model", ""], "prompts need the name of a model; give the --model"),
    ],
)
def test_what_cannot_be_sent_is_said_before_the_upload(
    server: BatchServer, run: Run, name: str, content: str, options: list[str], problem: str
) -> None:
    Path(name).write_text(content)
    result = run("submit", name, "--model", "m", *options)
    assert said(result)[0].startswith(f"everbatch submit: {problem}"), result.output
    assert result.exit_code == (1 if problem == "there is no request" else 64)
    assert server.asked == []


def test_a_table_that_is_not_utf_8_is_reported(server: BatchServer, run: Run) -> None:
    Path("in.csv").write_bytes("prompt\nżółw\n".encode("utf-16"))
    result = run("submit", "in.csv", "--model", "m")
    assert (result.exit_code, server.asked) == (64, [])
    assert said(result) == ["everbatch submit: the input is not UTF-8 text (invalid start byte at byte 0)"]


def failed(custom_id: str) -> dict[str, Any]:
    return {"custom_id": custom_id, "response": None, "error": {"code": "too_long", "message": "Too long."}}


@pytest.fixture
def answered_server(server: BatchServer) -> BatchServer:
    """With answers out of order, one refused and one missing."""
    server.on_create = {"output_file_id": "file-out", "error_file_id": "file-err", **counts(4, 2, 2)}
    server.files["file-out"] = lines(answered("prompt-4", 'żółw\u2028\n, "q" \ud800'), answered("prompt-1", "one"))
    server.files["file-err"] = lines(failed("prompt-2"))
    return server


def test_a_csv_is_written_again_with_answers(answered_server: BatchServer, run: Run) -> None:
    Path("in.csv").write_text("id,prompt\nα,1\nβ,2\nγ,3\nδ,4\n")
    result = run("submit", "in.csv", "--model", "m", "--output", "out.csv", "--errors", "err.jsonl")
    assert result.exit_code == 2
    with open("out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"id": "α", "prompt": "1", "response": "one", "error": ""},
        {"id": "β", "prompt": "2", "response": "", "error": "too_long: Too long."},
        {
            "id": "γ",
            "prompt": "3",
            "response": "",
            "error": "missing: The request is neither in the output file nor in the error file of its batch.",
        },
        {"id": "δ", "prompt": "4", "response": 'żółw\u2028\n, "q" ?', "error": ""},
    ]
    assert Path("err.jsonl").read_bytes() == answered_server.files["file-err"]
    assert said(result)[-3:] == [
        "completed: 4 requests, 2 completed, 2 failed",
        "results: out.csv",
        "errors: err.jsonl",
    ]
    assert sorted(path.name for path in Path().iterdir()) == ["err.jsonl", "in.csv", "out.csv"]


def test_names_of_columns_and_the_format_may_be_chosen(answered_server: BatchServer, run: Run) -> None:
    Path("in.csv").write_text("response,prompt\na,1\nb,2\n")
    options = ["--response-column", "answer", "--error-column", "why", "-o", "out.jsonl"]
    assert run("submit", "in.csv", "--model", "m", *options).exit_code == 2
    assert [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()] == [
        {"response": "a", "prompt": "1", "answer": "one", "why": ""},
        {"response": "b", "prompt": "2", "answer": "", "why": "too_long: Too long."},
    ]


def test_json_rows_with_different_columns_make_one_csv(answered_server: BatchServer, run: Run) -> None:
    Path("in.jsonl").write_text('{"prompt": "p", "a": 1}\n{"prompt": "q", "b": [2]}\n')
    assert run("submit", "in.jsonl", "--model", "m", "-o", "out.csv").exit_code == 2
    assert Path("out.csv").read_text().splitlines() == [
        "prompt,a,b,response,error",
        "p,1,,one,",
        "q,,[2],,too_long: Too long.",
    ]


def test_a_table_may_go_to_stdout_and_may_change_meanwhile(answered_server: BatchServer, run: Run) -> None:
    Path("in.txt").write_text("Hello\n")
    answered_server.failures = [None, lambda _: (Path("in.txt").write_text("") and None) or created(answered_server)]
    result = run("submit", "-i", "in.txt", "--model", "m", "-o", "-")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {"prompt": "Hello", "response": "one", "error": ""}


def created(server: BatchServer) -> Any:
    server.failures = []
    return server(server.requests[-1])


def test_answers_without_text_are_whole(server: BatchServer, run: Run) -> None:
    server.on_create = {"output_file_id": "file-out", **counts(1, 1)}
    body = {"data": [{"embedding": [0.5]}]}
    server.files["file-out"] = lines({"custom_id": "prompt-1", "response": {"status_code": 200, "body": body}})
    Path("in.txt").write_text("Hello\n")
    arguments = ["submit", "in.txt", "--model", "m", "--endpoint", "/v1/embeddings", "-o", "out.jsonl"]
    assert run(*arguments).exit_code == 0
    assert json.loads(server.files["file-1"])["body"] == {"model": "m", "input": "Hello"}
    assert json.loads(json.loads(Path("out.jsonl").read_text())["response"]) == body


def test_a_failed_batch_leaves_the_output_as_it_was(server: BatchServer, run: Run) -> None:
    server.on_create = {"status": "failed"}
    Path("in.txt").write_text("Hello\n")
    Path("out.csv").write_text("old")
    assert run("submit", "in.txt", "--model", "m", "-o", "out.csv").exit_code == 1
    assert Path("out.csv").read_text() == "old"


# How it is typed


def test_it_waits_only_if_asked_to(server: BatchServer, run: Run) -> None:
    server.on_create = {"output_file_id": "file-out", **counts(1, 1)}
    Path("in.txt").write_text("Hello\n")
    assert run("submit", "in.txt", "--model", "m").stdout == "batch_0\n"
    assert server.asked == ["POST /files", "POST /batches"]
    result = run("submit", "in.txt", "--model", "m", "--wait")
    assert (result.exit_code, result.stdout) == (0, "")
    assert said(result)[-1] == "results: file file-out on the server (everbatch results batch_1 -o FILE)"


def test_lines_may_come_from_standard_input(server: BatchServer, run: Run) -> None:
    content = '{"custom_id": "a", "url": "/v1/embeddings"}\n'
    assert run("submit", "-", input=content).exit_code == 0
    assert server.files["file-0"].decode() == content
    assert server.created[0]["endpoint"] == "/v1/embeddings"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "give an input file: everbatch submit INPUT"),
        (["in.txt", "-i", "in.txt"], "in.txt: this input is given twice"),
        (["nothing.csv"], "'nothing.csv' does not exist"),
        (["in.txt", "--no-such"], "No such option"),
    ],
)
def test_wrong_usage_has_a_status_of_its_own(run: Run, arguments: list[str], text: str) -> None:
    Path("in.txt").write_text("Hello\n")
    result = run("submit", *arguments)
    assert result.exit_code == 64
    assert text in result.stderr
