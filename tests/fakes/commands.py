"""The client commands of ``everbatch``, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from api.cli import session
from api.cli.main import main
from tests.fakes.batch_server import BatchServer

Run = Callable[..., Result]


def commands_against(server: BatchServer, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Run:
    """Runs a command in a folder of its own, without patience."""

    def openai(**_: object) -> object:
        return server.openai()

    monkeypatch.setattr(session, "OpenAI", openai)
    monkeypatch.setattr(session, "FIRST_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(session, "PATIENCE_SECONDS", 0.0)
    monkeypatch.chdir(folder)
    return lambda *arguments, **options: CliRunner().invoke(main, [str(argument) for argument in arguments], **options)


def said(result: Result) -> list[str]:
    assert "Traceback" not in result.output
    return result.stderr.splitlines()
