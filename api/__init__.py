"""What clients meet: the HTTP API, the command line, and the all-in-one runner."""

__version__ = "0.1.0"
