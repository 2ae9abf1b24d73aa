"""Which object store the settings name."""

from __future__ import annotations

import logging
import re
import time
from typing import Final

from activities.s3_client import connect
from activities.settings import Settings
from activities.storage import ObjectStore, StoreError
from activities.storage_local import LocalStore
from activities.storage_s3 import S3Store

log = logging.getLogger("everbatch")

CHECK_AGAIN_SECONDS: Final = 5.0

_S3 = re.compile(r"s3://([^/@:?#]+)(?:/([^?#]*?))?/?")


def open_store(settings: Settings) -> ObjectStore:
    """The store that ``EVERBATCH_STORE`` names. Nothing is read or written yet: it may be away still.

    Raises:
        ValueError: there is no store of such an address, or a setting that it needs is missing.
    """
    address = settings.store_address
    if not settings.store_is_remote:
        return LocalStore(address)
    match = _S3.fullmatch(address)
    if not match:  # not repeated here: somebody may have put a password into it
        raise ValueError("EVERBATCH_STORE is neither a folder nor of the form s3://bucket or s3://bucket/prefix")
    access_key, secret_key = settings.s3_access_key.get_secret_value(), settings.s3_secret_key.get_secret_value()
    for name, value in (("ENDPOINT", settings.s3_endpoint), ("ACCESS_KEY", access_key), ("SECRET_KEY", secret_key)):
        if not value:
            raise ValueError(f"EVERBATCH_STORE is on S3, and EVERBATCH_S3_{name} is not set")
    try:
        client = connect(settings.s3_endpoint, access_key, secret_key, settings.s3_region, settings.s3_secure)
    except ValueError as error:
        raise ValueError(f"EVERBATCH_S3_ENDPOINT or EVERBATCH_S3_REGION: {error}") from error
    try:
        return S3Store(client, match[1], match[2] or "")
    except ValueError as error:
        raise ValueError(f"EVERBATCH_STORE: {error}") from error


def tell_of_store(store: ObjectStore) -> None:
    """Say in the log why the store cannot be used, and when it can be. Blocks until then; nothing else waits for it."""
    said = ""
    while True:
        try:
            store.check()
        except StoreError as error:
            if str(error) != said:
                said = str(error)
                log.warning("waiting for the file store: %s", said)
            time.sleep(CHECK_AGAIN_SECONDS)
        else:
            if said:
                log.warning("the file store is there")
            return
