"""Errors of upstreams, in a module that imports nothing, for the processes that only check inputs."""


class UpstreamUnavailableError(Exception):
    """The upstream does not respond."""
