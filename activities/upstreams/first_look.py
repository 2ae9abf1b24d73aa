"""Logs, when a process starts, whether each upstream answers and which models it has."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from typing import Final

from activities.upstreams.answers import Verdict
from activities.upstreams.client import InferenceClient, model_names
from activities.upstreams.config import Upstream
from activities.upstreams.labels import upstream_label
from activities.upstreams.waits import wait_after

log = logging.getLogger("everbatch.upstreams")

MAX_NAMED: Final = 10
"""Maximum number of models of one upstream that a log line names."""
MAX_SHOWN: Final = 200
"""Maximum characters shown of the members that an upstream adds to requests."""


async def log_upstreams(clients: Sequence[InferenceClient]) -> None:
    """Log one line for each replica of each upstream. Returns once all have answered or timed out."""
    replicas = ((client, replica) for client in clients for replica in range(len(client.upstream.urls)))
    await asyncio.gather(*(_log_one(client, replica) for client, replica in replicas))


async def _log_one(client: InferenceClient, replica: int) -> None:
    upstream = client.upstream
    label = upstream_label(upstream, replica)
    others = _for_others(upstream)
    named = listed([*upstream.aliases, *upstream.models])
    if not upstream.lists_models:
        log.info("%s is configured with the models %s; its list of models is not requested%s", label, named, others)
        return
    answer = await client.get_models(replica)
    if answer.verdict is Verdict.SUCCESS:
        try:
            names = model_names(answer.body)
        except ValueError:
            log.warning("%s answers, but not with a list of models", label)
        else:
            configured = f"; it gets the requests for {named}" if named else ""
            log.info("%s answers; its models: %s%s%s", label, listed(sorted(names)) or "(none)", configured, others)
    elif answer.verdict is Verdict.FINAL:
        hint = "" if upstream.urls[replica].endswith("/v1") else "; is its base URL right? Most end in /v1"
        log.warning("%s answers %s to the request for its models%s", label, answer.reason, hint)
    else:
        log.warning("%s; its requests wait until it answers", wait_after(answer, upstream, replica).text)


def _for_others(upstream: Upstream) -> str:
    """Return, in words, what an upstream leaves to its other clients and adds to requests."""
    left = f"; {100 * upstream.interactive_headroom:g} % of its capacity is left to its other clients"
    added = f"; requests get {json.dumps(dict(upstream.body))[:MAX_SHOWN]} where they do not set it"
    return (left if upstream.interactive_headroom else "") + (added if upstream.body else "")


def listed(names: Iterable[str]) -> str:
    """Return the first names as text, with the number of the others."""
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(name[:100] for name in names[:MAX_NAMED]) + more
