"""Creates what the settings describe: the object store and the upstreams."""

from __future__ import annotations

import logging
import re
import time
from typing import Final

from activities.settings import Settings
from activities.store.local import LocalStore
from activities.store.object_store import ObjectStore, StoreError
from activities.store.s3 import S3Store
from activities.store.s3_client import Minio, connect
from activities.store.s3_inputs import S3Inputs
from activities.toml_file import SettingsFileError
from activities.upstreams.config import Upstream, read_upstreams
from workflows.contract import DEFAULT_UPSTREAM

log = logging.getLogger("everbatch")

CHECK_AGAIN_SECONDS: Final = 5.0

_S3 = re.compile(r"s3://([^/@:?#]+)(?:/([^?#]*?))?/?")


def load_upstreams(settings: Settings) -> list[Upstream]:
    """Return the upstreams of the file, or the one of the settings, or none if neither is set.

    Raises:
        SettingsFileError: the file cannot be used, or the settings name an upstream in addition to it.
    """
    only = Upstream(
        name=DEFAULT_UPSTREAM,
        urls=(settings.upstream_url,),
        key=settings.upstream_api_key,
        timeout=settings.request_timeout,
        max_answer_bytes=settings.max_answer_bytes,
        max_in_flight=settings.max_in_flight,
        auto_in_flight_ceiling=settings.auto_in_flight_ceiling,
        order=settings.order,
        is_only=True,
    )
    if not settings.upstreams:
        return [only] if settings.upstream_url else []
    if settings.upstream_url or settings.upstream_api_key.get_secret_value():
        name = "EVERBATCH_UPSTREAM_URL" if settings.upstream_url else "EVERBATCH_UPSTREAM_API_KEY"
        raise SettingsFileError(f"Both EVERBATCH_UPSTREAMS and {name} are set. Name all upstreams in the file.")
    return read_upstreams(settings.upstreams, defaults=only)


def open_store(settings: Settings) -> ObjectStore:
    """Return the store that ``EVERBATCH_STORE`` names. It is not accessed yet, so it may still be down.

    Raises:
        ValueError: the address is not valid, or a setting that the store needs is missing.
    """
    address = settings.store_address
    if not settings.store_is_remote:
        return LocalStore(address)
    match = _S3.fullmatch(address)
    if not match:  # the message does not repeat the address: it may contain a password
        raise ValueError("EVERBATCH_STORE is neither a directory nor of the form s3://bucket or s3://bucket/prefix")
    client = _connected(settings, "EVERBATCH_STORE is on S3")
    try:
        return S3Store(client, match[1], match[2] or "")
    except ValueError as error:
        raise ValueError(f"EVERBATCH_STORE: {error}") from error


def open_inputs(settings: Settings) -> S3Inputs | None:
    """Return the reader of inputs that are not uploaded, or ``None`` if these are not allowed.

    Raises:
        ValueError: a required setting is missing.
    """
    return S3Inputs(_connected(settings, "EVERBATCH_INPUT_PREFIXES is set")) if settings.prefixes else None


def _connected(settings: Settings, why: str) -> Minio:
    access_key, secret_key = settings.s3_access_key.get_secret_value(), settings.s3_secret_key.get_secret_value()
    for name, value in (("ENDPOINT", settings.s3_endpoint), ("ACCESS_KEY", access_key), ("SECRET_KEY", secret_key)):
        if not value:
            raise ValueError(f"{why}, and EVERBATCH_S3_{name} is not set")
    try:
        return connect(settings.s3_endpoint, access_key, secret_key, settings.s3_region, settings.s3_secure)
    except ValueError as error:
        raise ValueError(f"EVERBATCH_S3_ENDPOINT or EVERBATCH_S3_REGION: {error}") from error


def log_until_ready(store: ObjectStore) -> None:
    """Log why the store cannot be used, and when it is available. Blocks until then, so run it in a thread."""
    logged = ""
    while True:
        try:
            store.check()
        except StoreError as error:
            if str(error) != logged:
                logged = str(error)
                log.warning("waiting for the file store: %s", logged)
            time.sleep(CHECK_AGAIN_SECONDS)
        else:
            if logged:
                log.warning("the file store is available")
            return
