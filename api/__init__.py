"""The HTTP API, the command line, and the all-in-one process."""

__version__ = "0.1.0"
