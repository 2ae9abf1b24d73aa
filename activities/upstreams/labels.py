"""Names upstreams in texts for users and operators."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from activities.upstreams.config import Upstream


def shown_url(url: str) -> str:
    """Return a base URL without the parts that may hold secrets: credentials and the query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def upstream_label(upstream: Upstream, replica: int = 0) -> str:
    """Return a text that names an upstream, unless it is the only one, and the address of one of its replicas."""
    name = "the upstream" if upstream.is_only else f'upstream "{upstream.name}"'
    return f"{name} ({shown_url(upstream.urls[replica])})"
