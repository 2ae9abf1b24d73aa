"""Structured answers: requests ask for answers that match a JSON schema, whose properties become table columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

from api.cli.session import BadInputError
from api.client.lines import CHAT

_RESPONSES: Final = "/v1/responses"
_NAME: Final = "answer"
_KINDS: Final = ("string", "integer", "number", "boolean")


class AnswerSchema:
    """A JSON schema for answers that are objects.

    Raises:
        BadInputError: the file does not contain a JSON schema of objects, or the package ``jsonschema`` is missing.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            schema = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise BadInputError(f"{path} is not JSON: {error}") from None
        if not isinstance(schema, dict) or not isinstance(cast("dict[str, Any]", schema).get("properties"), dict):
            raise BadInputError(f"{path} is not a JSON schema of objects: it has no properties")
        self._schema = cast("dict[str, Any]", schema)
        self._validator = _validator(path, self._schema)
        self.columns: dict[str, str] = {
            name: _kind(property_) for name, property_ in cast("dict[str, Any]", schema["properties"]).items()
        }
        """The schema's properties by name, each with its type: string, integer, number, boolean, or ``json`` for any
        other."""

    def requests(self, prompts: Iterable[str], endpoint: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the request for each prompt, with the custom_id that the client library gives to prompts.

        Raises:
            BadInputError: the endpoint does not support schemas.
        """
        if endpoint not in (None, CHAT, _RESPONSES):
            raise BadInputError(f"--schema is for {CHAT} and {_RESPONSES}, not for {endpoint}")
        schema = {"name": _NAME, "schema": self._schema, "strict": True}
        for number, prompt in enumerate(prompts, 1):
            if endpoint == _RESPONSES:
                body = {"input": prompt, "text": {"format": {"type": "json_schema", **schema}}}
            else:
                message = {"role": "user", "content": prompt}
                body = {"messages": [message], "response_format": {"type": "json_schema", "json_schema": schema}}
            yield f"prompt-{number}", body

    def read(self, text: str | None) -> tuple[dict[str, Any], str]:
        """Return the columns of an answer and an empty text, or no columns and the problem if the answer is invalid."""
        try:
            answer = json.loads(text or "")
        except (ValueError, RecursionError) as error:
            return {}, f"invalid_answer: it is not JSON: {error}"
        problem = next(iter(self._validator.iter_errors(answer)), None)
        if problem is not None:
            path = "".join(f".{part}" for part in problem.absolute_path)
            return {}, f"invalid_answer: {path.removeprefix('.') or 'it'}: {problem.message:.200}"
        if not isinstance(answer, dict):
            return {}, "invalid_answer: it is not an object"
        return {name: cast("dict[str, Any]", answer).get(name) for name in self.columns}, ""


def _validator(path: Path, schema: dict[str, Any]) -> Any:
    try:
        jsonschema = import_module("jsonschema")
    except ImportError:
        raise BadInputError("--schema needs the package jsonschema: pip install 'everbatch[schema]'") from None
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise BadInputError(f"{path} is not a JSON schema: {error.message:.200}") from None
    return kind(schema)


def _kind(property_: object) -> str:
    found = cast("dict[str, Any]", property_).get("type") if isinstance(property_, dict) else None
    kinds = [one for one in cast("list[Any]", found if isinstance(found, list) else [found]) if one != "null"]
    return kinds[0] if len(kinds) == 1 and kinds[0] in _KINDS else "json"
