"""What all client commands share: the connection to the server, exit statuses, and errors in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import httpx2
from openai import APIConnectionError, APIError, APIStatusError, OpenAI, OpenAIError
from openai.types import Batch

from api.cli.display import Display
from api.client import TERMINAL, BatchClient
from api.client.errors import NotABatchServerError, message_of
from api.client.options import PATIENCE_SECONDS

DEFAULT_URL: Final = "http://127.0.0.1:8000/v1"
FIRST_PATIENCE_SECONDS: Final = 2.0
"""Patience with a server that has not responded yet, in seconds. It is short because the base URL may be wrong."""
MAX_POLL_SECONDS: Final = 5.0
STDIN = STDOUT = Path("-")

ALL_SUCCEEDED, NOT_COMPLETED, SOME_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 64, 130


class BadInputError(ValueError):
    """The input of a command cannot be used; the message is one line for the user."""


class Session:
    """One run of a command against one server."""

    def __init__(self, openai: OpenAI, display: Display) -> None:
        self._openai = openai
        self.display = display
        self.waiting_for: Batch | None = None
        """The batch that the command is working on; it continues to run if the command is interrupted."""

    @property
    def client(self) -> BatchClient:
        """A client for a server that may not exist at this base URL; it gives up after a short time."""
        return BatchClient(self._openai, patience=FIRST_PATIENCE_SECONDS)

    @property
    def patient(self) -> BatchClient:
        """A client for a server that has responded before; it waits for the server when that becomes unavailable."""
        return BatchClient(
            self._openai, patience=PATIENCE_SECONDS, max_poll=MAX_POLL_SECONDS, on_retry=self._show_retry
        )

    def _show_retry(self, error: APIError) -> None:
        self.display.say(f"the server is unavailable ({_reason(error)}); waiting")

    def watch(self, batch: Batch) -> Batch:
        """Show a batch until it has ended, and return it."""
        self.waiting_for = batch
        for latest in self.patient.follow(batch.id):
            self.waiting_for = latest
            self.display.show(latest)
        self.display.end_line()
        return self.waiting_for


class WrongUsageError(click.UsageError):
    """A usage error. Click's own exit status for it is 2, which here means that some requests failed."""

    exit_code = USAGE


class ClientCommand(click.Command):
    """A command whose function gets a :class:`Session` and its options, and returns the exit status."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        url = "Base URL of the server. [OPENAI_BASE_URL, else http://127.0.0.1:8000/v1]"
        self.params.append(click.Option(["--base-url"], help=url))
        self.params.append(click.Option(["--api-key"], help="API key. [OPENAI_API_KEY]"))

    def make_context(self, *arguments: Any, **named: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **named)
        except click.UsageError as error:
            raise WrongUsageError(error.format_message(), error.ctx) from None

    def invoke(self, ctx: click.Context) -> None:
        function, options = self.callback, ctx.params.copy()
        assert function
        base_url, api_key = options.pop("base_url"), options.pop("api_key")
        ctx.exit(_run(str(self.name), base_url, api_key, lambda session: function(session, **options)))


def _run(name: str, base_url: str | None, api_key: str | None, command: Callable[[Session], int]) -> int:
    """Run the command of this name and return its exit status. Any error is reported in one line on stderr."""
    display = Display(sys.stderr)
    session = None
    try:
        url = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL
        if "://" not in url:
            raise ValueError(f"the base URL {url!r} has no scheme; did you mean 'http://{url}'?")
        with OpenAI(base_url=url, api_key=api_key or os.environ.get("OPENAI_API_KEY") or "none") as openai:
            session = Session(openai, display)
            return command(session)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has finished; click then exits without a message
        raise
    except (OpenAIError, OSError, ValueError, LookupError, httpx2.InvalidURL) as error:
        waiting = session.waiting_for if session else None
        display.say(f"everbatch {name}: {_reason(error)}{f'; the batch is {waiting.id}' if waiting else ''}")
        return USAGE if isinstance(error, BadInputError) else NOT_COMPLETED
    except KeyboardInterrupt:
        waiting = session.waiting_for if session else None
        runs = waiting and waiting.status not in TERMINAL
        text = f"stopped; the batch continues to run: everbatch status {waiting.id}" if waiting and runs else "stopped"
        display.say(text)
        return INTERRUPTED


def _reason(error: Exception) -> str:
    if isinstance(error, APIConnectionError):
        url = error.request.url.copy_with(query=None)
        return f"no connection to {url} ({error.__cause__ or error}); --base-url sets the server"
    if isinstance(error, APIStatusError) and error.status_code in (404, 405) and not isinstance(error.body, dict):
        return f"{NotABatchServerError()} (HTTP {error.status_code})"
    if isinstance(error, APIStatusError):
        return f"{message_of(error):.500} (HTTP {error.status_code})"
    return str(error)
