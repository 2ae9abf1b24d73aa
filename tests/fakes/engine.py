"""A fake inference engine for tests and benchmarks: cheap per request, and told how to fail while it runs.

It shares the machine with what is measured, so it is a bare HTTP/1.1 protocol (keep-alive, Content-Length
bodies) that parses no JSON on the way of a request. Engine requests carry no ``custom_id``, so the tests' bodies
carry it as ``"user": "<custom_id>"``.

    python -m tests.fakes.engine --port 0 --latency 0.1

prints ``ready <port>`` once it listens. ``POST /control`` takes a :class:`~tests.fakes.engine_script.Script`,
``GET /control`` answers :class:`~tests.fakes.engine_script.Counters`, ``DELETE /control`` sets them to zero.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass

import msgspec

from tests.fakes.engine_answers import Answers, http_answer, http_error, http_json, string_member
from tests.fakes.engine_protocol import Connection, Pending
from tests.fakes.engine_script import Counters, Script, request_latency, uniform

_LOG_FLUSH_SECONDS = 0.05
_NOT_JSON = http_answer(200, b"<html>upstream busy</html>", content_type=b"text/html")


@dataclass(frozen=True)
class EngineOptions:
    latency: float = 0.0
    """Seconds from request to answer; the mean, where ``lognormal`` is set."""
    lognormal: float = 0.0
    """Sigma of the latency's spread."""
    max_concurrent: int = 0
    """More requests than these at once are answered 429; 0 is no limit."""
    slots: int = 0
    """More requests than these wait their turn, first come first served, as in llama.cpp; 0 is no limit."""
    retry_after: float | None = None
    """Of those 429."""
    answer_bytes: int = 400
    """Size of an answer's body, at least what its shape needs."""
    models: tuple[str, ...] = ("fake",)
    api_key: str = ""
    """Requests without it are answered 401."""
    log: str = ""
    """File for a line per event: ``<monotonic ns> recv|sent|abort <custom_id> <status>``, status 0 where none is."""


class Engine:
    """The engine's state and its decisions. Use :meth:`start` and :meth:`close` inside one event loop."""

    def __init__(self, options: EngineOptions) -> None:
        self.key = f"Bearer {options.api_key}\r\n".encode() if options.api_key else b""
        self._latency = options.latency
        self._sigma = options.lognormal
        self._max_concurrent = options.max_concurrent
        self._slots = options.slots
        self._served = 0
        self._queue: deque[tuple[Connection, Pending]] = deque()
        self._retry_after = options.retry_after
        self._models = options.models
        self._model_names = frozenset(model.encode() for model in options.models)
        self._answers = Answers(options.models[0], options.answer_bytes)
        self._paths = frozenset(self._answers.paths())
        self._log = EventLog(options.log) if options.log else None
        self._server: asyncio.Server | None = None
        self._address = ("", 0)
        self._reopening: asyncio.Task[None] | None = None
        self._connections: set[Connection] = set()
        self._script = Script()
        self._struck_total = 0
        self._struck: dict[bytes, int] = {}
        self._in_flight = 0
        self.reset_counters()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the port that was got."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self), host, port, backlog=1024, reuse_address=True
        )
        self._address = (host, self._server.sockets[0].getsockname()[1])
        return self._address[1]

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._reopening:
            self._reopening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reopening
        if self._server:
            self._server.close()
        for connection in list(self._connections):
            connection.drop()
        await asyncio.sleep(0)  # lets the dropped connections count themselves as aborted before the log closes
        if self._log:
            self._log.close()

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def receive(self, connection: Connection, path: bytes, body: bytes) -> None:
        """Take an inference request and see to its answer, now or later."""
        if path not in self._paths:
            connection.send(http_error(404, f"Invalid URL (POST {path.decode('latin-1')})"))
            return
        custom_id = string_member(body, b"user") or b"-"
        nth = self._received.get(custom_id, 0) + 1
        self._received[custom_id] = nth
        self._received_total += 1
        self._note(b"recv", custom_id, 0)
        script = self._script
        struck = script.mode != "ok" and self._strikes(script, custom_id, nth)
        if struck and script.mode == "status":
            refusal = http_error(script.status, "The fake engine was told to refuse.", None, script.retry_after)
            self._refuse(connection, custom_id, script.status, refusal)
            return
        if struck and script.mode == "page":
            page = http_answer(script.status, b"<html>No such page</html>", content_type=script.content_type.encode())
            # In the log a page is no answer, whatever its status.
            self._refuse(connection, custom_id, 0 if script.status == 200 else script.status, page)
            return
        if struck and script.mode == "echo_key":
            words = f"Not with {connection.authorization.decode('latin-1')}."
            self._refuse(connection, custom_id, script.status, http_error(script.status, words))
            return
        if 0 < self._max_concurrent <= self._in_flight:
            refusal = http_error(429, "Too many requests at once.", "rate_limit_exceeded", self._retry_after)
            self._refuse(connection, custom_id, 429, refusal)
            return
        model = string_member(body, b"model")
        if model is not None and model not in self._model_names:
            message = f"The model `{model.decode(errors='replace')}` does not exist."
            self._refuse(connection, custom_id, 404, http_error(404, message, "model_not_found"))
            return
        self._in_flight += 1
        if self._in_flight > self._max_in_flight:
            self._max_in_flight = self._in_flight
        pending = Pending(custom_id, path, self._received_total, script.mode if struck else "ok")
        if self._slots and self._served >= self._slots:
            self._queue.append((connection, pending))
            connection.hold(pending, None)
        else:
            self._serve(connection, pending)

    def _serve(self, connection: Connection, pending: Pending) -> None:
        self._served += 1
        if pending.mode == "hang":
            connection.hold(pending, None)
        else:
            latency = self._latency
            spread = request_latency(pending.custom_id, latency, self._sigma) if self._sigma else latency
            connection.hold(pending, spread)

    def _free_slot(self) -> None:
        self._served -= 1
        if self._queue:
            self._serve(*self._queue.popleft())

    def unauthorized(self, connection: Connection, method: bytes, body: bytes) -> None:
        """Refuse a request that lacks the key."""
        refusal = http_error(401, "Incorrect API key provided.", "invalid_api_key")
        if method != b"POST":
            connection.send(refusal)
            return
        custom_id = string_member(body, b"user") or b"-"
        self._received[custom_id] = self._received.get(custom_id, 0) + 1
        self._received_total += 1
        self._note(b"recv", custom_id, 0)
        self._refuse(connection, custom_id, 401, refusal)

    def due(self, connection: Connection, pending: Pending) -> None:
        """The request's time has come: send its answer."""
        custom_id = pending.custom_id
        self._in_flight -= 1
        # Noted before the bytes leave, so the log never shows a client's next request ahead of this answer.
        self._note(b"sent", custom_id, 0 if pending.mode == "reset" else 200)
        if pending.mode == "ok":
            self._answered[custom_id] = self._answered.get(custom_id, 0) + 1
            self._answered_total += 1
            connection.send(self._answers.success(pending.path, custom_id, pending.number))
        elif pending.mode == "reset":
            self._refused_total += 1
            connection.send_half(self._answers.success(pending.path, custom_id, pending.number))
        else:
            self._refused_total += 1
            connection.send(_NOT_JSON)
        self._free_slot()

    def abandoned(self, pending: Pending) -> None:
        """The client has gone before the answer."""
        if any(waiting is pending for _, waiting in self._queue):
            self._queue = deque(one for one in self._queue if one[1] is not pending)
        else:
            self._free_slot()
        self._in_flight -= 1
        self._aborted += 1
        self._note(b"abort", pending.custom_id, 0)

    def other(self, method: bytes, path: bytes, body: bytes) -> bytes:
        """The HTTP answer to everything but an inference request."""
        if path == b"/control":
            return self.control(method, body)
        if path == b"/v1/models":
            return self.models()
        if path == b"/health":
            return http_json(200, {})
        return http_error(404, f"Invalid URL ({method.decode('latin-1')} {path.decode('latin-1')})")

    def _refuse(self, connection: Connection, custom_id: bytes, status: int, answer: bytes) -> None:
        self._refused_total += 1
        self._note(b"sent", custom_id, status)
        connection.send(answer)

    def _strikes(self, script: Script, custom_id: bytes, nth: int) -> bool:
        if script.mode == "refuse" or (script.match and script.match.encode() not in custom_id):
            return False
        if script.times is not None and self._struck_total >= script.times:
            return False
        if script.times_each is not None and self._struck.get(custom_id, 0) >= script.times_each:
            return False
        if script.fraction < 1 and uniform(custom_id, b"%d" % nth) >= script.fraction:
            return False
        self._struck_total += 1
        self._struck[custom_id] = self._struck.get(custom_id, 0) + 1
        return True

    def control(self, method: bytes, body: bytes) -> bytes:
        """The HTTP answer of ``/control``."""
        if method == b"GET":
            return http_answer(200, msgspec.json.encode(self.counters()))
        if method == b"DELETE":
            self.reset_counters()
            return http_json(200, {})
        try:
            self.follow(msgspec.json.decode(body, type=Script))
        except msgspec.DecodeError as error:
            return http_error(400, str(error))
        return http_json(200, {})

    def follow(self, script: Script) -> None:
        """Do as the script says, from now on."""
        self._script = script
        self._struck_total = 0
        self._struck = {}
        if script.latency is not None:
            self._latency = script.latency
        if script.max_concurrent is not None:
            self._max_concurrent = script.max_concurrent
        if script.mode == "refuse" and self._reopening is None:
            self._reopening = asyncio.get_running_loop().create_task(self._refuse_connections(script.seconds))

    async def _refuse_connections(self, seconds: float) -> None:
        await asyncio.sleep(0.01)  # lets the answer to /control out
        if self._server:
            self._server.close()
        for connection in list(self._connections):
            connection.close_when_idle()
        await asyncio.sleep(seconds)
        await self.start(*self._address)
        self._script = Script()
        self._reopening = None

    def models(self) -> bytes:
        data = [{"id": m, "object": "model", "created": 1_700_000_000, "owned_by": "everbatch"} for m in self._models]
        return http_json(200, {"object": "list", "data": data})

    def counters(self) -> Counters:
        return Counters(
            received=_as_text(self._received),
            answered=_as_text(self._answered),
            received_total=self._received_total,
            answered_total=self._answered_total,
            refused_total=self._refused_total,
            in_flight=self._in_flight,
            max_in_flight=self._max_in_flight,
            aborted=self._aborted,
        )

    def reset_counters(self) -> None:
        self._received: dict[bytes, int] = {}
        self._answered: dict[bytes, int] = {}
        self._received_total = self._answered_total = self._refused_total = self._aborted = 0
        self._max_in_flight = self._in_flight

    def _note(self, event: bytes, custom_id: bytes, status: int) -> None:
        if self._log:
            self._log.add(event, custom_id, status)


class EventLog:
    """The witness file: lines are written at most 50 ms after their event."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lines: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def add(self, event: bytes, custom_id: bytes, status: int) -> None:
        if not self._lines:
            self._loop.call_later(_LOG_FLUSH_SECONDS, self._flush)
        self._lines.append(b"%d %b %b %d\n" % (time.monotonic_ns(), event, custom_id, status))

    def _flush(self) -> None:
        if self._lines:
            os.write(self._file, b"".join(self._lines))
            self._lines = []

    def close(self) -> None:
        self._flush()
        os.close(self._file)


def _as_text(counts: dict[bytes, int]) -> dict[str, int]:
    return {custom_id.decode(errors="replace"): count for custom_id, count in counts.items()}


def parse_options(argv: list[str]) -> tuple[EngineOptions, int]:
    """The engine's options and its port."""
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.engine", description=EngineOptions.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--lognormal", type=float, default=0.0, metavar="SIGMA")
    parser.add_argument("--max-concurrent", type=int, default=0)
    parser.add_argument("--slots", type=int, default=0)
    parser.add_argument("--retry-after", type=float, default=None)
    parser.add_argument("--answer-bytes", type=int, default=400)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--api-key", default="")
    parser.add_argument("--log", default="")
    args = parser.parse_args(argv)
    options = EngineOptions(
        latency=args.latency,
        lognormal=args.lognormal,
        max_concurrent=args.max_concurrent,
        slots=args.slots,
        retry_after=args.retry_after,
        answer_bytes=args.answer_bytes,
        models=("fake", *args.model),
        api_key=args.api_key,
        log=args.log,
    )
    return options, args.port


async def _serve(options: EngineOptions, port: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    engine = Engine(options)
    sys.stdout.write(f"ready {await engine.start(port=port)}\n")
    sys.stdout.flush()
    parent = os.getppid()
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
        if os.getppid() != parent:  # a killed test run leaves no engine behind
            break
    await engine.close()


def main() -> None:
    options, port = parse_options(sys.argv[1:])
    asyncio.run(_serve(options, port))


if __name__ == "__main__":
    main()
