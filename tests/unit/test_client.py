"""The client helper, against a server that is a function."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any, cast

import openai
import pytest
from openai import APIError

from api.client import (
    AsyncBatchClient,
    BatchClient,
    BatchFailedError,
    BatchNotEndedError,
    NotABatchServerError,
    Request,
    Result,
)
from tests.fakes.batch_server import (
    Answer,
    BatchServer,
    answered,
    counts,
    cut_off,
    error,
    lines,
    refused,
    web_page,
)


class World(BatchServer):
    """A server and a client of it that waits in no time, but keeps account of it.

    Args:
        runner: runs the asynchronous client, if that is the one to be tested.
    """

    def __init__(self, runner: asyncio.Runner | None) -> None:
        super().__init__()
        self.retried: list[str] = []
        self.slept: list[float] = []
        self._runner = runner

    def client(self, patience: float = 600.0) -> BatchClient:
        def on_retry(error: APIError) -> None:
            self.retried.append(type(error).__name__)

        async def sleep(seconds: float) -> None:
            if seconds:
                self.slept.append(seconds)

        if not self._runner:
            return BatchClient(self.openai(), patience=patience, on_retry=on_retry, sleep=self.slept.append)
        client = AsyncBatchClient(self.async_openai(), patience=patience, on_retry=on_retry, sleep=sleep)
        return cast("BatchClient", Awaited(client, self._runner))


class Awaited:
    """The asynchronous client with the blocking one's methods."""

    def __init__(self, client: AsyncBatchClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*arguments: Any, **named: Any) -> Any:
            result = method(*arguments, **named)
            return self._each(result) if hasattr(result, "asend") else self._runner.run(result)

        return call

    def _each(self, items: AsyncGenerator[Any, Any]) -> Iterator[Any]:
        async def one() -> Any:
            return await anext(items, None)

        while (item := self._runner.run(one())) is not None:
            yield item


@pytest.fixture(params=["blocking", "awaited"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with asyncio.Runner() as runner:
        yield World(runner if request.param == "awaited" else None)


def body(text: str = "hi") -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


# Submitting


class Frame(list[str]):
    """Like a data frame, the items of which are the names of its columns."""

    columns = ("prompt",)


def test_pairs_become_the_lines_of_the_input_file(world: World) -> None:
    submitted = world.client().submit(((name, body(name)) for name in ("a", "zażółć")), metadata={"job": "night"})
    assert submitted.id == "batch_0"
    assert [json.loads(line) for line in world.files["file-0"].splitlines()] == [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body(name)}
        for name in ("a", "zażółć")
    ]
    assert world.created == [
        {
            "input_file_id": "file-0",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"job": "night"},
        }
    ]


def test_whole_lines_say_the_endpoint(world: World) -> None:
    request = {"custom_id": "a", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}
    world.client().submit([request, {"custom_id": "b", "body": {}}])
    assert [json.loads(line)["url"] for line in world.files["file-0"].splitlines()] == ["/v1/embeddings"] * 2
    assert world.created[0]["endpoint"] == "/v1/embeddings"
    assert "metadata" not in world.created[0]
    assert "method" not in request


def test_a_path_is_uploaded_as_it_is(world: World, tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n{"url": "/v1/responses", "x":  1}\nnot json\n')
    world.client().submit(path)
    assert world.files["file-0"] == path.read_bytes()
    assert world.created[0]["endpoint"] == "/v1/responses"
    assert b'filename="night.jsonl"' in world.requests[0].content


def test_a_path_without_an_endpoint_is_refused(world: World, tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="the endpoint must be given"):
        world.client().submit(path)
    assert world.asked == []


@pytest.mark.parametrize(
    ("requests", "why"),
    [
        ([], "there is no request"),
        ([("a", body()), ("a", body())], "custom_id 'a' is used twice"),
        ([("", body())], "request 1: custom_id is not a text"),
        ([{"body": body()}], "request 1: custom_id is not a text: None"),
        (
            [{"custom_id": "a"}],
            "request 'a': body is not a dict; requests must be the path of an input file, or a list",
        ),
        (["Hello"], 'a list of prompts needs the name of a model: model="…"'),
        ([5], "request 1 is 5; requests must be the path of an input file, or a list"),
        ([("a",)], r"request 1 is \('a',\); requests must be"),
        ({"custom_id": "a", "body": {}}, "requests must be .*, not a dict"),
        (b"Hello", "requests must be .*, not a bytes"),
        (None, "requests must be .*, not a NoneType"),
        ("Hello?", r"there is no file 'Hello\?'. A single prompt goes into a list: \['Hello\?'\]"),
        ("Hello " * 1000, "there is no file 'Hello Hello"),
        (Frame(), "requests must be .*, not a Frame"),
        ([("a", {"temperature": float("nan")})], "request 'a' cannot be written as JSON"),
        ([("a", {"x": object()})], "request 'a' cannot be written as JSON"),
        ([("a", body("\ud800"))], "request 'a' cannot be written as JSON"),
    ],
)
def test_requests_that_make_no_input_are_refused_before_the_upload(world: World, requests: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        world.client().run(requests)
    assert "\n" not in str(caught.value)
    assert world.asked == []


ROWS = [{"custom_id": "a", "prompt": "Hello", "price": float("nan")}, {"custom_id": "b", "prompt": "and again"}]


class Pandas(Frame):
    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return ROWS


class Polars(Frame):
    def iter_rows(self, *, named: bool) -> Iterator[dict[str, Any]]:
        assert named
        return iter(ROWS)


class Arrow(Frame):
    def to_pylist(self) -> list[dict[str, Any]]:
        return ROWS


@pytest.mark.parametrize("frame", [ROWS, Pandas(["prompt"]), Polars(["prompt"]), Arrow(["prompt"])])
def test_rows_with_a_prompt_become_requests(world: World, frame: Any) -> None:
    world.client().submit(frame, model="m")
    assert [json.loads(line) for line in world.files["file-0"].splitlines()] == [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body(text)}
        for name, text in (("a", "Hello"), ("b", "and again"))
    ]


@pytest.mark.parametrize(
    ("endpoint", "first"),
    [
        (None, {"messages": [{"role": "user", "content": "Hello"}]}),
        ("/v1/completions", {"prompt": "Hello"}),
        ("/v1/responses", {"input": "Hello"}),
        ("/v1/embeddings", {"input": "Hello"}),
    ],
)
def test_prompts_become_requests(world: World, endpoint: str | None, first: dict[str, Any]) -> None:
    world.client().submit(["Hello", "and again"], endpoint, model="m")
    written = [json.loads(line) for line in world.files["file-0"].splitlines()]
    assert [line["custom_id"] for line in written] == ["prompt-1", "prompt-2"]
    assert written[0]["body"] == {"model": "m", **first}
    assert {line["url"] for line in written} == {world.created[0]["endpoint"]} == {endpoint or "/v1/chat/completions"}


def test_prompts_without_a_body_for_their_endpoint_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="cannot be turned into requests for /v1/rerank; give whole bodies"):
        world.client().submit(["Hello"], "/v1/rerank", model="m")


def test_a_list_of_prompts_gives_answers_in_order(world: World) -> None:
    world.on_create = {"output_file_id": "file-out", **counts(2, 2)}
    world.files["file-out"] = lines(answered("prompt-2", "two"), answered("prompt-1", "one"))
    results = world.client().run(["One?", "Two?"], model="m")
    assert [(name, result.text) for name, result in results.items()] == [("prompt-1", "one"), ("prompt-2", "two")]


def test_a_model_is_for_bodies_that_name_none(world: World) -> None:
    world.client().submit([("a", {"input": "x"}), ("b", {"model": "own"})], "/v1/embeddings", model="m")
    bodies = [json.loads(line)["body"] for line in world.files["file-0"].splitlines()]
    assert bodies == [{"model": "m", "input": "x"}, {"model": "own"}]


def test_a_path_may_be_a_text_and_has_its_own_models(world: World, tmp_path: Path) -> None:
    path = tmp_path / "night.jsonl"
    path.write_bytes(b'{"url": "/v1/responses"}')
    world.client().submit(str(path))
    assert world.files["file-0"] == path.read_bytes()
    with pytest.raises(ValueError, match=r"model= is for prompts; the requests in .*night.jsonl name their own"):
        world.client().submit(path, model="m")


def test_requests_are_taken_one_at_a_time_and_not_kept(world: World) -> None:
    alive = 0

    class Counted(dict[str, Any]):
        def __init__(self) -> None:
            nonlocal alive
            alive += 1
            super().__init__(model="m")

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def requests() -> Iterator[Request]:
        for number in range(100):
            assert alive <= 1
            yield f"r-{number}", Counted()

    world.client().submit(requests())
    assert len(world.files["file-0"].splitlines()) == 100


def test_each_submit_has_a_key_that_its_calls_share(world: World) -> None:
    world.client().submit([("a", body())])
    world.client().submit([("a", body())])
    world.client().submit([("a", body())], idempotency_key="night-7")
    keys = [request.headers["idempotency-key"] for request in world.requests]
    assert keys[0] == keys[1] != keys[2] == keys[3]
    assert keys[4:] == ["night-7", "night-7"]


def test_an_upload_that_fails_is_sent_again_whole(world: World) -> None:
    world.failures = [refused, error(503), None]
    world.client().submit([("a", body())])
    assert world.asked == ["POST /files"] * 3 + ["POST /batches"]
    assert world.requests[0].content.count(b"custom_id") == world.requests[2].content.count(b"custom_id") == 1
    assert world.retried == ["APIConnectionError", "InternalServerError"]


def test_a_create_whose_answer_was_lost_makes_no_second_batch(world: World) -> None:
    world.add("batch_of_others", {"input_file_id": "file-9"})

    def lost(_: object) -> Any:
        world.add("batch_made", {"input_file_id": "file-0"})
        return error(502)(world.requests[-1])

    world.failures = [None, lost]
    assert world.client().submit([("a", body())]).id == "batch_made"
    assert world.asked == ["POST /files", "POST /batches", "GET /batches"]


def test_a_create_that_did_not_happen_is_sent_again(world: World) -> None:
    world.failures = [None, error(503)]
    world.client().submit([("a", body())])
    assert world.asked == ["POST /files", "POST /batches", "GET /batches", "POST /batches"]


# What is tried again


@pytest.mark.parametrize(
    "failure",
    [refused, error(408), error(429), error(500), error(503), error(529), error(409, x_should_retry="true")],
    ids=["refused", "408", "429", "500", "503", "529", "409 that says so"],
)
def test_what_may_pass_is_waited_for(world: World, failure: Answer) -> None:
    world.add("batch_1")
    world.failures = [failure] * 3
    assert world.client().retrieve("batch_1").id == "batch_1"
    assert world.slept == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    "failure",
    [error(status) for status in (400, 401, 403, 404, 409, 413)]
    + [error(429, code="insufficient_quota"), error(503, x_should_retry="false"), error(429, retry_after="3600")],
    ids=["400", "401", "403", "404", "409", "413", "no money", "503 that says so", "later than patience"],
)
def test_what_will_not_pass_is_not_asked_again(world: World, failure: Answer) -> None:
    world.failures = [failure]
    with pytest.raises(openai.APIStatusError):
        world.client().retrieve("batch_1")
    assert len(world.asked) == 1


def test_patience_ends(world: World) -> None:
    world.failures = [refused] * 5
    with pytest.raises(openai.APIConnectionError):
        world.client(patience=0).retrieve("batch_1")
    assert len(world.asked) == 1


def test_retry_after_is_kept_to(world: World) -> None:
    world.add("batch_1")
    date = formatdate(time() + 30, usegmt=True)
    world.failures = [
        error(503, retry_after="7"),
        error(429, retry_after_ms="2500", retry_after="9"),
        error(503, retry_after=date),
        error(503, retry_after="soon"),
    ]
    world.client().retrieve("batch_1")
    assert world.slept[:2] == [7.0, 2.5]
    assert 27 <= world.slept[2] <= 30
    assert world.slept[3] == 4.0


@pytest.mark.parametrize("answer", [web_page, error(200)], ids=["HTML", "JSON"])
def test_another_server_is_distinguished_from_one_of_batches(world: World, answer: Answer) -> None:
    client = world.client()
    calls = [
        lambda: client.submit([("a", body())]),
        lambda: client.retrieve("batch_1"),
        lambda: client.cancel("batch_1"),
        lambda: list(client.batches()),
        lambda: client.events("batch_1"),
    ]
    for call in calls:
        world.failures = [answer]
        with pytest.raises(NotABatchServerError, match="Check the base URL"):
            call()


# Waiting


def test_a_batch_is_followed_to_its_end(world: World) -> None:
    world.add("batch_1", *({"status": status} for status in ("validating", "in_progress", "completed")))
    said: list[str] = []
    assert world.client().wait("batch_1", lambda batch: said.append(batch.status)).status == "completed"
    assert said == ["validating", "in_progress", "completed"]
    assert world.slept == [0.2, 0.2]


def test_a_server_that_goes_meanwhile_is_waited_for(world: World) -> None:
    world.add("batch_1", {"status": "in_progress"}, {"status": "expired"})
    world.failures = [None, refused, error(502)]
    assert world.client().wait("batch_1").status == "expired"
    assert world.retried == ["APIConnectionError", "InternalServerError"]


def test_a_wait_may_have_an_end(world: World) -> None:
    world.add("batch_1", {"status": "in_progress"})
    with pytest.raises(TimeoutError, match="batch_1 has not ended after 0 s"):
        world.client().wait("batch_1", timeout=0)


@pytest.mark.parametrize("stale", ["in_progress", "finalizing", "cancelling", "cancelled"])
def test_a_batch_never_leaves_its_end(world: World, stale: str) -> None:
    world.add("batch_1", {"status": "completed", "output_file_id": "file-1"}, {"status": stale})
    client = world.client()
    assert client.retrieve("batch_1").status == "completed"
    again = client.retrieve("batch_1")
    assert (again.status, again.output_file_id) == ("completed", "file-1")
    assert client.cancel("batch_1").status == "completed"
    assert [batch.status for batch in client.batches()] == ["completed"]


def test_all_batches_are_listed_page_by_page(world: World) -> None:
    for number in range(5):
        world.add(f"batch_{number}")
    world.failures = [None, refused]
    assert [batch.id for batch in world.client().batches(page_size=2)] == [f"batch_{n}" for n in (4, 3, 2, 1, 0)]


# Results


def error_line(custom_id: str, response: object = None, error: object = None) -> dict[str, Any]:
    return {"id": "batch_req_1", "custom_id": custom_id, "response": response, "error": error}


def test_a_run_gives_a_result_for_each_request_in_order(world: World) -> None:
    world.on_create = {"output_file_id": "file-out", "error_file_id": "file-err"}
    world.files["file-out"] = lines(answered("d", "four"), answered("a", "one"))
    world.files["file-err"] = lines(error_line("c", error={"code": "batch_expired", "message": "Too late."}))
    results = world.client().run((name, body()) for name in "abcd")
    assert list(results) == ["a", "b", "c", "d"]
    assert {name: result.text for name, result in results.items() if result.ok} == {"a": "one", "d": "four"}
    assert results["a"].usage == {"total_tokens": 3}
    assert results["c"] == Result("c", False, None, None, "batch_expired", "Too late.")
    assert (results["b"].ok, results["b"].error_code) == (False, "missing")


REFUSAL = {"error": {"message": "Too long.", "type": "invalid_request_error", "code": "context_length"}}


@pytest.mark.parametrize(
    ("line", "code", "message", "status"),
    [
        (error_line("a", {"status_code": 400, "body": REFUSAL}), "context_length", "Too long.", 400),
        (
            error_line("a", {"status_code": 400, "body": REFUSAL}, {"code": "c", "message": "Said."}),
            "c",
            "Said.",
            400,
        ),
        (
            error_line("a", {"status_code": 429, "body": {"error": {"message": "M", "type": "tokens"}}}),
            "tokens",
            "M",
            429,
        ),
        (error_line("a", {"status_code": 500, "body": {"error": "broken"}}), "http_500", "broken", 500),
        (error_line("a", {"status_code": 503, "body": None}), "http_503", "HTTP status 503", 503),
        (error_line("a", {"status_code": 0, "body": {}}), "no_response", "no answer, and no reason given", None),
        (error_line("a", error={"type": "request_failed", "message": "No."}), "request_failed", "No.", None),
        (error_line("a", {"status_code": 200, "body": {}}, {"code": "c", "message": "But."}), "c", "But.", 200),
        (error_line("a", {"status_code": 200, "body": {"error": {"code": "c", "message": "But."}}}), "c", "But.", 200),
        (
            error_line("a", {"status_code": 200, "body": {"error": "But.", "choices": None}}),
            *("http_200", "But.", 200),
        ),
        ({"custom_id": None, "error": {"code": "c", "message": "m"}}, "c", "m", None),
        ({"custom_id": "a"}, "no_response", "no answer, and no reason given", None),
        ({"custom_id": "a", "response": {"status_code": "200"}}, "no_response", "no answer, and no reason given", None),
        (error_line("a", {"status_code": 301, "body": {}}), "http_301", "HTTP status 301", 301),
    ],
)
def test_only_2xx_is_a_success(world: World, line: dict[str, Any], code: str, message: str, status: int | None) -> None:
    world.add("batch_1", {"output_file_id": "file-out", **counts(1, 0, 1)})
    world.files["file-out"] = lines(line)
    (result,) = world.client().results("batch_1")
    assert (result.ok, result.error_code, result.error_message, result.status_code) == (False, code, message, status)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"choices": [{"text": "plain"}]}, "plain"),
        ({"choices": [{"message": {"content": None}}]}, None),
        (
            {
                "output": [
                    {"type": "reasoning"},
                    {"content": [{"type": "output_text", "text": t} for t in ("a", "b")]},
                ]
            },
            "ab",
        ),
        ({"type": "message", "content": [{"type": "text", "text": "a"}, {"type": "tool_use"}]}, "a"),
        ({"data": [{"embedding": [1.0]}]}, None),
        ({"choices": "?", "output": "?"}, None),
    ],
)
def test_the_text_of_each_endpoints_answer(world: World, answer: dict[str, Any], text: str | None) -> None:
    world.add("batch_1", {"output_file_id": "file-out", **counts(1, 1)})
    world.files["file-out"] = lines({"custom_id": "a", "response": {"status_code": 201, "body": answer}})
    (result,) = world.client().results("batch_1")
    assert (result.ok, result.text, result.body) == (True, text, answer)


def test_the_input_names_the_missing_where_the_counts_say_so(world: World) -> None:
    world.add("batch_1", {"status": "cancelled", "output_file_id": "file-out", **counts(3, 1)})
    world.files |= {"file-out": lines(answered("b")), "file-in": lines(*({"custom_id": name} for name in "abc"))}
    results = list(world.client().results("batch_1"))
    assert [(result.custom_id, result.error_code) for result in results] == [
        ("b", None),
        ("a", "missing"),
        ("c", "missing"),
    ]


def test_the_input_is_not_read_where_all_are_there(world: World) -> None:
    world.add("batch_1", {"output_file_id": "file-out", **counts(2, 2)})
    world.files["file-out"] = lines(answered("a"), answered("a", "again"), answered("b"))
    assert [result.text for result in world.client().results("batch_1")] == ["yes", "yes"]
    assert "GET /files/file-in/content" not in world.asked


def test_missing_results_without_an_input_are_said(world: World) -> None:
    world.add("batch_1", {"output_file_id": "file-out", **counts(2, 2)})
    world.files["file-out"] = lines(answered("a"))
    results = world.client().results("batch_1")
    assert next(results).custom_id == "a"
    with pytest.raises(LookupError, match="give the custom_ids"):
        next(results)
    assert [result.custom_id for result in world.client().results("batch_1", ["a", "b"])] == ["a", "b"]


def test_a_failed_batch_says_why(world: World) -> None:
    problem = {"code": "invalid_json_line", "message": "This line is bad.", "line": 2, "param": None}
    world.add("batch_1", {"status": "failed", "errors": {"object": "list", "data": [problem] * 7}})
    with pytest.raises(BatchFailedError) as caught:
        list(world.client().results("batch_1"))
    text = str(caught.value)
    assert text.startswith("batch_1 failed: line 2: This line is bad. (invalid_json_line); ")
    assert text.endswith("; and 2 more")
    assert caught.value.batch.errors
    world.on_create = {"status": "failed"}
    with pytest.raises(BatchFailedError, match="gives no reason"):
        world.client().run([("a", body())])


def test_results_of_a_running_batch_are_refused(world: World) -> None:
    world.add("batch_1", {"status": "finalizing"})
    with pytest.raises(BatchNotEndedError, match="batch_1 is finalizing"):
        list(world.client().results("batch_1"))


def test_a_line_that_is_no_result_is_named(world: World) -> None:
    world.add("batch_1", {"output_file_id": "file-out", **counts(2, 2)})
    world.files["file-out"] = lines(answered("a")) + b"\n[]\n"
    with pytest.raises(ValueError, match="file-out, line 3: not a JSON object"):
        list(world.client().results("batch_1"))


def test_results_that_are_cut_off_are_read_once_each(world: World) -> None:
    world.add("batch_1", {"output_file_id": "file-out", **counts(2, 2)})
    world.files["file-out"] = lines(answered("a"), answered("b"))
    world.failures = [None, cut_off, refused]
    assert [result.custom_id for result in world.client().results("batch_1")] == ["a", "b"]
    assert world.retried == ["APIConnectionError"] * 2


# Downloads


def test_a_download_that_is_cut_off_is_begun_anew(world: World, tmp_path: Path) -> None:
    world.files["file-out"] = b"whole"
    world.failures = [cut_off, error(503)]
    world.client().download("file-out", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"whole"
    assert world.retried == ["APIConnectionError", "InternalServerError"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_download_that_fails_leaves_what_was_there(world: World, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    world.failures = [cut_off]
    with pytest.raises(APIError):
        world.client(patience=0).download("file-out", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_pipe_is_written_into_and_a_link_is_followed(world: World, tmp_path: Path) -> None:
    world.files["file-out"] = b"whole"
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "out")
    with ThreadPoolExecutor() as threads:
        read = threads.submit(pipe.read_bytes)
        world.client().download("file-out", pipe)
        assert read.result(10) == b"whole"
    assert pipe.is_fifo()
    world.client().download("file-out", link)
    assert link.is_symlink()
    assert (tmp_path / "out").read_bytes() == b"whole"


def test_no_file_is_an_empty_one(world: World, tmp_path: Path) -> None:
    world.client().download(None, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b""
    assert world.asked == []


def test_the_client_closes_its_connections(world: World) -> None:
    stock = world.openai()
    with BatchClient(stock):
        assert not stock.is_closed()
    assert stock.is_closed()


async def test_the_asynchronous_client_closes_its_connections(world: World) -> None:
    stock = world.async_openai()
    async with AsyncBatchClient(stock):
        assert not stock.is_closed()
    assert stock.is_closed()


def test_a_program_that_uses_it_needs_nothing_of_the_server() -> None:
    heavy = ["temporalio", "fastapi", "pydantic_settings", "activities", "workflows"]
    script = f"import sys, api.client.client; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


# Results as they come


def test_pages_of_results_come_until_the_end(world: World) -> None:
    world.pages = [lines(answered("a")), b"", lines(answered("b"))]
    world.failures = [None, refused]
    pages = list(world.client().result_pages("batch_1"))
    assert [(page.content, page.cursor, page.is_last) for page in pages] == [
        (world.pages[0], "1", False),
        (world.pages[2], "3", True),
    ]
    assert [result.custom_id for page in pages for result in page.results()] == ["a", "b"]
    assert world.retried == ["APIConnectionError"]
    assert [page.cursor for page in world.client().result_pages("batch_1", after="2")] == ["3"]


def test_a_server_without_pages_of_results(world: World) -> None:
    with pytest.raises(openai.NotFoundError):
        list(world.client().result_pages("batch_1"))


def test_a_batch_is_retried(world: World) -> None:
    world.add("batch_0")
    world.failures = [refused]
    assert world.client().retry("batch_0", ["a"], idempotency_key="k").id == "batch_1"
    assert world.client().retry("batch_0").id == "batch_2"
    assert world.created == [{"retry_of": "batch_0", "codes": ["a"]}, {"retry_of": "batch_0"}]
    assert world.requests[0].headers["idempotency-key"] == "k"
