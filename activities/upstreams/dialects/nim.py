"""NVIDIA NIM: parameters beyond OpenAI's go into ``nvext``, and NIM refuses some of OpenAI's own.

Applies to chat completions and completions; requests to other endpoints and all answers pass unchanged. The members of
a client's own ``nvext`` take precedence over those that are derived here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec

from activities.raw_json import is_null, raw_bytes, raw_items, raw_object
from activities.upstreams.dialects.dialect import Dialect, Members, Refusal

CHAT: Final = "/v1/chat/completions"
ENDPOINTS: Final = (CHAT, "/v1/completions")

_MOVED: Final = ("top_k", "repetition_penalty")
_NO_TOP_K: Final = msgspec.Raw(b"-1")
_LOOKED_INTO: Final = re.compile(rb"image|tool_calls")
"""Messages that match none of these are sent unchanged."""
_encode = msgspec.json.encode

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_MAGIC: Final = {"iVBORw": "image/png", "R0lGOD": "image/gif", "UklGR": "image/webp", "Qk": "image/bmp"}
"""Media type of an image by the first characters of its base64, if none is given; any other counts as a JPEG."""


def nim_refusal(endpoint: str, body: Members) -> Refusal | None:
    if endpoint not in ENDPOINTS or is_null(body.get("top_k")):
        return None
    try:
        top_k = msgspec.json.decode(body["top_k"], type=int)
    except msgspec.DecodeError:
        top_k = 0
    if top_k >= 1 or top_k == -1:
        return None
    return Refusal("top_k", "Invalid value for 'top_k': it must be an integer, at least 1, or -1 for no limit.")


def nim_body(endpoint: str, body: Members) -> Members:
    if endpoint not in ENDPOINTS:
        return body
    derived: Members = {"top_k": _NO_TOP_K}
    for name in _MOVED:
        value = body.pop(name, None)
        if value is not None and not is_null(value):
            derived[name] = value
    schema = _json_schema(body.get("response_format"))
    if schema is not None:
        derived["guided_json"] = schema
        del body["response_format"]  # NIM fails if both are present
    own = body.get("nvext")
    if is_null(own):
        body["nvext"] = _object(derived)
    elif (members := raw_object(own)) is not None:  # NIM itself refuses anything else
        body["nvext"] = _object(derived | members)
    if "tool_choice" in body and _is_nothing(body.get("tools")):
        del body["tool_choice"]
    messages = body.get("messages")
    if endpoint == CHAT and messages is not None and _LOOKED_INTO.search(messages):
        body["messages"] = _each(messages, _message)
    return body


def _object(members: Members) -> msgspec.Raw:
    return msgspec.Raw(raw_bytes(members))


def _string(text: str) -> msgspec.Raw:
    return msgspec.Raw(_encode(text))


def _is_nothing(raw: msgspec.Raw | None) -> bool:
    return is_null(raw) or raw_items(raw) == []


def _json_schema(raw: msgspec.Raw | None) -> msgspec.Raw | None:
    """Return the schema of a ``response_format`` of type ``json_schema``."""
    members = raw_object(raw)
    if not members or _text(members.get("type")) != "json_schema":
        return None
    wrapper = raw_object(members.get("json_schema")) or {}
    schema = wrapper.get("schema")
    return None if is_null(schema) else schema


def _each(array: msgspec.Raw, change: Callable[[msgspec.Raw], msgspec.Raw]) -> msgspec.Raw:
    """Return an array with its items changed, or the same object if no item changes."""
    items = raw_items(array) or []
    changed = [change(item) for item in items]
    if all(new is old for new, old in zip(changed, items, strict=True)):
        return array
    return msgspec.Raw(_encode(changed))


def _changed(raw: msgspec.Raw, **changes: Callable[[msgspec.Raw], msgspec.Raw]) -> msgspec.Raw:
    """Return a JSON object with some of its members changed, or the same Python object if none changes."""
    members = raw_object(raw) or {}
    new = {name: change(members[name]) for name, change in changes.items() if name in members}
    return _object(members | new) if any(new[name] is not members[name] for name in new) else raw


# Messages


def _message(raw: msgspec.Raw) -> msgspec.Raw:
    return _changed(raw, content=lambda parts: _each(parts, _part), tool_calls=lambda calls: _each(calls, _tool_call))


def _tool_call(raw: msgspec.Raw) -> msgspec.Raw:
    return _changed(raw, function=lambda function: _changed(function, arguments=_arguments))


def _arguments(raw: msgspec.Raw) -> msgspec.Raw:
    """Return the arguments as a string that holds JSON, as in OpenAI's API; some clients send the object itself."""
    return _string(bytes(raw).decode()) if bytes(memoryview(raw)[:1]) == b"{" else raw


def _part(raw: msgspec.Raw) -> msgspec.Raw:
    """Return a content part, with an image that is given as bare base64 turned into a data URL.

    Accepts OpenAI's own shape with base64 instead of a URL (``{"type": "image_url", "image_url": {"url": …}}``), and
    ``{"type": "image", …}`` with ``data`` and ``media_type`` in the part itself, in ``image`` or in ``source``.
    """
    part = raw_object(raw) or {}
    match _text(part.get("type")):
        case "image_url":
            image = raw_object(part.get("image_url"))
            url = _text(image.get("url")) if image is not None else _text(part.get("image_url"))
            if url is None or _SCHEME.match(url):
                return raw
            image = image or {}
            data_url = _data_url(url, _media_type(image) or _media_type(part))
            kept = {name: value for name, value in image.items() if name not in _MEDIA_TYPE}
            part = {name: value for name, value in part.items() if name not in _MEDIA_TYPE}
            return _object(part | {"image_url": _object(kept | {"url": _string(data_url)})})
        case "image":
            image = raw_object(part.get("source")) or raw_object(part.get("image")) or part
            url = _text(image.get("data")) or _text(image.get("url"))
            if url is None:
                return raw
            if not _SCHEME.match(url):
                url = _data_url(url, _media_type(image))
            return _object({"type": _string("image_url"), "image_url": _object({"url": _string(url)})})
        case _:
            return raw


_MEDIA_TYPE: Final = ("media_type", "mime_type")


def _media_type(members: Members) -> str | None:
    return next((text for name in _MEDIA_TYPE if (text := _text(members.get(name)))), None)


def _data_url(data: str, media_type: str | None) -> str:
    if not media_type:
        media_type = next((kind for start, kind in _MAGIC.items() if data.startswith(start)), "image/jpeg")
    return f"data:{media_type};base64,{data}"


def _text(raw: msgspec.Raw | None) -> str | None:
    try:
        return msgspec.json.decode(raw, type=str) if raw is not None else None
    except msgspec.DecodeError:
        return None


DIALECT: Final = Dialect(body=nim_body, refusal=nim_refusal, metrics_path="metrics")
