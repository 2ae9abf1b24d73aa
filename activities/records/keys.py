"""The keys of all objects in the store.

This module derives all keys except those of :mod:`activities.records.create_notes`,
:mod:`activities.records.keyed_files` and :mod:`activities.records.shard_keys`::

    files/<tenant>/<file id>/{object.json,content}
    files/<tenant>/<file id>/deleting-<time>-<n>  while the file is being deleted
    files/<tenant>/<file id>/deleted              times of creation and deletion, kept for a day
    keys/<tenant>/<file id>                       digest of the upload that used the file's idempotency key
    creates/<tenant>/<digest>/<time>-<n>-<batch id>     a create whose response has not been delivered
    batches/<tenant>/<batch id>/created.json      the first record, written by the API and again by the worker
    batches/<tenant>/<batch id>/running.json      the record once the input is valid
    batches/<tenant>/<batch id>/record.json       the final record
    batches/<tenant>/<batch id>/input             private copy, because a file may be deleted while its batch runs
    batches/<tenant>/<batch id>/kept/{output,error,counts}   of a retry: the lines it takes over
    batches/<tenant>/<batch id>/retries/<number>  :mod:`activities.records.retries`
    batches/<tenant>/<batch id>/webhook.json      its own webhook: the only copy of the address and secret
    batches/<tenant>/<batch id>/cuts/<cut>        its shards; several cuts only after a reset with other routes
    batches/<tenant>/<batch id>/orders/<cut>      the sending order, if it is not that of the input
    batches/<tenant>/<batch id>/parts/<cut>/<shard>/<attempt>-<n>
    batches/<tenant>/<batch id>/results/<cut>/<shard>/<attempt>
    batches/<tenant>/<batch id>/feed/<position>      numbers of committed lines that were read while it ran
    uploads/<tenant>/<upload id>/{created.json,ended.json}
    uploads/<tenant>/<upload id>/parts/<part id>
    uploads/<tenant>/<upload id>/arrived/<part id>-<bytes>-<newlines>-<open>     written after the part
    index/<tenant>/{batches,message_batches,files/<purpose>}/<inverted time, in four folders>-<id>
    active/<tenant>/<batch id>                    number of requests of a running batch, if there are tenants
    due/<hour>/<time>.<kind>.<tenant>.<id>        for the janitor: :mod:`activities.records.reminders`
"""

from __future__ import annotations

import re
from typing import Final

from activities.store.object_store import ObjectNotFoundError
from workflows.ids import BatchRef

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def content_key(tenant: str, file_id: str) -> str:
    return f"{file_prefix(tenant, file_id)}content"


def uploads_prefix(tenant: str) -> str:
    return f"uploads/{tenant}/"


def upload_prefix(tenant: str, upload_id: str) -> str:
    return f"{uploads_prefix(tenant)}{checked(upload_id)}/"


def upload_part_key(tenant: str, upload_id: str, part_id: str) -> str:
    return f"{upload_prefix(tenant, upload_id)}parts/{checked(part_id)}"


def arrived_prefix(tenant: str, upload_id: str) -> str:
    """Return the prefix of the keys of an upload's complete parts."""
    return f"{upload_prefix(tenant, upload_id)}arrived/"


def input_key(ref: BatchRef) -> str:
    return f"{batch_prefix(ref)}input"


def cuts_prefix(ref: BatchRef) -> str:
    return f"{batch_prefix(ref)}cuts/"


def orders_prefix(ref: BatchRef) -> str:
    return f"{batch_prefix(ref)}orders/"


def kept_prefix(ref: BatchRef) -> str:
    return f"{batch_prefix(ref)}kept/"


def kept_key(ref: BatchRef, kind: str) -> str:
    return f"{kept_prefix(ref)}{kind}"


def retries_prefix(ref: BatchRef) -> str:
    return f"{batch_prefix(ref)}retries/"


def webhook_key(ref: BatchRef) -> str:
    return f"{batch_prefix(ref)}webhook.json"


def feed_prefix(ref: BatchRef) -> str:
    return f"{batch_prefix(ref)}feed/"


def active_prefix(tenant: str) -> str:
    return f"active/{tenant}/"


def active_key(ref: BatchRef) -> str:
    return f"{active_prefix(ref.tenant)}{checked(ref.batch_id)}"


def file_prefix(tenant: str, file_id: str) -> str:
    return f"files/{tenant}/{checked(file_id)}/"


def record_key(tenant: str, file_id: str) -> str:
    return f"{file_prefix(tenant, file_id)}object.json"


def batch_prefix(ref: BatchRef) -> str:
    return f"batches/{ref.tenant}/{checked(ref.batch_id)}/"


def checked(object_id: str) -> str:
    # Ids come from URLs. An id that Everbatch could not have made belongs to no object.
    if not _ID.fullmatch(object_id):
        raise ObjectNotFoundError(object_id[:80])
    return object_id
