"""What a fake engine can be told, and what it tells: the JSON of its ``/control``."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist
from typing import Literal

import msgspec

Mode = Literal["ok", "status", "hang", "reset", "not_json", "page", "echo_key", "refuse"]

_NORMAL = NormalDist()


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How to treat requests from now on. Each ``POST /control`` replaces the script before it."""

    mode: Mode = "ok"
    """``status`` refuses at once, ``page`` does so with HTML or text, ``echo_key`` with words that quote the key;
    ``hang`` never answers; ``reset`` sends half an answer and a TCP reset;
    ``not_json`` answers 200 with text; ``refuse`` closes the listening socket and the idle connections
    for ``seconds``, then goes on as ``ok``."""
    status: int = 503
    content_type: str = "text/html"
    """Of a ``page``."""
    retry_after: float | None = None
    """Sent as ``Retry-After`` with ``status``, rounded up to whole seconds."""
    fraction: float = 1.0
    """Of the attempts it applies to. Which ones follows from the custom_id and how often that was received, so
    a run can be repeated and the retry of a struck request is a new throw."""
    match: str = ""
    """Only requests whose custom_id contains this."""
    times: int | None = None
    """Strikes in all, then the rest is answered."""
    times_each: int | None = None
    """Strikes per custom_id, then that one is answered."""
    seconds: float = 1.0
    """How long ``refuse`` lasts."""
    latency: float | None = None
    """Changes the engine's latency, for good."""
    max_concurrent: int | None = None
    """Changes the engine's limit, for good; 0 takes it away."""


class Counters(msgspec.Struct):
    received: dict[str, int]
    """Requests per custom_id, also those that were refused."""
    answered: dict[str, int]
    """Answers with status 200 per custom_id."""
    received_total: int
    answered_total: int
    refused_total: int
    """Answers with another status."""
    in_flight: int
    max_in_flight: int
    aborted: int
    """Requests whose connection the client closed before the answer."""


def uniform(*parts: bytes) -> float:
    """A number between 0 and 1, both excluded, that follows from the parts."""
    digest = hashlib.blake2b(b"\0".join(parts), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**64


def request_latency(custom_id: bytes, mean: float, sigma: float) -> float:
    """Seconds that the engine takes for this request: lognormal with this mean, fixed per custom_id."""
    if sigma <= 0 or mean <= 0:
        return mean
    # The largest digests round to 1.0, which has no inverse.
    probability = min(uniform(custom_id), 1 - 2**-53)
    return mean * math.exp(sigma * _NORMAL.inv_cdf(probability) - sigma * sigma / 2)
