"""What several processes do to one store at the same time. A module of its own: a new process imports little else."""

from __future__ import annotations

from activities.store.local import LocalStore


def write_and_delete(folder: str, worker: int) -> None:
    store = LocalStore(folder)
    for number in range(60):
        key = f"p/{number % 3}/{worker}-{number}"
        store.put(key, b"%d" % worker)
        assert store.get(key) == b"%d" % worker
        store.delete(key)
