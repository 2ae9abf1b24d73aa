"""Describes waits for an upstream: the one place where a failed answer becomes a text for users and operators."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from activities.upstreams.answers import Answer, Verdict
from activities.upstreams.config import Upstream
from activities.upstreams.labels import upstream_label
from activities.upstreams.lanes import Flight
from workflows.waits import EndsBy, Wait, WaitKind

_UNREACHABLE: Final = {
    "connection refused": ("refuses connections", EndsBy.ITSELF),
    "no connection in time": ("does not accept a connection in time", EndsBy.ITSELF),
    "its name does not resolve": ("has a host name that does not resolve", EndsBy.OPERATOR),
    "TLS failed": ("cannot be reached: TLS failed", EndsBy.OPERATOR),
}
"""Text and end of a wait by the answer's reason. Any other reason is a connection that failed in another way."""

_PASSING: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, 425, 502, 504})
"""Statuses that proxies return, and engines that are not ready yet."""

_WRONG_PLACE: Final = frozenset({301, 302, 303, 307, 308, 404, 405})
"""Statuses of a base URL that is not the address of an inference API."""
_NO_API: Final = "with a body that is not JSON"
"""Part of the reason of a 2xx answer that is no result; its body is most likely a web page."""

_LOADING: Final = "loading model"
"""Part of the message of llama.cpp's 503 while it starts."""


def wait_after(answer: Answer, upstream: Upstream, replica: int = 0) -> Wait:
    """Return the wait of a request that received this answer and will be sent again."""
    kind = WaitKind.UPSTREAM
    reason, ends_by = f"failed: {answer.reason}", EndsBy.ITSELF
    match answer.verdict:
        case Verdict.UNREACHABLE:
            reason, ends_by = _UNREACHABLE.get(answer.reason, ("cannot be reached", EndsBy.ITSELF))
        case Verdict.TIMED_OUT:
            reason = f"gave {answer.reason}"
        case Verdict.OVERLOADED if _LOADING in answer.message[:200].lower():
            kind, reason = WaitKind.MODEL, f"is still loading its model ({answer.reason})"
        case Verdict.OVERLOADED:
            reason = f"is overloaded ({answer.reason})"
            if answer.retry_after:
                reason += f" and asks to wait {answer.retry_after:.0f} s"
        case _ if answer.status == HTTPStatus.UNAUTHORIZED:
            reason = f"rejects the API key that Everbatch is configured to send it ({answer.reason})"
            ends_by = EndsBy.OPERATOR
        case _ if _NO_API in answer.reason:
            reason = f"answered {answer.reason}; is this the port of an inference server, and not of a web page?"
            ends_by = EndsBy.OPERATOR
        case _ if answer.status in _WRONG_PLACE:
            reason = f"answered {answer.reason}; is its base URL right? Most end in /v1"
            ends_by = EndsBy.OPERATOR
        case _ if answer.status:
            reason = f"answered {answer.reason}"
            ends_by = EndsBy.ITSELF if answer.status in _PASSING else EndsBy.OPERATOR
        case _:
            pass
    return Wait(kind=kind, subject=upstream_label(upstream, replica), reason=reason, ends_by=ends_by)


def unavailable_wait(upstream: Upstream) -> Wait:
    """Return the wait for an upstream about which nothing more is known."""
    return Wait(kind=WaitKind.UPSTREAM, subject=upstream_label(upstream), reason="is not available")


def silence_of(flights: Iterable[Flight], upstream: Upstream) -> Wait | None:
    """Return the wait of these requests if their engine has answered nothing for longer than usual, else ``None``."""
    for lane, replica in {(flight.lane, flight.replica) for flight in flights}:
        if (seconds := lane.silence.unusual(lane.in_flight)) is None:
            continue
        longest = lane.silence.longest
        lately = f"; lately an answer took up to {longest:.1f} s" if longest is not None else ""
        noun = "request" if lane.in_flight == 1 else "requests"
        return Wait(
            kind=WaitKind.UPSTREAM,
            subject=upstream_label(upstream, replica),
            reason=f"has {lane.in_flight} {noun} in flight and has answered none for {seconds:.0f} s "
            f"(each is given up after {upstream.timeout:g} s{lately})",
        )
    return None
