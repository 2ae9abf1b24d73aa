"""The activities of the workers: validating input, sending requests, writing result files; and the store."""
