"""The client commands of ``everbatch``, against a server that is a function."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner

from api.cli import session
from api.cli.display import Display, details, printable
from api.cli.main import main
from tests.fakes.batch_server import BatchServer, answered, counts, cut_off, error, error_page, lines, refused, web_page
from tests.fakes.commands import Run, commands_against, said

PROBLEM = {"code": "invalid_json_line", "message": "This line is bad.", "line": 2, "param": None}


@pytest.fixture
def server() -> BatchServer:
    return BatchServer()


@pytest.fixture
def run(server: BatchServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    Path(tmp_path / "in.jsonl").write_text('{"url": "/v1/embeddings"}\n')
    return commands_against(server, monkeypatch, tmp_path)


# List


def test_a_list_is_a_table(server: BatchServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("COLUMNS", "120")
    described = {"metadata": {"name": "night"}, "model": "gpt-x", "endpoint": "/v1/embeddings"}
    server.add("batch_old", {**counts(5, 4, 1), "created_at": 1767225600, **described})
    waiting = {"progress": {"waiting_reason": "Waiting: HTTP 503: \x1b[31mbusy; " + "and so on " * 20}}
    server.add("batch_new", {"status": "in_progress", **counts(500, 20), **waiting})
    heading, new, *reason, old = run("list").stdout.splitlines()
    assert heading.split() == ["ID", "STATUS", "DONE", "FAILED", "CREATED", "NAME", "MODEL", "ENDPOINT"]
    assert new.startswith("batch_new  in_progress  20/500  0       ")
    # Whole, on lines of its own.
    assert " ".join(line.strip() for line in reason) == "Waiting: HTTP 503:  [31mbusy; " + ("and so on " * 20).strip()
    assert len(reason) == 2
    assert all(len(line) <= 120 for line in reason)
    assert old.split()[-3:] == ["night", "gpt-x", "/v1/embeddings"]
    assert old.startswith("batch_old  completed    4/5     1       20")
    assert old.index("20") == new.index("19")


def test_a_list_says_what_failed(server: BatchServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    errors = [{"code": "invalid_json_line", "line": line, "message": "Not JSON.", "param": None} for line in (3, 5)]
    server.add("batch_1", {"status": "failed", "errors": {"object": "list", "data": errors}})
    summary = {"code": "context_length_exceeded", "count": 1, "first_lines": [4], "message": "Too long."}
    server.add("batch_2", {"status": "completed", **counts(5, 4, 1), "error_summary": [summary]})
    _, _, of_requests, _, of_input = run("list").stdout.splitlines()
    assert of_requests == "  1 × context_length_exceeded (first line 4): Too long."
    assert of_input == "  line 3: Not JSON. (invalid_json_line) (and 1 more)"


def test_a_list_can_be_read_at_45_columns(server: BatchServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "45")
    described = {"metadata": {"name": "night"}, "model": "gpt-x", "endpoint": "/v1/embeddings"}
    server.add("batch_" + "0" * 32, {"status": "in_progress", **counts(5, 4, 1), "created_at": 1767225600, **described})
    shown = run("list").stdout.splitlines()
    assert shown[0] == "batch_" + "0" * 32
    assert max(map(len, shown)) <= 45
    text = " ".join(" ".join(shown).split())
    assert "status in_progress, done 5/5" not in text
    assert text.endswith("name night, model gpt-x, endpoint /v1/embeddings")


def test_a_list_may_be_of_some(server: BatchServer, run: Run) -> None:
    for number in range(5):
        server.add(f"batch_{number}", {"status": "failed" if number % 2 else "completed"})
    found = run("list", "--limit", 2, "--status", "completed", "--json").stdout.splitlines()
    assert [json.loads(line)["id"] for line in found] == ["batch_4", "batch_2"]
    assert json.loads(found[0]) == server.versions["batch_4"][0]
    assert len(run("list", "--limit", 3).stdout.splitlines()) == 1 + 3
    assert server.requests[-1].url.params["limit"] == "3"


def test_an_empty_list_has_headings_alone(run: Run) -> None:
    result = run("list")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 1)
    assert run("list", "--json").stdout == ""


# Status


def test_a_status_says_all_there_is(server: BatchServer, run: Run) -> None:
    progress: dict[str, Any] = {
        "requests_per_second": 12.5,
        "eta_seconds": 0,
        "in_flight": 8,
        "in_flight_limit": 12,
        "shared_upstreams": [
            {"name": "gpu", "interactive_headroom": 0.25, "body": {}},
            {"name": "a", "interactive_headroom": 0.2, "body": {"priority": 1}},
        ],
        "waiting_reason": "Waiting: the upstream is overloaded; next try in 3 s; the window ends in 23 h.",
    }
    usage = {
        "input_tokens": 900,
        "input_tokens_details": {"cached_tokens": 640},
        "output_tokens": 70,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 970,
    }
    known = {"status": "in_progress", "model": "m", "usage": usage}
    server.add("batch_1", {**known, **counts(9, 3, 1), "progress": progress})
    result = run("status", "batch_1")
    assert result.exit_code == 0
    shown = {line[:12].rstrip(): line[12:] for line in result.stdout.splitlines()}
    assert shown["requests"] == "9 requests, 3 completed, 1 failed"
    assert shown["progress"] == "12.5/s, 0 s left, 8 in flight (limit 12)"
    assert 'shared      upstream "gpu" leaves 25 % of its capacity to other clients' in result.stdout.splitlines()
    second = (
        'upstream "a" leaves 20 % of its capacity to other clients and is sent {"priority": 1} where a request does'
    )
    assert second in " ".join(result.stdout.split())
    assert shown["tokens"] == "900 in (640 cached), 70 out"
    assert shown["waiting"] == "the upstream is overloaded; next try in 3 s; the window ends in 23"
    assert shown[""] == "h."
    assert "results" not in shown
    assert json.loads(run("status", "batch_1", "--json").stdout) == server.versions["batch_1"][0]


SUMMARY: list[dict[str, Any]] = [
    {"code": "context_length_exceeded", "count": 5, "first_lines": [88, 90], "message": "Too long."},
    {"code": "other", "count": 1, "first_lines": [], "message": None},
]


def test_what_failed_is_summed_up(server: BatchServer, run: Run) -> None:
    server.add("batch_1", {**counts(9, 3, 6), "error_summary": SUMMARY})
    shown = run("status", "batch_1").stdout.splitlines()
    assert "failed      5 × context_length_exceeded (first line 88): Too long." in shown
    assert "failed      1 × other" in shown
    server.on_create = {**counts(9, 3, 6), "error_summary": SUMMARY}
    assert said(run("submit", "in.jsonl", "--wait"))[-3:] == [
        "  5 × context_length_exceeded (first line 88): Too long.",
        "  1 × other",
        "completed: 9 requests, 3 completed, 6 failed",
    ]


def test_a_batch_in_which_everything_failed_says_so_in_one_sentence(server: BatchServer, run: Run) -> None:
    server.on_create = {**counts(5, 0, 5), "error_summary": SUMMARY[:1]}
    sentence = "all 5 requests failed: 5 × context_length_exceeded (first line 88): Too long."
    assert said(run("submit", "in.jsonl", "--wait"))[-1] == f"completed: {sentence}"
    assert " ".join(run("status", "batch_0").stdout.split()).count(sentence) == 1
    server.add(
        "batch_1", {**counts(5, 0, 5), "error_summary": [{**SUMMARY[0], "message": "At most 9 requests, please."}]}
    )
    assert "At most 9 requests, please." in " ".join(run("status", "batch_1").stdout.split())
    server.add("batch_2", counts(1, 1))
    assert "1 request, 1 completed, 0 failed" in said(run("results", "batch_2", "-o", "out"))[0]


def test_a_status_can_be_read_at_45_columns(server: BatchServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "45")
    reason = 'Waiting: upstream "gpu" (http://gpu-1:8000/v1) refuses connections; 3 of 9 requests wait.'
    batch_id = "batch_" + "0" * 32
    server.add(batch_id, {"status": "in_progress", **counts(9, 3, 1), "progress": {"waiting_reason": reason}})
    lines = run("status", batch_id).stdout.splitlines()
    assert max(map(len, lines)) <= 45
    assert lines[0] == f"batch: {batch_id}"
    place = next(place for place, line in enumerate(lines) if line.startswith("waiting: "))
    assert lines[place : place + 3] == [
        'waiting: upstream "gpu"',
        "  (http://gpu-1:8000/v1) refuses connections;",
        "  3 of 9 requests wait.",
    ]


def test_a_failed_batch_shows_its_problems(server: BatchServer, run: Run) -> None:
    server.add("batch_1", {"status": "failed", "failed_at": 5, "errors": {"data": [PROBLEM]}})
    result = run("status", "batch_1")
    assert "problem     line 2: This line is bad. (invalid_json_line)" in result.stdout.splitlines()
    assert run("status", "batch_1", "--watch").exit_code == 1


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ({"status": "completed", **counts(2, 2)}, 0),
        ({"status": "completed", **counts(2, 1, 1)}, 2),
        ({"status": "expired", **counts(2, 1, 1)}, 1),
    ],
    ids=["all", "some", "expired"],
)
def test_a_watch_exits_as_submit_does(server: BatchServer, run: Run, end: dict[str, Any], code: int) -> None:
    server.add("batch_1", {"status": "in_progress"}, {"status": "finalizing", **counts(2, 1)}, end)
    result = run("status", "batch_1", "--watch")
    assert result.exit_code == code
    assert [line.split()[0] for line in said(result)] == ["finalizing", end["status"]]
    assert result.stdout.startswith("batch       batch_1\n")


# Cancel


def test_a_cancel_may_be_waited_for(server: BatchServer, run: Run) -> None:
    server.add("batch_1", {"status": "in_progress"}, {"status": "cancelled", **counts(2, 1, 1)})
    assert run("cancel", "batch_1", "--json").exit_code == 0
    result = run("cancel", "batch_1", "--wait")
    assert result.exit_code == 0
    assert "status      cancelled" in result.stdout


def test_a_cancel_that_came_too_late_is_reported(server: BatchServer, run: Run) -> None:
    server.add("batch_1", {"status": "in_progress"}, {"status": "completed"})
    assert run("cancel", "batch_1", "--wait").exit_code == 1
    server.failures = [error(409, "Cannot cancel a batch with status 'completed'.")]
    result = run("cancel", "batch_1")
    assert result.exit_code == 1
    assert said(result) == ["everbatch cancel: Cannot cancel a batch with status 'completed'. (HTTP 409)"]


# Results


def test_results_are_fetched(server: BatchServer, run: Run) -> None:
    server.add("batch_1", {"output_file_id": "file-out", "error_file_id": "file-err", **counts(2, 1, 1)})
    server.files |= {"file-out": lines(answered("a")), "file-err": b"{}\n"}
    result = run("results", "batch_1", "-o", "out", "--errors", "err")
    assert result.exit_code == 2
    assert Path("out").read_bytes() == lines(answered("a"))
    assert Path("err").read_bytes() == b"{}\n"
    assert said(result) == ["completed: 2 requests, 1 completed, 1 failed", "results: out", "errors: err"]
    assert said(run("results", "batch_1", "-o", "out"))[-1].startswith("errors: file file-err on the server")


def test_results_may_go_to_stdout(server: BatchServer, run: Run) -> None:
    server.add("batch_1", {"status": "cancelled", "output_file_id": "file-out", **counts(2, 1, 1)})
    server.files["file-out"] = lines(answered("a", "żółw"))
    result = run("results", "batch_1", "-o", "-")
    assert (result.exit_code, result.stdout_bytes) == (1, server.files["file-out"])
    assert not Path("-").exists()


def test_results_may_go_to_a_device(server: BatchServer, run: Run) -> None:
    server.add("batch_1", {"output_file_id": "file-out", **counts(1, 1)})
    server.files["file-out"] = b"x"
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert run("results", "batch_1", "-o", "pipe", "--errors", "pipe").exit_code == 0
    assert os.read(reader, 10) == b"x"
    os.close(reader)


def test_a_running_batch_has_no_results(server: BatchServer, run: Run) -> None:
    server.add("batch_1", {"status": "in_progress"})
    result = run("results", "batch_1", "-o", "out")
    assert result.exit_code == 1
    assert said(result) == [
        "everbatch results: batch_1 is in_progress; wait for it: everbatch status batch_1 --watch, or download its "
        "results so far: --follow"
    ]
    assert os.listdir() == ["in.jsonl"]


def test_a_failed_batch_writes_no_file(server: BatchServer, run: Run) -> None:
    server.add("batch_1", {"status": "failed", "errors": {"data": [PROBLEM]}})
    result = run("results", "batch_1", "-o", "out")
    assert result.exit_code == 1
    assert said(result)[0] == "  line 2: This line is bad. (invalid_json_line)"
    assert os.listdir() == ["in.jsonl"]


# Submit


def test_a_submit_goes_from_file_to_file(server: BatchServer, run: Run) -> None:
    server.on_create = {"output_file_id": "file-out", **counts(1, 1)}
    server.files["file-out"] = b"answers\n"
    result = run("submit", "-i", "in.jsonl", "-o", "out", "--errors", "err", "--idempotency-key", "k")
    assert result.exit_code == 0
    assert (Path("out").read_bytes(), Path("err").read_bytes()) == (b"answers\n", b"")
    assert server.created[0]["endpoint"] == "/v1/embeddings"
    assert {request.headers.get("idempotency-key") for request in server.requests[:2]} == {"k"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-o", "nodir/out"], "nodir/out: nodir is not a directory"),
        (["-o", "out", "--errors", "nodir/err"], "nodir/err: nodir is not a directory"),
        (["-o", "in.jsonl"], "in.jsonl is used as both input and output"),
        (["-o", "out", "--errors", "./out"], "out is used as both output and errors"),
    ],
    ids=["output", "errors", "input", "same"],
)
def test_targets_are_looked_at_before_the_upload(
    server: BatchServer, run: Run, arguments: list[str], problem: str
) -> None:
    result = run("submit", "-i", "in.jsonl", *arguments)
    assert result.exit_code == 64
    assert said(result) == [f"everbatch submit: {problem}"]
    assert server.asked == []


def test_a_folder_without_leave_to_write_is_said_before_the_upload(
    server: BatchServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def may_not(_: object, mode: int) -> bool:
        return not mode & os.W_OK

    monkeypatch.setattr(os, "access", may_not)  # root may write anywhere
    assert "cannot be written to" in said(run("submit", "-i", "in.jsonl", "-o", "out"))[0]
    assert server.asked == []


def test_an_input_without_an_endpoint_is_refused(server: BatchServer, run: Run) -> None:
    Path("in.jsonl").write_text("{}\n")
    result = run("submit", "-i", "in.jsonl", "-o", "out")
    assert said(result) == ["everbatch submit: in.jsonl: the first line has no url; give the --endpoint"]
    Path("in.jsonl").write_text("\nnonsense\n" + line("a"))
    for mode in ("--wait", "--dry-run"):
        assert said(run("submit", "-i", "in.jsonl", mode)) == ["everbatch submit: in.jsonl: line 2: not valid JSON"]
    assert server.asked == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b" \n\n", "The file is empty."),
        (b'[\n  {"custom_id": "a"}\n]', "The file is a JSON array."),
        (b'{\n  "custom_id": "a"\n}', "The file has JSON over several lines (pretty-printed)."),
        ("{}".encode("utf-16"), "The file is in UTF-16 (little endian)"),
        (b"\x1f\x8b\x08", "The file is compressed with gzip."),
    ],
    ids=["empty", "array", "pretty", "utf-16", "gzip"],
)
@pytest.mark.parametrize("source", ["in.jsonl", "-"])
def test_what_is_no_input_is_named_before_the_upload(
    server: BatchServer, run: Run, content: bytes, problem: str, source: str
) -> None:
    Path("in.jsonl").write_bytes(content)
    result = run("submit", "-i", source, "--endpoint", "/v1/embeddings", input=content)
    assert result.exit_code == 64
    assert said(result)[0].startswith(f"everbatch submit: {source}: {problem}")
    assert server.asked == []


def line(custom_id: str, **body: Any) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 400}], **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


def test_a_dry_run_says_requests_errors_and_tokens(server: BatchServer, run: Run) -> None:
    Path("in.jsonl").write_text(line("a", max_tokens=50) + line("b", max_tokens=60))
    result = run("submit", "in.jsonl", "--dry-run")
    assert (result.exit_code, result.stdout) == (
        0,
        "in.jsonl: 2 requests for /v1/chat/completions, no errors, about 202 input tokens, at most 110 output tokens\n",
    )
    Path("in.jsonl").write_text(line("a") + "nope\n" + line("a"))
    result = run("submit", "in.jsonl", "--dry-run")
    assert result.exit_code == 64
    heading, first, second = result.stdout.splitlines()
    assert heading == "in.jsonl: 2 errors"
    assert first.startswith("  line 2: ")
    assert second.startswith("  line 3: ")
    Path("in.csv").write_text("prompt\nhello\nworld\n")
    result = run("submit", "in.csv", "--model", "m", "--dry-run")
    assert result.stdout == "in.csv: 2 requests for /v1/chat/completions, no errors, about 4 input tokens\n"
    assert server.asked == []


def test_a_dry_run_refuses_what_every_server_would(run: Run) -> None:
    Path("in.jsonl").write_text(line("a"))
    result = run("submit", "in.jsonl", "--dry-run", "--completion-window", "banana")
    problem = "in.jsonl: 'banana' is not a completion window such as 24h, 30m or 5s\n"
    assert (result.exit_code, result.stdout) == (64, problem)
    os.truncate("in.jsonl", 209_715_201)
    result = run("submit", "in.jsonl", "--dry-run")
    problem = "in.jsonl: the file has 209,715,201 bytes; a server takes 209,715,200 by default\n"
    assert (result.exit_code, result.stdout) == (64, problem)


def test_a_dry_run_counts_the_lines_that_a_server_reads(run: Run) -> None:
    Path("in.jsonl").write_bytes(b"\xef\xbb\xbf\n" + line("a", max_tokens=True).replace(", ", ",\r", 1).encode())
    result = run("submit", "in.jsonl", "--dry-run")
    text = "in.jsonl: 1 request for /v1/chat/completions, no errors, about 101 input tokens\n"
    assert (result.exit_code, result.stdout) == (0, text)


def test_several_inputs_are_batches_of_their_own(server: BatchServer, run: Run) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        Path(name).write_text(line(name))
    assert run("submit", "a.jsonl", "b.jsonl").stdout == "batch_0\nbatch_1\n"
    Path("out").mkdir()
    server.on_create = {"output_file_id": "file-out", **counts(2, 1, 1)}
    server.files["file-out"] = b"answers\n"
    result = run("submit", "a.jsonl", "-i", "b.jsonl", "-o", "out", "--errors", "out")
    assert result.exit_code == 2
    assert sorted(os.listdir("out")) == [*("a_errors.jsonl", "a_output.jsonl", "b_errors.jsonl", "b_output.jsonl")]
    for arguments in (["-o", "a.jsonl"], ["--idempotency-key", "k"], ["-i", "-"]):
        assert run("submit", "a.jsonl", "b.jsonl", *arguments).exit_code == 64
    problem = "everbatch submit: there is no folder new, which the results of several inputs need; make it first"
    assert said(run("submit", "a.jsonl", "b.jsonl", "-o", "new")) == [problem]
    assert run("submit", "a.jsonl", "-o", "out").exit_code == 64
    assert len(server.created) == 4


@pytest.mark.parametrize("names", [["x.jsonl", "x_output.jsonl"], ["x_output.jsonl", "x.jsonl"]])
def test_the_results_of_an_input_do_not_take_the_place_of_another_input(
    server: BatchServer, run: Run, names: list[str]
) -> None:
    for name in names:
        Path(name).write_text(line(name))
    problem = "everbatch submit: x_output.jsonl is used as both input and output"
    assert said(run("submit", *names, "-o", ".")) == [problem]
    assert server.asked == []


def test_inputs_of_one_name_need_different_results_only_where_they_are_downloaded(run: Run) -> None:
    for folder in ("mon", "tue"):
        Path(folder).mkdir()
        Path(folder, "in.jsonl").write_text(line(folder))
    assert run("submit", "mon/in.jsonl", "tue/in.jsonl").stdout == "batch_0\nbatch_1\n"
    refused = run("submit", "mon/in.jsonl", "tue/in.jsonl", "-o", ".")
    assert said(refused) == ["everbatch submit: in.jsonl: several inputs of this name would have the same results file"]


def test_a_download_that_is_always_cut_off_names_the_batch(server: BatchServer, run: Run) -> None:
    server.on_create = {"output_file_id": "file-out"}
    server.failures = [None, None, None, cut_off]
    result = run("submit", "-i", "in.jsonl", "-o", "out")
    assert result.exit_code == 1
    last = said(result)[-1]
    assert last.startswith("everbatch submit: no connection to http://test/v1/files/file-out/content (peer closed")
    assert last.endswith("; the batch is batch_0")
    assert os.listdir() == ["in.jsonl"]


def test_a_stop_says_how_to_come_back(server: BatchServer, run: Run) -> None:
    def ctrl_c(_: httpx2.Request) -> httpx2.Response:
        raise KeyboardInterrupt

    server.on_create = {"status": "in_progress"}
    server.failures = [None, None, ctrl_c]
    result = run("submit", "-i", "in.jsonl", "-o", "out")
    assert result.exit_code == 130
    assert said(result)[-1] == "stopped; the batch continues to run: everbatch status batch_0"
    assert not any("cancel" in asked for asked in server.asked)
    server.failures = [ctrl_c]
    stopped = run("list")
    assert (stopped.exit_code, said(stopped)) == (130, ["stopped"])


# What goes wrong


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (refused, "no connection to http://test/v1/batches (Connection refused); --base-url sets the server"),
        (error(401, "Incorrect API key provided: sk-\nx."), "Incorrect API key provided: sk- x. (HTTP 401)"),
        (error_page, "Service Unavailable (HTTP 503)"),
        (
            web_page,
            "the server that answers does not have OpenAI's Batch API. Check the base URL: is its port that of the "
            "API, and not that of Temporal or its UI? Base URLs usually end in /v1",
        ),
    ],
    ids=["away", "401", "no JSON", "another server"],
)
def test_what_goes_wrong_is_one_line(server: BatchServer, run: Run, failure: Any, text: str) -> None:
    server.failures = [failure]
    result = run("list")
    assert result.exit_code == 1
    assert said(result) == [f"everbatch list: {text}"]


@pytest.mark.parametrize("batch_id", ["batch_9", "", "..", "a/b", "\x1b[31m"])
def test_an_id_that_is_none_is_one_line(run: Run, batch_id: str) -> None:
    result = run("status", batch_id)
    assert result.exit_code == 1
    (line,) = said(result)
    assert line.startswith("everbatch status: ")
    assert "\x1b" not in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--base-url", "nonsense"],
        ["--base-url", "http://[::1"],
        ["--base-url", "http://127.0.0.1:99999/v1"],
        ["--api-key", "kę"],
        ["--api-key", "a\nb"],
    ],
    ids=["no scheme", "no address", "no port", "no ASCII", "no line"],
)
def test_bad_options_are_one_line(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FIRST_PATIENCE_SECONDS", 0.0)
    result = CliRunner().invoke(main, ["status", "batch_1", *arguments])
    assert result.exit_code == 1
    assert len(said(result)) == 1


# The display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_redrawn_and_cannot_be_taken_over(server: BatchServer) -> None:
    progress = {"waiting_reason": "HTTP 503 \x1b[2J\r\n"}
    server.add("batch_1", {"status": "in_progress", **counts(4, 2), "progress": progress})
    batch = server.openai().batches.retrieve("batch_1")
    out = Terminal()
    display = Display(out)
    display.show(batch)
    display.show(batch)
    display.end_line()
    display.say("done\x07")
    reason, *drawn = out.getvalue().split("\r\x1b[K")  # what is waited for is said once
    assert reason == "HTTP 503  [2J\n"
    assert drawn == [drawn[0], drawn[0] + "\ndone \n"]
    assert printable(drawn[0]) == drawn[0]
    assert not any("\x1b" in line for line in details(batch))


# Events, pause and resume


def test_events_are_a_line_each_and_can_be_read_at_45_columns(
    server: BatchServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    server.add("batch_1", {"status": "in_progress"})
    said_of = {
        "created_at": 1767225600,
        "message": "Waited 14 min: gpu refuses connections.\x1b[2J " + "and so on " * 9,
    }
    server.events = [{"created_at": 1767225599, "message": "Created."}, said_of]
    first, second, *_ = run("events", "batch_1").stdout.splitlines()
    assert (first[21:], second[21:60]) == ("Created.", "Waited 14 min: gpu refuses connections.")
    assert json.loads(run("events", "batch_1", "--json").stdout.splitlines()[1]) == said_of
    monkeypatch.setenv("COLUMNS", "45")
    assert max(map(len, run("events", "batch_1").stdout.splitlines())) <= 45
    assert run("events", "batch_x").exit_code == 1


def test_a_batch_is_paused_and_resumed(server: BatchServer, run: Run) -> None:
    server.add("batch_1", {"status": "in_progress"})
    assert run("pause", "batch_1").exit_code == run("resume", "batch_1").exit_code == 0
    assert [asked for asked in server.asked if asked.startswith("POST")] == [
        "POST /batches/batch_1/pause",
        "POST /batches/batch_1/resume",
    ]


# Results as they come


def test_results_are_followed_to_the_end(server: BatchServer, run: Run, tmp_path: Path) -> None:
    server.add("batch_1", {"status": "in_progress"}, {"status": "completed", **counts(2, 2)})
    server.pages = [b"", lines(answered("a")), lines(answered("b"))]
    server.failures = [None, None, refused]  # the first look at the batch, and the empty page, are answered
    result = run("results", "batch_1", "--follow")
    assert (result.exit_code, result.stdout) == (1, "")  # without patience
    server.add("batch_1", {"status": "in_progress"}, {"status": "completed", **counts(2, 2)})
    result = run("results", "batch_1", "--follow")
    assert (result.exit_code, result.stdout.encode()) == (0, b"".join(server.pages))
    assert said(result) == ["completed: 2 requests, 2 completed, 0 failed"]
    assert run("results", "batch_1", "--follow", "-o", "out.jsonl").exit_code == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b"".join(server.pages)


def test_results_without_a_place_for_them(run: Run) -> None:
    assert run("results", "batch_1").exit_code == 64
    assert run("results", "batch_1", "--follow", "--errors", "e.jsonl").exit_code == 64


# Retry


def test_a_retry_prints_its_id_or_is_waited_for(server: BatchServer, run: Run, tmp_path: Path) -> None:
    server.add("batch_0")
    result = run("retry", "batch_0", "--code", "a", "--code", "b")
    assert (result.exit_code, result.stdout) == (0, "batch_1\n")
    server.on_create = {"output_file_id": "file-out", **counts(2, 1, 1)}
    server.files["file-out"] = lines(answered("a"))
    assert run("retry", "batch_0", "-o", "out").exit_code == 2
    assert (tmp_path / "out").read_bytes() == server.files["file-out"]
    assert server.created == [{"retry_of": "batch_0", "codes": ["a", "b"]}, {"retry_of": "batch_0"}]
    assert run("retry", "batch_x").exit_code == 1
    server.add("batch_9", {"metadata": {"retry_of": "batch_8"}, "retried_by": "batch_10"})
    shown = run("status", "batch_9").stdout.splitlines()
    assert {"retry of    batch_8", "retried by  batch_10"} <= set(shown)
